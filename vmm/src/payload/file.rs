//! Files that the operator names: opened without waiting for anybody, and read no further than they may be long.
//!
//! A FIFO would have the program wait for a writer, and a device such as `/dev/zero` has no end. Both are refused by
//! what the open file is, so that nobody can put another one under its name in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::PayloadError;

/// How long a file may be.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// What is said of a longer one.
    pub beyond: &'static str,
}

/// Opens a regular file and gives its length.
///
/// # Errors
///
/// If it cannot be opened or is something else.
pub fn open(option: &'static str, path: &Path) -> Result<(File, u64), PayloadError> {
    let read_error = read_error(option, path);
    let file = OpenOptions::new()
        .read(true)
        // A FIFO without this waits for its other end, and a terminal becomes ours (open(2)).
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(unusable(option, path, "is no regular file"));
    }
    Ok((file, metadata.len()))
}

/// Reads a whole regular file.
///
/// # Errors
///
/// If it cannot be read, is something else or is longer than `limit`.
pub fn read(option: &'static str, path: &Path, limit: Limit) -> Result<Vec<u8>, PayloadError> {
    let (file, len) = open(option, path)?;
    let too_long = || unusable(option, path, limit.beyond);
    if len > limit.bytes {
        return Err(too_long());
    }
    let read_error = read_error(option, path);
    let no_memory = |_| read_error(io::ErrorKind::OutOfMemory.into());
    let mut bytes = Vec::new();
    // What grows while it is read comes to no more than one byte above the limit.
    bytes
        .try_reserve_exact(usize::try_from(len).unwrap_or(usize::MAX))
        .map_err(no_memory)?;
    file.take(limit.bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 > limit.bytes {
        return Err(too_long());
    }
    Ok(bytes)
}

fn read_error(option: &'static str, path: &Path) -> impl Fn(io::Error) -> PayloadError + Copy {
    move |source| PayloadError::Read {
        option,
        path: path.to_owned(),
        source,
    }
}

fn unusable(option: &'static str, path: &Path, problem: &'static str) -> PayloadError {
    PayloadError::Unusable {
        option,
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    const LIMIT: Limit = Limit {
        bytes: 16,
        beyond: "is too long",
    };

    fn refusal(path: &Path) -> String {
        let path = path.to_owned();
        let (told, refused) = mpsc::channel();
        // Where it waits for ever, the test must not.
        thread::spawn(move || told.send(read("--firmware", &path, LIMIT).map(|bytes| bytes.len())));
        let refused = refused.recv_timeout(Duration::from_secs(60));
        refused.expect("it waits").unwrap_err().to_string()
    }

    #[test]
    fn fifo_without_a_writer_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(refusal(&fifo).ends_with("fifo: is no regular file"));
    }

    #[test]
    fn devices_and_folders_are_no_files() {
        for path in ["/dev/zero", "/dev/null", "/"] {
            let said = refusal(Path::new(path));
            assert_eq!(said, format!("--firmware {path}: is no regular file"));
        }
    }

    #[test]
    fn file_is_read_up_to_the_limit_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, [7; 16]).unwrap();
        assert_eq!(read("--firmware", &file, LIMIT).unwrap(), [7; 16]);
        fs::write(&file, [7; 17]).unwrap();
        assert!(refusal(&file).ends_with("file: is too long"));
        // A length beyond all memory is no reason to ask for it.
        File::create(&file).unwrap().set_len(1 << 40).unwrap();
        assert!(refusal(&file).ends_with("file: is too long"));
    }

    #[test]
    fn file_that_is_longer_than_it_says_is_read_no_further_than_the_limit() {
        // Files of proc say that they have no bytes.
        let said = refusal(Path::new("/proc/version"));
        assert_eq!(said, "--firmware /proc/version: is too long");
    }
}
