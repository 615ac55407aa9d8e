//! How the files of a disk are opened: without waiting for anybody, only what can be a disk, and locked.
//!
//! All files come this way, those that an image names too. What is locked and probed is the open file that is
//! then used: nobody can put another one under its name in between.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use thiserror::Error;

use super::image::{Format, PROBE_LEN};
use super::slot::{self, Lock};

/// The image cannot be used. Names are quoted, as an image may name any file as the one below it.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The host refuses it.
    #[error("cannot {what} {path:?}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Some process uses it, and one of the two writes.
    #[error("{0:?} is in use: another process, or another disk, holds a lock on it")]
    InUse(PathBuf),
    /// It bears the mark of a format that is served, and was not declared to be of it.
    #[error(
        "{path:?} looks like a {format} image: give image_type=raw if a guest may have written its first bytes, \
         or image_type={format} if you know that it is one"
    )]
    Undeclared {
        /// The image.
        path: PathBuf,
        /// What it looks like.
        format: Format,
    },
    /// It bears the mark of a format that is not served.
    #[error(
        "{path:?} is a {format} image, which is not served: convert it with `qemu-img convert -O \
         raw {path:?} NEW`, or give image_type=raw if the guest is to see these very bytes"
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// The format that was declared is not found there, or has features that are not served.
    #[error("cannot use {path:?} as a qcow2 image")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is based on another file, which nobody said may be opened.
    #[error(
        "{path:?} names {backing:?} as its backing file: give backing_files=on if the guest may read that file"
    )]
    BackingRefused {
        /// The image.
        path: PathBuf,
        /// What it names.
        backing: String,
    },
    /// A qcow2 image does not say of which format its backing file is.
    #[error("{path:?} does not say of which format its backing file {backing:?} is: {remedy}")]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// What it names.
        backing: String,
        /// The command that mends it.
        remedy: String,
    },
    /// A file below it cannot be used.
    #[error(
        "cannot use {backing:?}, the backing file of {path:?}: mend that file, or name another with `qemu-img \
         rebase -u`"
    )]
    Backing {
        /// The image.
        path: PathBuf,
        /// What it names.
        backing: String,
        /// What is wrong with that.
        source: Box<OpenError>,
    },
    /// Neither file nor block device.
    #[error("{0:?} is neither a regular file nor a block device")]
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
    /// Open the files that a qcow2 image names as those below it. The guest can read them then.
    pub backing_files: bool,
}

/// What an image is, as whoever configures it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// Not said: raw if it does not look like anything else, and refused otherwise.
    #[default]
    Unsaid,
    /// These very bytes, whatever they look like.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

/// Opens what can be a disk, by way of the page cache.
pub(super) fn open(options: &DiskOptions) -> Result<File, OpenError> {
    // A FIFO without this waits for its other end, and a terminal becomes ours (open(2)).
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(&options.path)
        .map_err(host(options, "open"))?;
    let kind = file.metadata().map_err(host(options, "look at"))?;
    let kind = kind.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::Kind(options.path.clone()));
    }
    // io_uring answers EAGAIN instead of waiting on such a file (io_uring/rw.c, io_rw_init_file()).
    slot::change_flags(&file, libc::O_NONBLOCK, 0).map_err(host(options, "set up"))?;
    Ok(file)
}

/// Opens once more what is open, past the page cache, whatever has its name by now.
pub(super) fn again_direct(file: &File, options: &DiskOptions) -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(host(options, "open with O_DIRECT"))
}

/// Takes the lock of an image that is about to be used.
pub(super) fn lock(file: File, options: &DiskOptions) -> Result<Locked, OpenError> {
    let how = match options.read_only {
        true => Lock::Shared,
        false => Lock::Exclusive,
    };
    match slot::lock(&file, how) {
        Ok(()) => Ok(Locked(file)),
        Err(source) => Err(match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => {
                OpenError::InUse(options.path.clone())
            }
            _ => host(options, "lock")(source),
        }),
    }
}

/// A locked file, unlocked when this is dropped. Closing is not enough: io_uring holds a file for some time after its
/// ring is gone, a library may have another descriptor of it, and so has a child of any thread until it executes.
#[derive(Debug)]
pub(super) struct Locked(File);

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Cannot fail for an open file; and if, closing unlocks it, only later.
        let _ = slot::lock(&self.0, Lock::None);
    }
}

/// The format whose mark the file bears.
pub(super) fn probe(file: &File) -> io::Result<Option<Format>> {
    let mut start = [0; PROBE_LEN];
    let len = read_from(file, 0, &mut start)?;
    Ok(Format::of(start.get(..len).unwrap_or_default()))
}

/// Reads the bytes of a file from `start` on, as many as there are.
pub(super) fn read_from(file: &File, start: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = start.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(rest, at)? {
            0 => break,
            count => done = done.saturating_add(count),
        }
    }
    Ok(done)
}

pub(super) fn host(
    options: &DiskOptions,
    what: &'static str,
) -> impl Fn(io::Error) -> OpenError + use<> {
    let path = options.path.clone();
    move |source| OpenError::Host {
        what,
        path: path.clone(),
        source,
    }
}
