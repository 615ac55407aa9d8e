//! The files of a qcow2 image: itself, and the images that it is based on.
//!
//! An image names the file below it, by any path on the host, and a guest that once had it as a raw disk may have
//! written that name. So such files are opened only where the configuration says that the guest may read them,
//! each with a line in the log; all are opened, checked and locked by us, and the library gets open files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::header::Header;
use super::open::{self, DiskOptions, Locked, OpenError};
use super::refcounts;
use crate::guest_log;

/// How many images may lie below each other.
const MAX_LAYERS: usize = 32;

/// An image with all that it is based on.
#[derive(Debug)]
pub(super) struct Layers {
    pub image: FormatAccess<Storage>,
    /// Of all layers, to be dropped after the image.
    pub locks: Vec<Locked>,
    /// Bytes of a cluster of the image itself.
    pub cluster: u32,
}

impl Layers {
    /// Opens and locks an image and all that it is based on.
    pub fn open(options: &DiskOptions) -> Result<Self, OpenError> {
        let mut locks = Vec::new();
        let (image, cluster) = open_qcow2(options, &mut locks)?;
        Ok(Layers {
            image,
            locks,
            cluster,
        })
    }
}

/// Opens one image. `locks` has the files of those above it, and gets its own.
fn open_qcow2(
    options: &DiskOptions,
    locks: &mut Vec<Locked>,
) -> Result<(FormatAccess<Storage>, u32), OpenError> {
    let failed = |source| OpenError::Qcow2 {
        path: options.path.clone(),
        source,
    };
    let file = open_locked(options, locks)?;
    let header = Header::read(&file).map_err(failed)?;
    if !options.read_only {
        refcounts::check(&header, &file, &options.path).map_err(failed)?;
    }
    // Without these two the library would look for them itself.
    let builder = Qcow2::<Storage>::builder(storage(file, options)?)
        .write(!options.read_only)
        .backing(None)
        .data_file(None);
    let mut image = builder
        .open(DenyImplicitOpenGate::default())
        .map_err(failed)?;
    if image.requires_external_data_file() {
        return Err(failed(io::Error::other(
            "its data are in another file, which is not served: `qemu-img convert -O qcow2` makes one file",
        )));
    }
    if let Some(name) = image.implicit_backing_file().cloned() {
        let format = image.implicit_backing_format().cloned();
        let backing = open_backing(options, &header, name, format, locks)?;
        image.set_backing(Some(backing));
    }
    Ok((FormatAccess::new(image), header.cluster()))
}

/// Opens the file that the image of `above` names as the one below it.
fn open_backing(
    above: &DiskOptions,
    header: &Header,
    name: String,
    format: Option<String>,
    locks: &mut Vec<Locked>,
) -> Result<FormatAccess<Storage>, OpenError> {
    let path = above.path.clone();
    if !above.backing_files {
        let backing = name;
        return Err(OpenError::BackingRefused { path, backing });
    }
    let Some(format) = format else {
        let remedy = match header.version {
            // The library reads no header extensions of version 2, where the format is.
            2 => format!(
                "its version has no place for that, so give it another with `qemu-img amend -o compat=1.1 {path:?}`"
            ),
            _ => format!(
                "record it with `qemu-img rebase -u -b {name:?} -F raw {path:?}`, or -F qcow2"
            ),
        };
        let backing = name;
        return Err(OpenError::BackingFormat {
            path,
            backing,
            remedy,
        });
    };
    let below = DiskOptions {
        path: beside(&path, &name),
        read_only: true,
        ..above.clone()
    };
    // Also for those who ask for no more than warnings: only the image says which files these are.
    guest_log::warn(
        module_path!(),
        0,
        format_args!(
            "disk {path:?}: opening its backing file {:?} as {format:?}",
            below.path
        ),
    );
    open_below(&below, &format, locks).map_err(|source| OpenError::Backing {
        path,
        backing: name,
        source: Box::new(source),
    })
}

fn open_below(
    options: &DiskOptions,
    format: &str,
    locks: &mut Vec<Locked>,
) -> Result<FormatAccess<Storage>, OpenError> {
    let failed = |source| OpenError::Qcow2 {
        path: options.path.clone(),
        source,
    };
    if locks.len() >= MAX_LAYERS {
        let problem = format!("more than {MAX_LAYERS} images below each other");
        return Err(failed(io::Error::other(problem)));
    }
    match format {
        "qcow2" => Ok(open_qcow2(options, locks)?.0),
        "raw" => {
            let file = open_locked(options, locks)?;
            let builder = Raw::<Storage>::builder(storage(file, options)?);
            let raw = builder.open(DenyImplicitOpenGate::default());
            Ok(FormatAccess::new(raw.map_err(failed)?))
        }
        other => Err(failed(io::Error::other(format!(
            "format {other:?} is not served in a backing file: convert it to qcow2 or raw"
        )))),
    }
}

/// Opens and locks a file; the lock is the last of `locks` then.
fn open_locked(options: &DiskOptions, locks: &mut Vec<Locked>) -> Result<File, OpenError> {
    let file = open::open(options)?;
    let ours = file.try_clone().map_err(open::host(options, "keep"))?;
    locks.push(open::lock(ours, options)?);
    Ok(file)
}

/// The file as the library takes it.
fn storage(file: File, options: &DiskOptions) -> Result<Storage, OpenError> {
    let how = StorageOpenOptions::new()
        .filename(&options.path)
        .write(!options.read_only)
        .direct(options.direct);
    let file = match options.direct {
        true => open::again_direct(&file, options)?,
        false => file,
    };
    Storage::from_open_file(file, how).map_err(open::host(options, "use"))
}

/// Names in an image are relative to where it is.
fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}
