//! A qcow2 image behind a disk, with the images that it is based on.
//!
//! The format is the library's (`imago`). What is ours: which files are opened and under which locks (see
//! [`super::layers`]), that an image is refused which a killed process left so that writing would harm it (see
//! [`super::refcounts`]), and the copy between guest memory and the library, which takes plain buffers that nobody
//! else may write. So a request costs more than with a raw image, and the I/O thread waits for it.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use imago::FormatAccess;
use imago::file::File as Storage;

use super::disk::{self, Backend, Geometry};
use super::layers::Layers;
use super::open::{DiskOptions, Locked, OpenError};
use super::request::SECTOR;
use super::slot::{NO_HIDE_STALE, Slot, Wait, Work};
use crate::guest_log;

/// Bytes that are copied at once.
const COPY_LEN: u32 = 256 << 10;
/// What a driver is told to read and write at least, and best: a guest's page.
const LOGICAL_BLOCK: u32 = 512;
const PHYSICAL_BLOCK: u32 = 4096;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Qcow2Disk {
    /// Lock rank: innermost but for the library's own. All requests share it but those that give room back,
    /// which the library does alone.
    image: RwLock<FormatAccess<Storage>>,
    size: u64,
    /// Where it is, unless it is only read.
    written: Option<PathBuf>,
    /// Bytes of a cluster, what a discard gives back at least.
    cluster: u32,
    /// Last, so that it is dropped last: dropping the image writes what it holds back.
    _locks: Vec<Locked>,
}

impl Qcow2Disk {
    /// Opens and locks an image and all that it is based on.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(options: &DiskOptions) -> Result<Self, OpenError> {
        let Layers {
            image,
            locks,
            cluster,
        } = Layers::open(options)?;
        let size = image.size();
        Ok(Qcow2Disk {
            image: RwLock::new(image),
            size: size.wrapping_sub(size.checked_rem(SECTOR).unwrap_or(0)),
            written: (!options.read_only).then(|| options.path.clone()),
            cluster,
            _locks: locks,
        })
    }

    fn shared<T>(&self, run: impl FnOnce(&FormatAccess<Storage>) -> T) -> T {
        run(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Qcow2Disk {
    /// The library does this too, and tells nobody where it fails.
    fn drop(&mut self) {
        let Some(path) = &self.written else { return };
        if let Err(error) = self.shared(|image| image.flush()) {
            let told = format_args!(
                "disk {path:?}: cannot write its tables at the end, so what was written since the last flush is lost, \
                 and `qemu-img check -r all {path:?}` may have to repair it: {error}"
            );
            guest_log::warn(module_path!(), 0, told);
        }
    }
}

impl Backend for Qcow2Disk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size,
            logical_block: LOGICAL_BLOCK,
            physical_block: PHYSICAL_BLOCK,
            discard_block: self.cluster,
        }
    }

    fn transfer(&self, slot: &Slot, wait: Wait) -> io::Result<usize> {
        if wait == Wait::No {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = usize::try_from(slot.left.min(COPY_LEN)).unwrap_or_default();
        let mut bytes = vec![0; len];
        match slot.work {
            Work::Read => {
                self.shared(|image| image.read(&mut bytes, slot.offset))?;
                Ok(slot.chain().write_at(slot.place(), &bytes))
            }
            // Who asked for the write flushes at its end, once.
            Work::Write { .. } => {
                slot.chain().read_at(slot.place(), &mut bytes);
                self.shared(|image| image.write(&bytes, slot.offset))?;
                Ok(len)
            }
            Work::Flush | Work::Allocate { .. } => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        // First what the library holds of the image's tables, then all of it to the disk.
        self.shared(|image| image.flush().and_then(|()| image.sync()))
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 {
            return unsupported(self.shared(|image| image.write_zeroes(offset, len)));
        }
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        unsupported(match mode & NO_HIDE_STALE {
            // Room is given back, and the range reads as zeros; its ends may have to be written for that.
            0 => image.discard_to_zero(offset, len),
            // Only whole clusters: nothing is written, so a discard does not make the image grow.
            _ => image.discard_to_any(offset, len),
        })
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        disk::in_zeros(offset, len, |zeros, at| {
            self.shared(|image| image.write(zeros, at))
        })
    }

    fn file(&self) -> Option<&File> {
        None
    }

    fn is_direct(&self) -> bool {
        false
    }

    fn may_read_stale(&self) -> bool {
        true
    }
}

/// What an image cannot do (version 2 has no clusters of zeros), as the host would say it.
fn unsupported(result: io::Result<()>) -> io::Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::Unsupported => io::Error::from_raw_os_error(libc::EOPNOTSUPP),
        _ => error,
    })
}
