//! A qcow2 image behind a disk, with the images that it is based on.
//!
//! The format is the library's (`imago`). What is ours: which files are opened and under which locks, so that an
//! image never decides that by itself, and the copy between guest memory and the library, which takes plain
//! buffers that nobody else may write. So a request costs more than with a raw image, and the I/O thread waits
//! for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Storage as _, StorageOpenOptions,
};

use super::disk::{self, Backend, DiskOptions, Geometry, OpenError};
use super::image::Format;
use super::request::SECTOR;
use super::slot::{self, Lock, Slot, Wait, Work};

/// How many images may lie below each other.
const MAX_LAYERS: usize = 32;
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
    /// The files of all layers, each locked.
    locked: Vec<File>,
}

impl Qcow2Disk {
    /// Opens and locks an image and all that it is based on.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(options: &DiskOptions) -> Result<Self, OpenError> {
        let mut locked = Vec::new();
        let image = open_qcow2(options, &mut locked)?;
        let size = image.size();
        Ok(Qcow2Disk {
            image: RwLock::new(image),
            size: size.wrapping_sub(size.checked_rem(SECTOR).unwrap_or(0)),
            locked,
        })
    }

    fn shared<T>(&self, run: impl FnOnce(&FormatAccess<Storage>) -> T) -> T {
        run(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Opens one image. `locked` has the files of those above it, and gets its own.
fn open_qcow2(
    options: &DiskOptions,
    locked: &mut Vec<File>,
) -> Result<FormatAccess<Storage>, OpenError> {
    let path = &options.path;
    let failed = |source| OpenError::Qcow2 {
        path: path.clone(),
        source,
    };
    let storage = open_storage(options, locked)?;
    let marked = locked.last().map(disk::probe).transpose().map_err(failed)?;
    if marked.flatten() != Some(Format::Qcow2) {
        return Err(failed(io::Error::other("it does not begin as one")));
    }
    // Without these two the library would look for them itself.
    let builder = Qcow2::<Storage>::builder(storage)
        .write(!options.read_only)
        .backing(None)
        .data_file(None);
    let mut image = builder
        .open(DenyImplicitOpenGate::default())
        .map_err(failed)?;
    if image.requires_external_data_file() {
        return Err(failed(io::Error::other(
            "its data are in another file, which is not served",
        )));
    }
    if let Some(name) = image.implicit_backing_file().cloned() {
        let format = image.implicit_backing_format().cloned();
        let below = DiskOptions {
            path: beside(path, &name),
            read_only: true,
            ..options.clone()
        };
        let format = format.ok_or_else(|| OpenError::BackingFormat {
            path: path.clone(),
            backing: name,
        })?;
        image.set_backing(Some(open_backing(&below, &format, locked)?));
    }
    Ok(FormatAccess::new(image))
}

fn open_backing(
    options: &DiskOptions,
    format: &str,
    locked: &mut Vec<File>,
) -> Result<FormatAccess<Storage>, OpenError> {
    let failed = |source| OpenError::Qcow2 {
        path: options.path.clone(),
        source,
    };
    if locked.len() >= MAX_LAYERS {
        return Err(failed(io::Error::other("too many images below each other")));
    }
    match format {
        "qcow2" => open_qcow2(options, locked),
        "raw" => {
            let builder = Raw::<Storage>::builder(open_storage(options, locked)?);
            let raw = builder.open(DenyImplicitOpenGate::default());
            Ok(FormatAccess::new(raw.map_err(failed)?))
        }
        other => Err(failed(io::Error::other(format!(
            "a backing file of format {other} is not served"
        )))),
    }
}

/// Opens and locks a file; it is the last of `locked` then.
fn open_storage(options: &DiskOptions, locked: &mut Vec<File>) -> Result<Storage, OpenError> {
    let path = &options.path;
    let host = |what| {
        move |source| OpenError::Host {
            what,
            path: path.clone(),
            source,
        }
    };
    let plain = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(path)
        .map_err(host("open"))?;
    disk::lock(&plain, path, options.read_only)?;
    locked.push(plain);
    let how = StorageOpenOptions::new()
        .filename(path)
        .write(!options.read_only)
        .direct(options.direct);
    Storage::open(how).map_err(host("open"))
}

/// Names in an image are relative to where it is.
fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        // The library writes what it holds back when it is dropped, which is after this: do it while the lock
        // still keeps others away. An error means that the guest did not flush; nothing was promised to it.
        let _ = self.shared(FormatAccess::flush);
        for file in &self.locked {
            // Cannot fail for an open file; and if, closing unlocks it.
            let _ = slot::lock(file, Lock::None);
        }
    }
}

impl Backend for Qcow2Disk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size,
            logical_block: LOGICAL_BLOCK,
            physical_block: PHYSICAL_BLOCK,
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
            Work::Write { sync } => {
                slot.chain().read_at(slot.place(), &mut bytes);
                self.shared(|image| image.write(&bytes, slot.offset))?;
                if sync {
                    self.flush()?;
                }
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
        match mode & libc::FALLOC_FL_PUNCH_HOLE {
            0 => self.zero(offset, len),
            // Room is given back, and the range reads as zeros.
            _ => {
                let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
                image.discard_to_zero(offset, len)
            }
        }
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.shared(|image| image.write_zeroes(offset, len))
    }

    fn file(&self) -> Option<&File> {
        None
    }

    fn is_direct(&self) -> bool {
        false
    }

    fn is_device(&self) -> bool {
        false
    }
}
