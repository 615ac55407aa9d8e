//! A raw file or block device behind a disk, and the seam at which tests put something else.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::image::{Format, PROBE_LEN};
use super::request::SECTOR;
use super::slot::{self, Lock, Slot, Wait};

/// Largest logical block that is passed on; a guest page.
const MAX_BLOCK: u32 = 4096;
/// Logical block size of an O_DIRECT file whose file system does not tell: what ext4 and XFS take.
const DIRECT_BLOCK: u32 = 512;
/// `_IO(0x12, 104)` and `_IO(0x12, 123)` of linux/fs.h.
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// The image cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The host refuses it.
    #[error("cannot {what} {path}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Some process uses it, and one of the two writes.
    #[error("{0} is in use: another process holds a lock on it")]
    InUse(PathBuf),
    /// Not raw.
    #[error(
        "{path} looks like a {format} image: give image_type={format} if it is one that you made, or \
         image_type=raw if the guest is to see these very bytes"
    )]
    Undeclared {
        /// The image.
        path: PathBuf,
        /// What it looks like.
        format: Format,
    },
    /// Not raw, and not qcow2 either.
    #[error(
        "{path} is a {format} image, which is not served: convert it with `qemu-img convert -O \
         raw {path} {path}.raw`, or give image_type=raw if the guest is to see these very bytes"
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// The format that was declared is not found there, or has features that are not served.
    #[error("cannot use {path} as a qcow2 image")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A qcow2 image does not say what its backing file is.
    #[error(
        "{path} does not say of which format its backing file is: record it with `qemu-img rebase -u -b \
         {backing} -F raw {path}`, or -F qcow2"
    )]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// What it names.
        backing: String,
    },
    /// Neither file nor block device.
    #[error("{0} is neither a file nor a block device")]
    Kind(PathBuf),
}

/// How an image is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Where it is.
    pub path: PathBuf,
    /// Refuse writes; such an image may be used by several.
    pub read_only: bool,
    /// Go past the page cache (O_DIRECT).
    pub direct: bool,
    /// What it was declared to be.
    pub format: ImageFormat,
}

/// What an image is, as whoever configures it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// Not said: raw if it does not look like anything else, and refused otherwise.
    #[default]
    Unsaid,
    /// These very bytes, whatever they look like.
    Raw,
    /// qcow2, version 2 or 3, with its backing files.
    Qcow2,
}

/// Sizes that a driver may want to know, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// All of it, a multiple of a sector.
    pub size: u64,
    /// What is read and written at least; a power of two.
    pub logical_block: u32,
    /// What the disk writes at once; a power of two, not less than `logical_block`.
    pub physical_block: u32,
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
    /// Whether fallocate's mode gives space back on this kind of file.
    fn is_device(&self) -> bool;
}

/// See the module's text.
#[derive(Debug)]
pub struct Disk {
    file: File,
    /// With O_DIRECT: the same file by way of the page cache, for requests that are not aligned in
    /// memory. A flush reaches both, as they are one inode.
    buffered: Option<File>,
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
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(!options.read_only)
                .custom_flags(flags)
                .open(path)
        };
        let plain = open(0).map_err(host("open"))?;
        let kind = plain.metadata().map_err(host("look at"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind(path.clone()));
        }
        lock(&plain, path, options.read_only)?;
        if options.format != ImageFormat::Raw
            && let Some(format) = probe(&plain).map_err(host("read"))?
        {
            let path = path.clone();
            return Err(match format {
                Format::Qcow2 => OpenError::Undeclared { path, format },
                _ => OpenError::Format { path, format },
            });
        }
        let geometry = geometry(&plain, path, kind.is_block_device(), options.direct)?;
        let direct = match options.direct {
            true => Some(open(libc::O_DIRECT).map_err(host("open with O_DIRECT"))?),
            false => None,
        };
        let (file, buffered) = match direct {
            Some(direct) => (direct, Some(plain)),
            None => (plain, None),
        };
        Ok(Disk {
            file,
            buffered,
            geometry,
            device: kind.is_block_device(),
        })
    }
}

/// Takes the lock of an image that is about to be used.
pub(super) fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let how = if read_only {
        Lock::Shared
    } else {
        Lock::Exclusive
    };
    slot::lock(file, how).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => {
            OpenError::InUse(path.to_owned())
        }
        _ => OpenError::Host {
            what: "lock",
            path: path.to_owned(),
            source,
        },
    })
}

/// The format whose mark the file bears.
pub(super) fn probe(file: &File) -> io::Result<Option<Format>> {
    let mut start = [0; PROBE_LEN];
    let mut done = 0;
    while let Some(rest) = start.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = u64::try_from(done).unwrap_or(u64::MAX);
        match file.read_at(rest, at)? {
            0 => break,
            count => done = done.saturating_add(count),
        }
    }
    Ok(Format::of(start.get(..done).unwrap_or_default()))
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
    })
}

impl Drop for Disk {
    /// Closing is not enough: io_uring holds the file for some time after its ring is gone.
    fn drop(&mut self) {
        let locked = self.buffered.as_ref().unwrap_or(&self.file);
        // Cannot fail for an open file; and if, closing unlocks it, only later.
        let _ = slot::lock(locked, Lock::None);
    }
}

impl Backend for Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn transfer(&self, slot: &Slot, wait: Wait) -> io::Result<usize> {
        match (slot.transfer(&self.file, wait), &self.buffered) {
            // Not aligned in memory, which O_DIRECT wants (open(2), NOTES).
            (Err(error), Some(buffered)) if error.raw_os_error() == Some(libc::EINVAL) => {
                slot.transfer(buffered, Wait::Yes)
            }
            (result, _) => result,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        slot::allocate(&self.file, mode, offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.device {
            true => slot::discard(&self.file, offset, len),
            false => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let file = self.buffered.as_ref().unwrap_or(&self.file);
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let here = usize::try_from(left)
                .unwrap_or(ZEROS.len())
                .min(ZEROS.len());
            file.write_all_at(ZEROS.get(..here).unwrap_or_default(), at)?;
            let here = u64::try_from(here).unwrap_or(left);
            at = at.saturating_add(here);
            left = left.saturating_sub(here);
        }
        Ok(())
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn is_direct(&self) -> bool {
        self.buffered.is_some()
    }

    fn is_device(&self) -> bool {
        self.device
    }
}
