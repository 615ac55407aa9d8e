//! An initramfs archive: cpio, format "newc" (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Parent folders are added by themselves, every file belongs to root and has no time, so the same
//! content gives the same bytes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in the making.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

impl Archive {
    /// An archive with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty folder with mode 0755.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        self.insert(path, DIRECTORY | 0o755, Vec::new())
    }

    /// Adds a file; `mode` are its permission bits.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.insert(path, FILE | mode, content.into())
    }

    /// Adds a copy of a file of this machine.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<&mut Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(self.file(path, mode, content))
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.insert(path, SYMLINK | 0o777, target.as_bytes().to_vec())
    }

    /// Adds a character device, for instance `/dev/console`.
    pub fn character_device(&mut self, path: &str, mode: u32, device: (u32, u32)) -> &mut Self {
        self.insert(path, CHARACTER_DEVICE | mode, Vec::new());
        if let Some(entry) = self.entries.get_mut(path.trim_start_matches('/')) {
            entry.device = device;
        }
        self
    }

    /// Puts folders, files and links into a folder, as the kernel would; devices are left out.
    pub fn unpack(&self, dir: &Path) -> Result<()> {
        for (path, entry) in &self.entries {
            let to = dir.join(path);
            let context = || format!("cannot make {}", to.display());
            match entry.mode & 0o170_000 {
                DIRECTORY => fs::create_dir_all(&to).with_context(context)?,
                FILE => {
                    fs::write(&to, &entry.content).with_context(context)?;
                    let mode = Permissions::from_mode(entry.mode & 0o7777);
                    fs::set_permissions(&to, mode).with_context(context)?;
                }
                SYMLINK => {
                    let target = OsStr::from_bytes(&entry.content);
                    symlink(target, &to).with_context(context)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        let path = path.trim_matches('/').to_owned();
        for (end, _) in path.match_indices('/') {
            let parent = path[..end].to_owned();
            self.entries.entry(parent).or_insert_with(|| Entry {
                mode: DIRECTORY | 0o755,
                device: (0, 0),
                content: Vec::new(),
            });
        }
        self.entries.insert(
            path,
            Entry {
                mode,
                device: (0, 0),
                content,
            },
        );
        self
    }

    /// The archive's bytes, a multiple of 512.
    pub fn to_bytes(&self) -> Vec<u8> {
        let size: usize = self.entries.values().map(|e| e.content.len() + 256).sum();
        let mut out = Vec::with_capacity(size);
        for (number, (path, entry)) in self.entries.iter().enumerate() {
            // Sorted by path, so a folder always comes before what is in it.
            append(&mut out, number + 1, path, entry);
        }
        let end = Entry {
            mode: 0,
            device: (0, 0),
            content: Vec::new(),
        };
        append(&mut out, 0, "TRAILER!!!", &end);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

fn append(out: &mut Vec<u8>, inode: usize, path: &str, entry: &Entry) {
    let links = if entry.mode & DIRECTORY == DIRECTORY {
        2
    } else {
        1
    };
    let (major, minor) = entry.device;
    let header = format!(
        "070701{inode:08x}{mode:08x}{uid:08x}{gid:08x}{links:08x}{time:08x}{size:08x}\
         {zero:08x}{zero:08x}{major:08x}{minor:08x}{name_size:08x}{zero:08x}",
        mode = entry.mode,
        uid = 0,
        gid = 0,
        time = 0,
        size = entry.content.len(),
        zero = 0,
        name_size = path.len() + 1,
    );
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&entry.content);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_has_headers_of_110_bytes_and_padded_parts() {
        let bytes = Archive::new().file("a/b", 0o644, "xyz").to_bytes();
        assert_eq!(bytes.len() % 512, 0);
        // Folder: header 110, name "a\0", to 112. File: header 110, name "a/b\0", to 116; content.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..118], b"070701");
        assert_eq!(&bytes[112 + 14..112 + 22], b"000081a4");
        assert_eq!(&bytes[112 + 110..112 + 114], b"a/b\0");
        assert_eq!(&bytes[228..231], b"xyz");
        assert_eq!(&bytes[232..238], b"070701");
    }

    #[test]
    fn parent_folder_is_added_once_and_before_its_files() {
        let mut archive = Archive::new();
        archive
            .file("/d/one", 0o755, "1")
            .file("/d/two", 0o755, "2")
            .symlink("/l", "d/one");
        let names: Vec<_> = archive.entries.keys().cloned().collect();
        assert_eq!(names, ["d", "d/one", "d/two", "l"]);
    }
}
