//! Sinks of the serial port.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tdvmm_devices::serial::SerialSink;
use vmm_sys_util::eventfd::EventFd;

/// How long a write waits for a reader that has fallen behind, in milliseconds. After that, bytes are
/// dropped until the reader has caught up.
const PATIENCE: u8 = 100;

/// Wakes the main loop when the guest has read all input, and passes output on.
#[derive(Debug)]
pub struct WithInput<S> {
    /// Takes the output.
    pub sink: S,
    /// Written when the guest has read all input.
    pub drained: EventFd,
}

impl<S: SerialSink> SerialSink for WithInput<S> {
    fn write(&mut self, bytes: &[u8]) {
        self.sink.write(bytes);
    }

    fn input_drained(&mut self) {
        // Fails when it has been written very often and not been read: then it is readable as well.
        let _ = self.drained.write(1);
    }
}

/// What a client of the socket gets to see of the time before it came: the newest so many bytes.
///
/// A unix socket counts as writable while a quarter of its buffer is in use, so this fits at once.
const BACKLOG: usize = 32 << 10;

/// Output to a regular file, which always takes it; what a full disk refuses is lost.
#[derive(Debug)]
pub struct FileSink(pub File);

impl SerialSink for FileSink {
    fn write(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }
}

/// Output to a stream whose reader may stall: standard output, a socket.
#[derive(Debug)]
pub struct StreamSink<W> {
    stream: W,
    /// The reader did not keep up, so nothing waits for it until it does.
    stalled: bool,
}

impl<W: Write + AsFd> StreamSink<W> {
    /// A sink for `stream`.
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            stalled: false,
        }
    }

    fn ready(&mut self) -> bool {
        let timeout = if self.stalled {
            PollTimeout::ZERO
        } else {
            PollTimeout::from(PATIENCE)
        };
        self.stalled = !writable(self.stream.as_fd(), timeout);
        !self.stalled
    }

    /// Writes what can be written without waiting for long. False when the stream is broken.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            if !self.ready() {
                return true;
            }
            match self.stream.write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                // A kick interrupts a write for good: the thread is wanted elsewhere.
                Err(error) => {
                    let kinds = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
                    return kinds.contains(&error.kind());
                }
            }
        }
        let _ = self.stream.flush();
        true
    }
}

impl<W: Write + AsFd + Send> SerialSink for StreamSink<W> {
    fn write(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }
}

fn writable(fd: BorrowedFd<'_>, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    // An error of the stream counts as ready: the write reports it.
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Output to whoever is connected to a socket, and the newest of it to whoever connects next.
#[derive(Clone, Debug, Default)]
pub struct ClientSink(
    /// Leaf lock. It is held while a write waits for the client, at most [`PATIENCE`].
    Arc<Mutex<Clients>>,
);

#[derive(Debug, Default)]
struct Clients {
    client: Option<StreamSink<UnixStream>>,
    backlog: std::collections::VecDeque<u8>,
}

impl ClientSink {
    /// From now on output goes to `client`, starting with what was kept. It must not block.
    pub fn connect(&self, client: UnixStream) {
        let mut clients = self.lock();
        let mut sink = StreamSink::new(client);
        let kept: Vec<u8> = clients.backlog.drain(..).collect();
        clients.client = sink.put(&kept).then_some(sink);
    }

    /// The client has gone; output is kept again.
    pub fn disconnect(&self) {
        self.lock().client = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Clients> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SerialSink for ClientSink {
    fn write(&mut self, bytes: &[u8]) {
        let mut clients = self.lock();
        if let Some(client) = &mut clients.client {
            if client.put(bytes) {
                return;
            }
            clients.client = None;
        }
        clients.backlog.extend(bytes);
        let excess = clients.backlog.len().saturating_sub(BACKLOG);
        clients.backlog.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn client_gets_the_newest_output_from_before_it_came() {
        let mut sink = ClientSink::default();
        sink.write(&vec![b'a'; BACKLOG]);
        sink.write(b"end");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        sink.connect(ours);
        sink.write(b"!");
        sink.disconnect();
        let mut seen = Vec::new();
        theirs.read_to_end(&mut seen).unwrap();
        assert_eq!(seen.len(), BACKLOG + 1);
        assert!(seen.ends_with(b"aend!"));
    }

    #[test]
    fn reader_that_never_reads_costs_one_wait_and_no_memory() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut sink = StreamSink::new(ours);
        let start = std::time::Instant::now();
        for _ in 0..10_000 {
            SerialSink::write(&mut sink, &[0; 256]);
        }
        assert!(sink.stalled);
        // Without the limit this would take 10,000 waits.
        assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }
}
