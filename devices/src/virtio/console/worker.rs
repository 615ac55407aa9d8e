//! The running half of a console: both queues, and the backend that they lead to.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Console, ConsoleBackend, Shared, SharedBackend, lock};
use crate::guest_warn;
use crate::virtio::chain::Chain;
use crate::virtio::device::{Interrupt, Source, Token, Worker};
use crate::virtio::queue::QueueFault;
use crate::virtio::served::{Served, ServedQueue, Server};

const INPUT_KICK: Token = Token(0);
pub(super) const OUTPUT_KICK: Token = Token(1);
const BACKEND: Token = Token(2);
const RESIZED: Token = Token(3);

/// Bytes that are read or written at once.
pub(super) const PIECE: usize = 4096;
/// How long output is passed on before the thread sees to input, the escape key in it, and its messages: a backend may
/// wait for a slow reader at each piece.
pub(super) const TURN: Duration = Duration::from_millis(100);
/// Bytes that are taken from one chain; a driver sends a page, and what is more is dropped.
const MAX_OUTPUT: u32 = 1 << 20;

/// What is readable when the source of `backend` is, which itself is behind a lock.
fn wait_for(backend: &mut dyn ConsoleBackend) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    // A former driver may have had buffers; this one has not shown any yet.
    backend.want_input(false);
    if let Some(source) = backend.source() {
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)?;
    }
    Ok(epoll)
}

pub(super) struct ConsoleWorker {
    input: ServedQueue,
    output: ServedQueue,
    reader: Reader,
    writer: Writer,
    backend_ready: Epoll,
    shared: Arc<Shared>,
    interrupt: Arc<dyn Interrupt>,
}

impl ConsoleWorker {
    pub fn new(
        input: ServedQueue,
        output: ServedQueue,
        console: &Console,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        Ok(ConsoleWorker {
            reader: Reader {
                backend: Arc::clone(&console.backend),
                chain: input.queue.new_chain(),
                bytes: Box::new([0; PIECE]),
                served: false,
            },
            writer: Writer {
                backend: Arc::clone(&console.backend),
                chain: output.queue.new_chain(),
                bytes: Box::new([0; PIECE]),
                at: 0,
                turn: Turn::default(),
            },
            input,
            output,
            backend_ready: wait_for(&mut **lock(&console.backend))?,
            shared: Arc::clone(&console.shared),
            interrupt,
        })
    }

    /// One look at the backend: pending output leaves, newcomers are met, and one buffer is filled.
    fn poll_backend(&mut self) -> Result<(), QueueFault> {
        self.reader.served = false;
        self.input.serve(&mut self.reader)?;
        let mut backend = lock(&self.reader.backend);
        // Not served means that the driver has offered nothing: input would wake the thread over and over.
        backend.want_input(self.reader.served);
        if !self.reader.served {
            backend.poll(&mut []);
        }
        if let Some((columns, rows)) = backend.size() {
            self.shared.resize(columns, rows);
        }
        Ok(())
    }
}

impl Worker for ConsoleWorker {
    fn event_sources(&self) -> Vec<(Token, &dyn AsRawFd)> {
        vec![
            (INPUT_KICK, self.input.kick_source()),
            (OUTPUT_KICK, self.output.kick_source()),
            (BACKEND, &self.backend_ready),
            (RESIZED, &self.shared.resized),
        ]
    }

    fn on_event(&mut self, token: Token) -> Result<(), QueueFault> {
        match token {
            INPUT_KICK => {
                self.input.take_kick();
                self.poll_backend()
            }
            BACKEND => self.poll_backend(),
            OUTPUT_KICK => {
                self.output.take_kick();
                self.writer.turn = Turn::default();
                self.output.serve(&mut self.writer)?;
                if self.writer.turn.cut_short {
                    self.output.come_back();
                }
                Ok(())
            }
            RESIZED => {
                let _ = self.shared.resized.read();
                if let Err(error) = self.interrupt.trigger(Source::Config) {
                    guest_warn!("console: the driver is not told of the new size: {error}");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

struct Reader {
    backend: SharedBackend,
    chain: Chain,
    bytes: Box<[u8; PIECE]>,
    /// A buffer was there.
    served: bool,
}

impl Server for Reader {
    fn chain(&mut self) -> &mut Chain {
        &mut self.chain
    }

    fn serve(&mut self) -> Result<Served, QueueFault> {
        self.served = true;
        let room = usize::try_from(self.chain.writable_len()).unwrap_or(PIECE);
        let space = self.bytes.get_mut(..room.min(PIECE)).unwrap_or_default();
        if space.is_empty() {
            return Err(QueueFault::Request("no room for input"));
        }
        let count = lock(&self.backend).poll(space);
        if count == 0 {
            return Ok(Served::NotNow);
        }
        let bytes = space.get(..count).unwrap_or_default();
        let done = self.chain.write_at(0, bytes);
        Ok(Served::Done(u32::try_from(done).unwrap_or(0)))
    }
}

struct Writer {
    backend: SharedBackend,
    chain: Chain,
    bytes: Box<[u8; PIECE]>,
    /// Bytes of the chain at hand that went to the backend in earlier turns.
    at: u32,
    turn: Turn,
}

#[derive(Default)]
struct Turn {
    /// When its first piece was at the backend.
    began: Option<Instant>,
    /// It was over before the queue was empty.
    cut_short: bool,
}

impl Turn {
    /// Whether no more is to be passed on; one piece is in every turn.
    fn is_over(&mut self) -> bool {
        self.cut_short = self.began.is_some_and(|began| began.elapsed() >= TURN);
        self.cut_short
    }
}

impl Server for Writer {
    fn chain(&mut self) -> &mut Chain {
        &mut self.chain
    }

    fn serve(&mut self) -> Result<Served, QueueFault> {
        let mut backend = lock(&self.backend);
        while self.at < MAX_OUTPUT {
            if self.turn.is_over() {
                return Ok(Served::NotNow);
            }
            // Where the driver has changed the chain since the turn before, this is of the chain that is there now.
            let count = self.chain.read_at(self.at, &mut *self.bytes);
            let piece = self.bytes.get(..count).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            self.turn.began.get_or_insert_with(Instant::now);
            backend.write(piece);
            let count = u32::try_from(count).unwrap_or(MAX_OUTPUT);
            self.at = self.at.saturating_add(count);
        }
        self.at = 0;
        Ok(Served::Done(0))
    }
}
