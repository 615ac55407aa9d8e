//! A file of bounded size for a guest that may talk without end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::ConsoleBackend;
use crate::guest_warn;
use crate::serial::SerialSink;

/// Appends to a file; when that is full, it becomes `<name>.1`, in place of the one before, and a new one
/// begins. So there are never more than two times `max_size` bytes.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
    max_size: Option<u64>,
}

impl LogFile {
    /// Opens or creates the file. Without `max_size` (bytes) it grows for ever.
    ///
    /// # Errors
    ///
    /// If the host refuses.
    pub fn open(path: &Path, max_size: Option<u64>) -> io::Result<Self> {
        let file = append_to(path)?;
        Ok(LogFile {
            path: path.to_owned(),
            len: file.metadata()?.len(),
            file,
            max_size,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut former = self.path.clone().into_os_string();
        former.push(".1");
        match fs::rename(&self.path, former) {
            // Nothing is in the way of a new file: an earlier try got no further than to here, or somebody has taken
            // the file away.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = append_to(&self.path)?;
        self.len = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self
                .max_size
                .map_or(u64::MAX, |max| max.saturating_sub(self.len));
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            if room == 0 {
                // What cannot be rotated is full, and the rest is dropped.
                if let Err(error) = self.rotate() {
                    guest_warn!("console file cannot be rotated: {error}");
                    return;
                }
                if self.max_size == Some(0) {
                    return;
                }
                continue;
            }
            let now = rest.get(..room.min(rest.len())).unwrap_or_default();
            // Not `write_all`: what went into the file before an error is there, and counts.
            match self.file.write(now) {
                Ok(0) => return,
                Ok(count) => {
                    self.len = self.len.saturating_add(u64::try_from(count).unwrap_or(0));
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    guest_warn!("console file cannot be written: {error}");
                    return;
                }
            }
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl ConsoleBackend for LogFile {
    fn write(&mut self, bytes: &[u8]) {
        self.append(bytes);
    }
}

/// A serial port may end here too.
impl SerialSink for LogFile {
    fn write(&mut self, bytes: &[u8]) {
        self.append(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_full_is_rotated_and_nothing_is_lost_of_the_last_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut log = LogFile::open(&path, Some(100)).unwrap();
        let all: Vec<u8> = (0..=u8::MAX).cycle().take(10_000).collect();
        for piece in all.chunks(33) {
            log.append(piece);
            assert!(fs::metadata(&path).unwrap().len() <= 100);
        }
        let mut kept = fs::read(dir.path().join("console.1")).unwrap();
        assert_eq!(kept.len(), 100);
        kept.extend(fs::read(&path).unwrap());
        assert!(all.ends_with(&kept));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn file_that_was_there_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        LogFile::open(&path, Some(100)).unwrap().append(&[1; 70]);
        LogFile::open(&path, Some(100)).unwrap().append(&[2; 70]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 40);
    }

    #[test]
    fn file_that_went_halfway_through_a_rotation_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut log = LogFile::open(&path, Some(100)).unwrap();
        log.append(&[1; 100]);
        // As when the new file cannot be opened after this.
        fs::rename(&path, dir.path().join("console.1")).unwrap();
        log.append(&[2; 70]);
        assert_eq!(fs::read(&path).unwrap(), [2; 70]);
        assert_eq!(fs::read(dir.path().join("console.1")).unwrap(), [1; 100]);
    }

    #[test]
    fn size_of_nothing_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        LogFile::open(&path, Some(0)).unwrap().append(&[1; 70]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
