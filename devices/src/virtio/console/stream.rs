//! Terminals, pipes and sockets as console backends.
//!
//! Nothing here blocks if the descriptors do not: what a reader does not take is kept up to a bound and
//! then dropped, oldest first, so that someone who comes late sees the latest output.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::ConsoleBackend;
use crate::guest_warn;

/// Output that waits for a slow reader.
const MAX_PENDING: usize = 64 << 10;

/// Peers that are tried at once where one after the other has gone again. If one is left, the listener says so.
const NEWCOMERS: usize = 16;

/// Bytes that could not be written yet.
#[derive(Debug, Default)]
struct Pending(VecDeque<u8>);

impl Pending {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = bytes
            .get(bytes.len().saturating_sub(MAX_PENDING)..)
            .unwrap_or_default();
        let over = self
            .0
            .len()
            .saturating_add(bytes.len())
            .saturating_sub(MAX_PENDING);
        self.0.drain(..over.min(self.0.len()));
        self.0.extend(bytes);
    }

    /// Writes what `out` takes.
    fn flush(&mut self, out: &mut impl Write) -> io::Result<()> {
        loop {
            let (first, _) = self.0.as_slices();
            if first.is_empty() {
                return Ok(());
            }
            match out.write(first) {
                Ok(0) => return Ok(()),
                Ok(count) => drop(self.0.drain(..count.min(self.0.len()))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn add_readable(epoll: &Epoll, source: &impl AsRawFd) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)
}

/// Fails where it is not in the set, which is what is wanted.
fn remove(epoll: &Epoll, source: &impl AsRawFd) {
    let event = EpollEvent::default();
    let _ = epoll.ctl(ControlOperation::Delete, source.as_raw_fd(), event);
}

/// A terminal, a pseudo-terminal or a connected socket: one descriptor for both directions.
#[derive(Debug)]
pub struct Stream<T> {
    stream: T,
    epoll: Epoll,
    pending: Pending,
    /// Input is wanted.
    reads: bool,
    /// What the epoll set waits for; the stream is not in it when that is nothing.
    watched: EventSet,
    ended: bool,
}

impl<T: Read + Write + AsRawFd + Send> Stream<T> {
    /// A console on `stream`, which should not block (O_NONBLOCK); if it does, so does the console.
    ///
    /// # Errors
    ///
    /// If the stream cannot be waited for, as a regular file.
    pub fn new(stream: T) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        add_readable(&epoll, &stream)?;
        Ok(Stream {
            stream,
            epoll,
            pending: Pending::default(),
            reads: true,
            watched: EventSet::IN,
            ended: false,
        })
    }

    fn flush(&mut self) {
        if self.ended {
            return;
        }
        if self.pending.flush(&mut self.stream).is_err() {
            return self.end();
        }
        self.watch();
    }

    /// Has the epoll set wait for what there is to wait for. Where that is nothing, the stream leaves the set: that the
    /// other side is gone is told whatever is waited for, and over and over.
    fn watch(&mut self) {
        let mut events = EventSet::empty();
        events.set(EventSet::IN, self.reads);
        events.set(EventSet::OUT, !self.pending.0.is_empty());
        if self.ended || events == self.watched {
            return;
        }
        let operation = match (self.watched.is_empty(), events.is_empty()) {
            (true, _) => ControlOperation::Add,
            (_, true) => ControlOperation::Delete,
            _ => ControlOperation::Modify,
        };
        let event = EpollEvent::new(events, 0);
        match self.epoll.ctl(operation, self.stream.as_raw_fd(), event) {
            Ok(()) => self.watched = events,
            Err(_) => self.end(),
        }
    }

    /// The other side is gone: nothing is waited for any more.
    fn end(&mut self) {
        self.ended = true;
        self.pending.0.clear();
        remove(&self.epoll, &self.stream);
    }
}

impl<T: Read + Write + AsRawFd + Send> ConsoleBackend for Stream<T> {
    fn write(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.pending.push(bytes);
            self.flush();
        }
    }

    fn source(&self) -> Option<&dyn AsRawFd> {
        Some(&self.epoll)
    }

    fn want_input(&mut self, wanted: bool) {
        self.reads = wanted;
        self.watch();
    }

    fn poll(&mut self, space: &mut [u8]) -> usize {
        self.flush();
        if self.ended || space.is_empty() {
            return 0;
        }
        match self.stream.read(space) {
            Ok(count) if count > 0 => count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                0
            }
            // End of file or an error.
            _ => {
                self.end();
                0
            }
        }
    }
}

/// A Unix socket that takes one connection at a time, and another when that has ended. Output that
/// nobody reads is kept up to a bound.
#[derive(Debug)]
pub struct SocketServer {
    listener: UnixListener,
    epoll: Epoll,
    peer: Option<Stream<UnixStream>>,
    kept: Pending,
    /// Input is wanted.
    reads: bool,
}

impl SocketServer {
    /// A console on `listener`.
    ///
    /// # Errors
    ///
    /// If the host refuses.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        add_readable(&epoll, &listener)?;
        Ok(SocketServer {
            listener,
            epoll,
            peer: None,
            kept: Pending::default(),
            reads: true,
        })
    }

    /// Forgets a peer that has gone, and takes the next one.
    fn meet(&mut self) {
        if self.peer.as_ref().is_some_and(|peer| peer.ended)
            && let Some(gone) = self.peer.take()
        {
            remove(&self.epoll, &gone.epoll);
            let _ = add_readable(&self.epoll, &self.listener);
        }
        for _ in 0..NEWCOMERS {
            if self.peer.is_some() {
                return;
            }
            match self.listener.accept() {
                // Another may be behind one who cannot be served.
                Ok((stream, _)) => drop(self.welcome(stream)),
                // Nobody is there, or has gone already.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock
                            | ErrorKind::Interrupted
                            | ErrorKind::ConnectionAborted
                    ) =>
                {
                    return;
                }
                // For want of files, say. The guest's next output tries again, the listener would do so without end.
                Err(error) => {
                    guest_warn!("console: nobody can be let in: {error}");
                    remove(&self.epoll, &self.listener);
                    return;
                }
            }
        }
    }

    /// Takes a newcomer, who first gets what was kept. One who is gone again, as who only looks whether somebody
    /// listens, takes nothing of it away.
    fn welcome(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut peer = Stream::new(stream)?;
        let (first, second) = self.kept.0.as_slices();
        peer.write(first);
        peer.write(second);
        peer.want_input(self.reads);
        if peer.ended {
            return Ok(());
        }
        add_readable(&self.epoll, &peer.epoll)?;
        // Who comes in between waits in the backlog, and must not keep the thread awake.
        remove(&self.epoll, &self.listener);
        self.kept.0.clear();
        self.peer = Some(peer);
        Ok(())
    }
}

impl ConsoleBackend for SocketServer {
    fn write(&mut self, bytes: &[u8]) {
        self.meet();
        if let Some(peer) = &mut self.peer {
            peer.write(bytes);
        }
        if self.peer.as_ref().is_none_or(|peer| peer.ended) {
            self.kept.push(bytes);
            // This may be the last output: nothing but the listener would tell that somebody comes.
            self.meet();
        }
    }

    fn source(&self) -> Option<&dyn AsRawFd> {
        Some(&self.epoll)
    }

    fn want_input(&mut self, wanted: bool) {
        self.reads = wanted;
        if let Some(peer) = &mut self.peer {
            peer.want_input(wanted);
        }
    }

    fn poll(&mut self, space: &mut [u8]) -> usize {
        self.meet();
        let count = self.peer.as_mut().map_or(0, |peer| peer.poll(space));
        self.meet();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server, and what connects to it.
    fn server() -> (SocketServer, impl Fn() -> UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let server = SocketServer::new(UnixListener::bind(&path).unwrap()).unwrap();
        let connect = move || {
            let _ = &dir;
            UnixStream::connect(&path).unwrap()
        };
        (server, connect)
    }

    /// Whether the thread of the console would be woken.
    fn is_ready(epoll: &Epoll) -> bool {
        let mut events = [EpollEvent::default()];
        epoll.wait(0, &mut events).unwrap() > 0
    }

    fn hear(peer: &mut UnixStream, len: usize) -> Vec<u8> {
        let mut heard = vec![0; len];
        peer.read_exact(&mut heard).unwrap();
        heard
    }

    #[test]
    fn peer_of_whom_nothing_is_wanted_wakes_nobody_though_it_is_gone() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(ours).unwrap();
        peer.write_all(b"input").unwrap();
        stream.want_input(false);
        assert!(!is_ready(&stream.epoll));
        drop(peer);
        assert!(!is_ready(&stream.epoll));
        stream.want_input(true);
        assert!(is_ready(&stream.epoll));
        let mut space = [0; 8];
        assert_eq!(stream.poll(&mut space), 5);
        assert_eq!((stream.poll(&mut space), stream.ended), (0, true));
    }

    #[test]
    fn newcomer_after_the_last_output_is_noticed_and_gets_what_the_one_before_missed() {
        let (mut server, connect) = server();
        let first = connect();
        server.write(b"first");
        drop(first);
        server.write(b"last");
        let mut second = connect();
        assert!(is_ready(&server.epoll));
        server.poll(&mut []);
        assert_eq!(hear(&mut second, 4), b"last");
    }

    #[test]
    fn who_only_looks_whether_somebody_listens_takes_no_output_away() {
        let (mut server, connect) = server();
        server.write(b"kept");
        for _ in 0..2 {
            drop(connect());
        }
        let mut third = connect();
        server.poll(&mut []);
        assert_eq!(hear(&mut third, 4), b"kept");
    }
}
