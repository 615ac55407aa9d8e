//! Backends of the virtio console that only this process can have: its own terminal, and a new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Stdout};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use rustix::termios::tcgetwinsize;
use tdvmm_devices::serial::SerialSink;
use tdvmm_devices::virtio::console::{ConsoleBackend, ConsoleHandle, Stream};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backend::StreamSink;
use super::output::StandardStream;
use super::terminal::EscapeFilter;
use crate::ending::{Ending, EndingCell};

/// Standard input and output. A reader of the output that falls behind loses some of it.
#[derive(Debug)]
pub struct Terminal {
    output: StreamSink<StandardStream<Stdout>>,
    /// Waits for standard input; `None` where it cannot be waited for, and so gives nothing.
    input: Option<Epoll>,
    /// Standard input is in that set.
    reads: bool,
    /// Standard input has ended.
    ended: bool,
    /// Set when it is a terminal.
    escape: Option<EscapeFilter>,
    endings: Arc<EndingCell>,
}

impl Terminal {
    /// The terminal; Ctrl-A x there goes to `endings`.
    ///
    /// # Errors
    ///
    /// If the host has no descriptor left.
    pub fn new(endings: Arc<EndingCell>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        let stdin = io::stdin();
        let added = epoll.ctl(ControlOperation::Add, stdin.as_raw_fd(), event);
        Ok(Self {
            output: StreamSink::new(StandardStream::of(io::stdout())),
            input: added.is_ok().then_some(epoll),
            reads: true,
            ended: false,
            escape: io::IsTerminal::is_terminal(&stdin).then(EscapeFilter::default),
            endings,
        })
    }

    /// Nothing more is to be read. The epoll descriptor stays, as whoever waits for it still does.
    fn end_input(&mut self) {
        self.want_input(false);
        self.ended = true;
    }

    /// Standard input blocks, and asking it for more than it has would stop all output.
    fn is_readable(&self) -> bool {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let asked = self.input.is_some() && !self.ended;
        asked && poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

impl ConsoleBackend for Terminal {
    fn write(&mut self, bytes: &[u8]) {
        SerialSink::write(&mut self.output, bytes);
    }

    fn source(&self) -> Option<&dyn AsRawFd> {
        self.input.as_ref().map(|epoll| epoll as &dyn AsRawFd)
    }

    fn want_input(&mut self, wanted: bool) {
        if wanted == self.reads || self.ended {
            return;
        }
        self.reads = wanted;
        if let Some(epoll) = &self.input {
            let operation = match wanted {
                true => ControlOperation::Add,
                // Not only nothing to wait for: that the other side has hung up is told all the same.
                false => ControlOperation::Delete,
            };
            let event = EpollEvent::new(EventSet::IN, 0);
            let _ = epoll.ctl(operation, io::stdin().as_raw_fd(), event);
        }
    }

    fn poll(&mut self, space: &mut [u8]) -> usize {
        if space.is_empty() || !self.is_readable() {
            return 0;
        }
        // Not through the library's buffer: what it took beyond `space` would wake nobody.
        let count = match nix::unistd::read(io::stdin(), space) {
            Ok(count) if count > 0 => count,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => return 0,
            _ => {
                self.end_input();
                return 0;
            }
        };
        let Some(filter) = &mut self.escape else {
            return count;
        };
        let mut passed = Vec::with_capacity(count);
        let typed = space.get(..count).unwrap_or_default();
        if filter.feed(typed, &mut passed) {
            self.endings.end(Ending::Operator);
        }
        // The filter only takes bytes away.
        for (to, byte) in space.iter_mut().zip(&passed) {
            *to = *byte;
        }
        passed.len().min(space.len())
    }
}

/// Gives the console the size of this process's terminal, if it has one.
pub fn fit_to_terminal(console: &ConsoleHandle) {
    if let Some((columns, rows)) = size_of(io::stdout()).or_else(|| size_of(io::stdin())) {
        console.resize(columns, rows);
    }
}

/// Columns and rows of a terminal that has any.
fn size_of(terminal: impl AsFd) -> Option<(u16, u16)> {
    let size = tcgetwinsize(terminal).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// A new pseudo-terminal. The signal that tells of a new size goes to whoever is on the other side, so the size is
/// looked at when that one types.
#[derive(Debug)]
pub struct Pty {
    stream: Stream<PtyMaster>,
    /// Open for as long as the console is, so that whoever leaves the other side can come back.
    other_side: File,
}

impl Pty {
    /// Opens one, and gives the name of its other side.
    ///
    /// # Errors
    ///
    /// If the host has none left.
    pub fn open() -> io::Result<(Self, String)> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname_r(&master)?;
        let other_side = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&name)?;
        // The guest echoes what is typed, and knows what Ctrl-C means.
        let mut raw = tcgetattr(&other_side)?;
        cfmakeraw(&mut raw);
        tcsetattr(&other_side, SetArg::TCSANOW, &raw)?;
        let pty = Self {
            stream: Stream::new(master)?,
            other_side,
        };
        Ok((pty, name))
    }
}

impl ConsoleBackend for Pty {
    fn write(&mut self, bytes: &[u8]) {
        self.stream.write(bytes);
    }

    fn source(&self) -> Option<&dyn AsRawFd> {
        self.stream.source()
    }

    fn want_input(&mut self, wanted: bool) {
        self.stream.want_input(wanted);
    }

    fn poll(&mut self, space: &mut [u8]) -> usize {
        self.stream.poll(space)
    }

    fn size(&self) -> Option<(u16, u16)> {
        size_of(&self.other_side)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::termios::{Winsize, tcsetwinsize};

    use super::*;

    #[test]
    fn pseudo_terminal_passes_bytes_as_they_are_both_ways() {
        let (mut pty, name) = Pty::open().unwrap();
        let mut user = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name)
            .unwrap();
        pty.write(b"a\nb");
        let mut seen = [0; 3];
        user.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"a\nb");
        user.write_all(b"\x03\r").unwrap();
        let mut typed = [0; 8];
        assert_eq!(pty.poll(&mut typed), 2);
        assert_eq!(&typed[..2], b"\x03\r");
        assert_eq!(pty.poll(&mut typed), 0);
    }

    #[test]
    fn pseudo_terminal_has_the_size_that_its_user_sets() {
        let (pty, name) = Pty::open().unwrap();
        assert_eq!(pty.size(), None);
        let user = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name)
            .unwrap();
        let size = Winsize {
            ws_row: 50,
            ws_col: 132,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(user, size).unwrap();
        assert_eq!(pty.size(), Some((132, 50)));
    }
}
