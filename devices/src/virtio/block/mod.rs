//! A disk (virtio 1.3, 5.2): raw files, block devices and qcow2 images; several queues.
//!
//! ```text
//! worker ── request    header and sizes to a checked request (pure)
//!    ├───── ending     what the queues share, and how a request ends
//!    ├───── slot       the chain's pieces; preadv2, pwritev2
//!    ├───── uring      what would block
//!    └───── disk       the file, or qcow2
//!             ├─ open    what is opened, how, and under which lock; image: how formats are told apart
//!             └─ layers  a qcow2 image and those below it; header, refcounts: what of it is checked here
//! limit: bytes and requests per second; budget: how much work in one call
//! ```

mod budget;
mod disk;
mod ending;
mod header;
mod image;
mod layers;
mod limit;
mod open;
mod qcow2;
mod refcounts;
mod request;
mod slot;
mod uring;
mod worker;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use disk::Geometry;
pub use ending::Counters;
pub use image::Format;
pub use limit::Rate;
pub use open::{DiskOptions, ImageFormat, OpenError};
pub use request::{Limits, Parts, Request, RequestError, SECTOR, Status, parse};

use disk::{Backend, Disk};
use ending::Shared;
use limit::Limiter;
use qcow2::Qcow2Disk;
use request::{ID_LEN, MAX_DISCARD, MAX_WRITE_ZEROES};
use uring::Uring;
use worker::BlockWorker;

use super::device::{ActivateError, Activation, DeviceType, VirtioDevice, Worker};
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC, MAX_SIZE};
use super::served::ServedQueue;
use crate::guest_warn;

/// Feature bits (virtio 1.3, 5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Bytes of the configuration up to and with `write_zeroes_may_unmap`, padded.
const CONFIG_LEN: usize = 60;

/// Whether requests that would block may go to io_uring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// If the host allows it, else as `Blocking`, with a line in the log.
    #[default]
    Uring,
    /// The I/O thread waits for the disk.
    Blocking,
}

/// How a disk is offered to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Queues, 1 to 64; any other number is brought there.
    pub num_queues: u16,
    /// Entries of each, a power of two from 4 to 1024; any other number is brought there.
    pub queue_size: u16,
    /// What GET_ID gives; cut after 20 bytes.
    pub serial: String,
    /// Limit of bytes.
    pub bandwidth: Option<Rate>,
    /// Limit of requests.
    pub operations: Option<Rate>,
    /// See there.
    pub engine: Engine,
}

impl Default for BlockOptions {
    fn default() -> Self {
        BlockOptions {
            num_queues: 1,
            queue_size: 256,
            serial: String::new(),
            bandwidth: None,
            operations: None,
            engine: Engine::default(),
        }
    }
}

/// The resting half of a disk.
#[derive(Debug)]
pub struct Block {
    shared: Arc<Shared>,
    features: u64,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_LEN],
    engine: Engine,
}

impl Block {
    /// Opens and locks an image.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(disk: &DiskOptions, options: &BlockOptions) -> Result<Self, OpenError> {
        let backend: Arc<dyn Backend> = match disk.format {
            ImageFormat::Qcow2 => Arc::new(Qcow2Disk::open(disk)?),
            ImageFormat::Unsaid | ImageFormat::Raw => Arc::new(Disk::open(disk)?),
        };
        Ok(Self::over(backend, disk.read_only, options))
    }

    fn over(backend: Arc<dyn Backend>, read_only: bool, options: &BlockOptions) -> Self {
        let geometry = backend.geometry();
        let queues = options.num_queues.clamp(1, 64);
        let wanted = options.queue_size.clamp(4, MAX_SIZE);
        let size = wanted
            .checked_next_power_of_two()
            .unwrap_or(MAX_SIZE)
            .min(MAX_SIZE);
        let limited = options.bandwidth.is_some() || options.operations.is_some();
        let limiter = Limiter::new(options.bandwidth, options.operations, Duration::ZERO);
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        let features = F_EVENT_IDX
            | F_INDIRECT_DESC
            | F_SEG_MAX
            | F_BLK_SIZE
            | F_FLUSH
            | F_TOPOLOGY
            | if queues > 1 { F_MQ } else { 0 }
            | if read_only {
                F_RO
            } else {
                F_DISCARD | F_WRITE_ZEROES
            };
        Block {
            shared: Arc::new(Shared {
                limits: Limits {
                    size: geometry.size,
                    read_only,
                    discard: !read_only,
                },
                backend,
                id,
                flush_failed: AtomicBool::new(false),
                limiter: limited.then(|| Mutex::new(limiter)),
                started: Instant::now(),
                counters: Counters::default(),
            }),
            features,
            queue_sizes: vec![size; usize::from(queues)],
            config: config_bytes(&geometry, size, queues),
            engine: options.engine,
        }
    }

    /// Sizes, for the plan and the metrics.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.shared.backend.geometry()
    }

    /// What the disk has done; lives on with the disk in the transport.
    #[must_use]
    pub fn counters(&self) -> BlockCounters {
        BlockCounters(Arc::clone(&self.shared))
    }

    fn uring(&self, depth: u16) -> Option<Uring> {
        let file = self.shared.backend.file()?;
        if self.engine == Engine::Blocking {
            return None;
        }
        Uring::new(file, depth)
            .inspect_err(|error| guest_warn!("disk without io_uring: {error}"))
            .ok()
    }
}

/// Counters of a disk, wherever it is.
#[derive(Clone, Debug)]
pub struct BlockCounters(Arc<Shared>);

impl std::ops::Deref for BlockCounters {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.0.counters
    }
}

/// The configuration structure (virtio 1.3, 5.2.4).
fn config_bytes(geometry: &Geometry, queue_size: u16, queues: u16) -> [u8; CONFIG_LEN] {
    let Geometry {
        size,
        logical_block,
        physical_block,
        discard_block,
    } = *geometry;
    let mut bytes = [0; CONFIG_LEN];
    let mut put = |at: usize, field: &[u8]| {
        for (to, from) in bytes.iter_mut().skip(at).zip(field) {
            *to = *from;
        }
    };
    let blocks = physical_block
        .checked_div(logical_block)
        .unwrap_or(1)
        .max(1);
    let exponent = u8::try_from(blocks.trailing_zeros()).unwrap_or(0);
    let min_io = u16::try_from(blocks).unwrap_or(1);
    put(0, &(size / SECTOR).to_le_bytes());
    // Header and status take a descriptor each.
    put(12, &u32::from(queue_size.saturating_sub(2)).to_le_bytes());
    put(20, &logical_block.to_le_bytes());
    put(24, &[exponent, 0]);
    put(26, &min_io.to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_DISCARD.to_le_bytes());
    put(40, &1u32.to_le_bytes());
    put(44, &(discard_block / 512).to_le_bytes());
    put(48, &MAX_WRITE_ZEROES.to_le_bytes());
    put(52, &1u32.to_le_bytes());
    put(56, &[1]);
    bytes
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, mut with: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let indices: Vec<_> = with.queues.iter().map(|queue| queue.index).collect();
        let mut workers: Vec<Box<dyn Worker>> = Vec::with_capacity(indices.len());
        let write_through = with.features & F_FLUSH == 0;
        for index in indices {
            let served = ServedQueue::take_from(&mut with, index)?;
            let uring = self.uring(served.queue.size());
            let shared = Arc::clone(&self.shared);
            let worker = BlockWorker::new(served, shared, uring, write_through);
            let worker = worker.map_err(|source| ActivateError::Host {
                what: "create a timer",
                source,
            })?;
            workers.push(Box::new(worker));
        }
        Ok(workers)
    }
}

#[cfg(test)]
mod tests;
