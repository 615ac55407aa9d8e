//! Standard output and standard error, written so that a reader who stalls holds up no thread.
//!
//! A terminal that says it is writable may have room for one byte, and a write of more sleeps in the kernel
//! until somebody reads. O_NONBLOCK on the stream itself would reach whoever else has it, the shell first of
//! all; so a terminal is opened once more, and that description is ours alone. A pipe or a socket that is
//! writable takes a piece whole; a file has a position that a second description would not share.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{FileType, fstat, major};

/// A standard stream, without the library's buffer.
#[derive(Debug)]
pub struct StandardStream<S> {
    shared: S,
    /// Our own description of the terminal. Without one, writes may wait for the reader.
    apart: Option<File>,
}

impl<S: AsFd> StandardStream<S> {
    /// Opens the terminal that `shared` is, if it is one and may be opened.
    #[must_use]
    pub fn of(shared: S) -> Self {
        let apart = open_apart(shared.as_fd());
        Self { shared, apart }
    }

    /// One write, of as much as the stream takes.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn write_once(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(self.as_fd(), bytes)?)
    }
}

impl<S: AsFd> AsFd for StandardStream<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.apart {
            Some(file) => file.as_fd(),
            None => self.shared.as_fd(),
        }
    }
}

impl<S: AsFd> Write for StandardStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_once(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Major number of the devices that stand for another: /dev/tty, /dev/console, and /dev/ptmx, which makes a new terminal
/// each time that it is opened. Linux: TTYAUX_MAJOR.
const ALIASES: u32 = 5;

/// Opens the terminal of `fd` once more, not to block. `None` if it is no terminal, or it may not be opened, as when
/// another user owns it.
fn open_apart(fd: BorrowedFd<'_>) -> Option<File> {
    let found = fstat(fd).ok()?;
    let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    if !is_device || major(found.st_rdev) == ALIASES || !fd.is_terminal() {
        return None;
    }
    File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .ok()
}

#[cfg(test)]
mod tests {
    use nix::fcntl::OFlag;
    use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
    use rustix::fs::{OFlags, fcntl_getfl};
    use tdvmm_devices::serial::SerialSink;

    use super::super::backend::StreamSink;
    use super::*;

    /// A terminal that nobody reads, opened as a shell does.
    fn terminal() -> (PtyMaster, File) {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(ptsname_r(&master).unwrap())
            .unwrap();
        (master, terminal)
    }

    #[test]
    fn terminal_that_nobody_reads_holds_up_no_writer_and_blocks_for_others_as_before() {
        let (_master, terminal) = terminal();
        let mut sink = StreamSink::new(StandardStream {
            shared: io::stdout(),
            apart: Some(open_apart(terminal.as_fd()).unwrap()),
        });
        // Each line feed becomes two bytes, so that at the end there may be room that is of no use. A write that
        // blocked would never return.
        for _ in 0..100 {
            SerialSink::write(&mut sink, &[b'\n'; 4096]);
        }
        let flags = fcntl_getfl(&terminal).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn what_is_no_terminal_or_would_become_another_is_not_opened_again() {
        let (master, _terminal) = terminal();
        assert!(open_apart(master.as_fd()).is_none(), "a new terminal");
        let file = tempfile::tempfile().unwrap();
        assert!(open_apart(file.as_fd()).is_none(), "a file");
        let (_reader, writer) = io::pipe().unwrap();
        assert!(open_apart(writer.as_fd()).is_none(), "a pipe");
        let null = File::options().write(true).open("/dev/null").unwrap();
        assert!(open_apart(null.as_fd()).is_none(), "no terminal");
    }
}
