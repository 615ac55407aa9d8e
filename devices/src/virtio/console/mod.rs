//! A console (virtio 1.3, 5.3) of one port, hvc0 in Linux: output to a [`ConsoleBackend`], input from it,
//! and a size that can change at any time.
//!
//! Output never makes memory or a file grow without bound: a backend drops what it cannot take. Input
//! is only read where the driver has offered a buffer for it; until then it stays with the host.

mod log_file;
mod stream;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use log_file::LogFile;
pub use stream::{SocketServer, Stream};

use super::chain::Chain;
use super::device::{
    ActivateError, Activation, DeviceType, Interrupt, Source, Token, VirtioDevice, Worker,
};
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC, QueueFault};
use super::served::{Served, ServedQueue, Server};
use crate::guest_warn;

/// The driver may ask for columns and rows (virtio 1.3, 5.3.3).
const F_SIZE: u64 = 1 << 0;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 64;

const INPUT_KICK: Token = Token(0);
const OUTPUT_KICK: Token = Token(1);
const BACKEND: Token = Token(2);
const RESIZED: Token = Token(3);

/// Bytes that are read or written at once.
const PIECE: usize = 4096;
/// Bytes that are taken from one chain; a driver sends a page, and what is more is dropped.
const MAX_OUTPUT: u32 = 1 << 20;

/// Where a console leads. Called from the console's I/O thread only; must not block.
pub trait ConsoleBackend: Send {
    /// Takes bytes, or drops them.
    fn write(&mut self, bytes: &[u8]);
    /// What is readable when [`ConsoleBackend::poll`] has something to do; the same for all time.
    fn source(&self) -> Option<&dyn AsRawFd> {
        None
    }
    /// Does what waits to be done, such as writing what did not fit before, and reads input into
    /// `space`, which may be empty. Gives the number of bytes read.
    fn poll(&mut self, _space: &mut [u8]) -> usize {
        0
    }
    /// Columns and rows, where the backend has a size but no way to tell when it changes: asked whenever there was
    /// input, or room for it.
    fn size(&self) -> Option<(u16, u16)> {
        None
    }
}

/// Drops all output.
impl ConsoleBackend for () {
    fn write(&mut self, _: &[u8]) {}
}

#[derive(Debug)]
struct Shared {
    /// Columns in bits 0 to 15, rows in 16 to 31, and the generation of both in 32 to 63. In one word, or else a
    /// driver could read half of a new size between two looks at the same generation.
    config: AtomicU64,
    resized: EventFd,
}

impl Shared {
    fn resize(&self, columns: u16, rows: u16) {
        let size = u32::from(rows) << 16 | u32::from(columns);
        let resize = |config: u64| {
            let next = u64::from(size) | ((config >> 32).wrapping_add(1) << 32);
            (config & u64::from(u32::MAX) != u64::from(size)).then_some(next)
        };
        let changed = self
            .config
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, resize);
        if changed.is_ok() {
            // A counter at its end is readable all the same.
            let _ = self.resized.write(1);
        }
    }
}

/// Changes the size of a console, from any thread.
#[derive(Clone, Debug)]
pub struct ConsoleHandle(Arc<Shared>);

impl ConsoleHandle {
    /// The console has this size from now on; the driver is told if it runs, and if it is another than before.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.resize(columns, rows);
    }
}

/// Shared by the resting and the running half, so that a reset loses nothing. Lock rank: innermost but
/// for the backend's own; only the I/O thread takes it, or activation when there is no worker.
type SharedBackend = Arc<Mutex<Box<dyn ConsoleBackend>>>;

fn lock(backend: &SharedBackend) -> MutexGuard<'_, Box<dyn ConsoleBackend>> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The resting half.
pub struct Console {
    backend: SharedBackend,
    shared: Arc<Shared>,
}

impl Console {
    /// A console of 80 columns and 25 rows.
    ///
    /// # Errors
    ///
    /// If the host has no eventfd left.
    pub fn new(backend: Box<dyn ConsoleBackend>) -> io::Result<Self> {
        Ok(Console {
            backend: Arc::new(Mutex::new(backend)),
            shared: Arc::new(Shared {
                config: AtomicU64::new(25 << 16 | 80),
                resized: EventFd::new(EFD_NONBLOCK)?,
            }),
        })
    }

    /// To change the size with.
    #[must_use]
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC | F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.shared.config.load(Ordering::Acquire);
        // cols, rows, max_nr_ports (1), emerg_wr.
        let [c0, c1, r0, r1, ..] = config.to_le_bytes();
        let config = [c0, c1, r0, r1, 1, 0, 0, 0, 0, 0, 0, 0];
        super::copy_config(&config, offset, data);
    }

    fn config_generation(&self) -> u32 {
        let [.., g0, g1, g2, g3] = self.shared.config.load(Ordering::Acquire).to_le_bytes();
        u32::from_le_bytes([g0, g1, g2, g3])
    }

    fn activate(&mut self, mut with: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let input = ServedQueue::take_from(&mut with, RECEIVE)?;
        let output = ServedQueue::take_from(&mut with, TRANSMIT)?;
        let gate = InputGate::new().map_err(|source| ActivateError::Host {
            what: "create an epoll descriptor",
            source,
        })?;
        Ok(vec![Box::new(ConsoleWorker {
            reader: Reader {
                backend: Arc::clone(&self.backend),
                chain: input.queue.new_chain(),
                bytes: Box::new([0; PIECE]),
                served: false,
            },
            writer: Writer {
                backend: Arc::clone(&self.backend),
                chain: output.queue.new_chain(),
                bytes: Box::new([0; PIECE]),
            },
            input,
            output,
            gate,
            shared: Arc::clone(&self.shared),
            interrupt: with.interrupt,
        })])
    }
}

/// Waits for the backend only while there is something to be done about it: a source that stays
/// readable because no buffer is there would keep the thread spinning.
struct InputGate {
    epoll: Epoll,
    open: bool,
}

impl InputGate {
    fn new() -> io::Result<Self> {
        Ok(InputGate {
            epoll: Epoll::new()?,
            open: false,
        })
    }

    fn set(&mut self, backend: &SharedBackend, open: bool) {
        if open == self.open {
            return;
        }
        self.open = open;
        let operation = match open {
            true => ControlOperation::Add,
            false => ControlOperation::Delete,
        };
        let backend = lock(backend);
        if let Some(source) = backend.source() {
            let event = EpollEvent::new(EventSet::IN, 0);
            if let Err(error) = self.epoll.ctl(operation, source.as_raw_fd(), event) {
                guest_warn!("console input cannot be waited for: {error}");
            }
        }
    }
}

struct ConsoleWorker {
    input: ServedQueue,
    output: ServedQueue,
    reader: Reader,
    writer: Writer,
    gate: InputGate,
    shared: Arc<Shared>,
    interrupt: Arc<dyn Interrupt>,
}

impl ConsoleWorker {
    /// One look at the backend: pending output leaves, and one buffer is filled. The gate stays open as
    /// long as there are buffers.
    fn poll_backend(&mut self) -> Result<(), QueueFault> {
        self.reader.served = false;
        self.input.serve(&mut self.reader)?;
        // Not served means that the driver has offered nothing.
        self.gate.set(&self.reader.backend, self.reader.served);
        let mut backend = lock(&self.reader.backend);
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
            (BACKEND, &self.gate.epoll),
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
                self.output.serve(&mut self.writer)
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
}

impl Server for Writer {
    fn chain(&mut self) -> &mut Chain {
        &mut self.chain
    }

    fn serve(&mut self) -> Result<Served, QueueFault> {
        let mut backend = lock(&self.backend);
        let mut at = 0;
        while at < MAX_OUTPUT {
            let count = self.chain.read_at(at, &mut *self.bytes);
            let piece = self.bytes.get(..count).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            backend.write(piece);
            at = at.saturating_add(u32::try_from(count).unwrap_or(MAX_OUTPUT));
        }
        Ok(Served::Done(0))
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}
