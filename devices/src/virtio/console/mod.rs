//! A console (virtio 1.3, 5.3) of one port, hvc0 in Linux: output to a [`ConsoleBackend`], input from it,
//! and a size that can change at any time.
//!
//! Output never makes memory or a file grow without bound: a backend drops what it cannot take. Input
//! is only read where the driver has offered a buffer for it; until then it stays with the host.

mod log_file;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use log_file::LogFile;
pub use stream::{SocketServer, Stream};

use self::worker::ConsoleWorker;
use super::device::{ActivateError, Activation, DeviceType, VirtioDevice, Worker};
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::served::ServedQueue;

/// The driver may ask for columns and rows (virtio 1.3, 5.3.3).
const F_SIZE: u64 = 1 << 0;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 64;

/// Where a console leads. Called from the console's I/O thread, or at activation, when there is none; may wait for a
/// fraction of a second.
pub trait ConsoleBackend: Send {
    /// Takes bytes, or drops them.
    fn write(&mut self, bytes: &[u8]);
    /// What is readable when [`ConsoleBackend::poll`] has something to do; the same for all time.
    fn source(&self) -> Option<&dyn AsRawFd> {
        None
    }
    /// Whether there is room for input, which is assumed at first. While there is none, input must not make
    /// [`ConsoleBackend::source`] readable.
    fn want_input(&mut self, _wanted: bool) {}
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
        let worker = ConsoleWorker::new(input, output, self, with.interrupt);
        let worker = worker.map_err(|source| ActivateError::Host {
            what: "wait for a console's backend",
            source,
        })?;
        Ok(vec![Box::new(worker)])
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}
