//! Sinks of the serial port.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tdvmm_devices::serial::SerialSink;
use vmm_sys_util::eventfd::EventFd;

/// How long a write waits for a reader that has fallen behind, beside what its bytes take at [`PACE`]. After that, bytes
/// are dropped until the reader has caught up. A serial line counts as writable when its driver's buffer is nearly empty,
/// after 330 ms with 115200 baud.
const PATIENCE: Duration = Duration::from_millis(400);

/// The bytes per millisecond of the slowest reader that loses nothing; a serial line of 115200 baud has somewhat more.
const PACE: usize = 10;

/// How long a reader is left alone whose stream counts as writable and does not take a byte. In milliseconds.
const PAUSE: u8 = 2;

/// Wakes the main loop when the guest has read all input, and passes output on.
#[derive(Debug)]
pub struct WithInput<S> {
    /// Takes the output.
    pub sink: S,
    /// Written when the guest has read all input.
    pub drained: Arc<EventFd>,
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

/// Output to a stream whose reader may stall: standard output, a socket. The stream should not block; if it does, the
/// reader holds up whoever writes.
#[derive(Debug)]
pub struct StreamSink<W> {
    stream: W,
    /// The reader did not keep up, so nothing waits for it until a write passes whole.
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

    /// Writes what can be written without waiting for long. False when the stream is broken.
    fn put(&mut self, bytes: &[u8]) -> bool {
        // Of the whole call: who takes a byte now and then would otherwise hold it up for ever.
        let deadline = (!self.stalled).then(|| Instant::now() + patience(bytes.len()));
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = deadline.map_or(Duration::ZERO, |end| {
                end.saturating_duration_since(Instant::now())
            });
            if !writable(self.stream.as_fd(), left) {
                self.stalled = true;
                return true;
            }
            match self.stream.write(rest) {
                Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
                // A kick interrupts a write for good: the thread is wanted elsewhere.
                Err(error) if error.kind() == ErrorKind::Interrupted => return true,
                Err(error) if error.kind() != ErrorKind::WouldBlock => return false,
                // A terminal with room for one byte is writable, and takes no line feed that it makes two bytes of.
                _ if left.is_zero() => {
                    self.stalled = true;
                    return true;
                }
                _ => {
                    let _ = poll(&mut [], PAUSE);
                }
            }
        }
        self.stalled = false;
        true
    }
}

impl<W: Write + AsFd + Send> SerialSink for StreamSink<W> {
    fn write(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }
}

fn patience(bytes: usize) -> Duration {
    let paced = u64::try_from(bytes / PACE).unwrap_or(u64::MAX);
    PATIENCE.saturating_add(Duration::from_millis(paced))
}

fn writable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    // An error of the stream counts as ready: the write reports it.
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Output to whoever is connected to a socket, and the newest of it to whoever connects next.
#[derive(Clone, Debug, Default)]
pub struct ClientSink(
    /// Leaf lock. It is held while a write waits for the client, no longer than [`patience`] says.
    Arc<Mutex<Clients>>,
);

#[derive(Debug, Default)]
struct Clients {
    client: Option<StreamSink<UnixStream>>,
    backlog: std::collections::VecDeque<u8>,
}

impl ClientSink {
    /// From now on output goes to `client`, starting with what was kept. It must not block. One who is gone again, as
    /// who only looks whether somebody listens, takes nothing of that away.
    pub fn connect(&self, client: UnixStream) {
        let mut clients = self.lock();
        let mut sink = StreamSink::new(client);
        let kept: Vec<u8> = clients.backlog.iter().copied().collect();
        clients.client = sink.put(&kept).then_some(sink);
        if clients.client.is_some() {
            clients.backlog.clear();
        }
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
    use std::io::{self, Read};

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
    fn client_that_is_gone_takes_no_kept_output_away() {
        let mut sink = ClientSink::default();
        sink.write(b"kept");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        sink.connect(ours);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        sink.connect(ours);
        sink.disconnect();
        let mut seen = Vec::new();
        theirs.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"kept");
    }

    #[test]
    fn stalled_reader_is_not_waited_for_until_a_write_passes_whole() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut sink = StreamSink::new(ours);
        while !sink.stalled {
            SerialSink::write(&mut sink, &[0; 256]);
        }
        let start = Instant::now();
        let mut taken = vec![0; 1 << 20];
        for _ in 0..50 {
            while theirs.read(&mut taken).is_ok() {}
            // More than a socket holds. Were it waited for, this one write would take 100 s.
            SerialSink::write(&mut sink, &[0; 1 << 20]);
            assert!(sink.stalled);
        }
        assert!(start.elapsed() < Duration::from_secs(50));
        while theirs.read(&mut taken).is_ok() {}
        SerialSink::write(&mut sink, &[0; 256]);
        assert!(!sink.stalled);
    }

    /// Counts as writable, and takes one byte in a hundred times that it is asked.
    struct Sipping {
        stream: UnixStream,
        asked: u32,
    }

    impl AsFd for Sipping {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.stream.as_fd()
        }
    }

    impl Write for Sipping {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.asked += 1;
            match self.asked % 100 {
                1 => Ok(1),
                _ => Err(ErrorKind::WouldBlock.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn reader_that_sips_holds_one_write_up_no_longer_than_allowed() {
        let (stream, _theirs) = UnixStream::pair().unwrap();
        let mut sink = StreamSink::new(Sipping { stream, asked: 0 });
        let start = Instant::now();
        // At 200 ms for each byte this would take more than three minutes.
        assert!(sink.put(&[0; 1000]));
        assert!(sink.stalled);
        assert!(start.elapsed() < Duration::from_secs(60));
        let asked = sink.stream.asked;
        assert!(sink.put(&[0; 1000]));
        assert!(sink.stream.asked <= asked + 2, "it is not waited for again");
    }

    #[test]
    fn reader_that_never_reads_costs_one_wait_and_no_memory() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut sink = StreamSink::new(ours);
        let start = Instant::now();
        for _ in 0..10_000 {
            SerialSink::write(&mut sink, &[0; 256]);
        }
        assert!(sink.stalled);
        // Without the limit this would take 10,000 waits.
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
