//! A raw file or block device behind a disk, and the seam at which tests put something else.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use super::image::Format;
use super::open::{self, DiskOptions, ImageFormat, Locked, OpenError};
use super::request::SECTOR;
use super::slot::{self, Slot, Wait};

/// Largest logical block that is passed on; a guest page.
const MAX_BLOCK: u32 = 4096;
/// Logical block size of an O_DIRECT file whose file system does not tell: what ext4 and XFS take.
const DIRECT_BLOCK: u32 = 512;
/// `_IO(0x12, 104)` and `_IO(0x12, 123)` of linux/fs.h.
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// Sizes that a driver may want to know, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// All of it, a multiple of a sector.
    pub size: u64,
    /// What is read and written at least; a power of two.
    pub logical_block: u32,
    /// What the disk writes at once; a power of two, not less than `logical_block`.
    pub physical_block: u32,
    /// What a discard gives back at least; a multiple of `logical_block`.
    pub discard_block: u32,
}

/// What serves the requests of a disk.
pub(super) trait Backend: Debug + Send + Sync {
    fn geometry(&self) -> Geometry;
    /// Reads or writes some of what is left of `slot`.
    fn transfer(&self, slot: &Slot, wait: Wait) -> io::Result<usize>;
    /// Makes all that was written last.
    fn flush(&self) -> io::Result<()>;
    /// fallocate(2).
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()>;
    /// Lets a device forget a range for which fallocate(2) is of no use.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Writes zeros.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The file for io_uring, if the engine may go to it by itself.
    fn file(&self) -> Option<&File>;
    /// Whether the page cache is in between.
    fn is_direct(&self) -> bool;
    /// Whether a discard is to be asked for with [`slot::NO_HIDE_STALE`]: the range may read as anything then.
    fn may_read_stale(&self) -> bool;
}

/// See the module's text.
#[derive(Debug)]
pub struct Disk {
    /// By way of the page cache.
    plain: Locked,
    /// The same file with O_DIRECT; requests that are not aligned in memory go to the other one. A flush reaches both,
    /// as they are one inode.
    direct: Option<File>,
    geometry: Geometry,
    device: bool,
}

impl Disk {
    /// Opens and locks an image.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(options: &DiskOptions) -> Result<Self, OpenError> {
        let path = &options.path;
        let host = |what| {
            move |source| OpenError::Host {
                what,
                path: path.clone(),
                source,
            }
        };
        let plain = open::lock(open::open(options)?, options)?;
        if options.format != ImageFormat::Raw
            && let Some(format) = open::probe(&plain).map_err(host("read"))?
        {
            let path = path.clone();
            return Err(match format {
                Format::Qcow2 => OpenError::Undeclared { path, format },
                _ => OpenError::Format { path, format },
            });
        }
        let kind = plain.metadata().map_err(host("look at"))?.file_type();
        let geometry = geometry(&plain, path, kind.is_block_device(), options.direct)?;
        let direct = match options.direct {
            true => Some(open::again_direct(&plain, options)?),
            false => None,
        };
        Ok(Disk {
            plain,
            direct,
            geometry,
            device: kind.is_block_device(),
        })
    }

    /// Where requests go at first.
    fn first(&self) -> &File {
        self.direct.as_ref().unwrap_or(&self.plain)
    }
}

fn geometry(file: &File, path: &Path, device: bool, direct: bool) -> Result<Geometry, OpenError> {
    let host = |what| {
        move |source| OpenError::Host {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let mut end = file;
    // Works for block devices too, where the metadata say 0.
    let len = end.seek(SeekFrom::End(0)).map_err(host("measure"))?;
    let (logical, physical) = if device {
        let logical =
            slot::block_size(file, BLKSSZGET).map_err(host("ask for the block size of"))?;
        let physical = slot::block_size(file, BLKPBSZGET).unwrap_or(logical);
        (logical, physical)
    } else {
        let cluster = file.metadata().map_err(host("look at"))?.blksize();
        let cluster = u32::try_from(cluster).unwrap_or(MAX_BLOCK);
        (DIRECT_BLOCK, if direct { cluster } else { DIRECT_BLOCK })
    };
    let sane = |size: u32| {
        if size.is_power_of_two() {
            size
        } else {
            DIRECT_BLOCK
        }
    };
    let logical = sane(logical).clamp(DIRECT_BLOCK, MAX_BLOCK);
    let sector = u64::from(logical).max(SECTOR);
    Ok(Geometry {
        // A part of a block at the end cannot be reached.
        size: len.wrapping_sub(len.checked_rem(sector).unwrap_or(0)),
        logical_block: logical,
        physical_block: sane(physical).max(logical),
        discard_block: logical,
    })
}

impl Backend for Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn transfer(&self, slot: &Slot, wait: Wait) -> io::Result<usize> {
        match slot.transfer(self.first(), wait) {
            // Not aligned in memory, which O_DIRECT wants (open(2), NOTES).
            Err(error) if self.is_direct() && error.raw_os_error() == Some(libc::EINVAL) => {
                slot.transfer(&self.plain, Wait::Yes)
            }
            result => result,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.first().sync_data()
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        slot::allocate(self.first(), mode, offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.device {
            true => slot::discard(self.first(), offset, len),
            false => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        in_zeros(offset, len, |zeros, at| self.plain.write_all_at(zeros, at))
    }

    fn file(&self) -> Option<&File> {
        Some(self.first())
    }

    fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    fn may_read_stale(&self) -> bool {
        // A block device forgets only with this mode (fallocate(2) on one, block/fops.c).
        self.device
    }
}

/// Writes `len` zeros from `offset` on, some at a time.
pub(super) fn in_zeros(
    offset: u64,
    len: u64,
    write: impl Fn(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let (mut at, mut left) = (offset, len);
    while left > 0 {
        let here = usize::try_from(left)
            .unwrap_or(ZEROS.len())
            .min(ZEROS.len());
        write(ZEROS.get(..here).unwrap_or_default(), at)?;
        let here = u64::try_from(here).unwrap_or(left);
        at = at.saturating_add(here);
        left = left.saturating_sub(here);
    }
    Ok(())
}
