//! What the transport and the devices know of each other.
//!
//! The resting half of a device ([`VirtioDevice`]) stays in the transport, under its lock. Activation
//! makes the running half: one or more [`Worker`]s, which own the rings and live on I/O threads. A reset
//! takes the workers off their threads, waits for that, and drops them; the resting half can be
//! activated again at once.

use std::fmt::Debug;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use super::queue::{QueueFault, QueueResources};
use crate::dma::DmaView;

/// Kinds of devices that there are here (virtio 1.3, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// Block device.
    Block,
    /// Console.
    Console,
    /// Entropy source.
    Entropy,
}

impl DeviceType {
    /// The number of the specification.
    #[must_use]
    pub fn id(self) -> u16 {
        match self {
            DeviceType::Block => 2,
            DeviceType::Console => 3,
            DeviceType::Entropy => 4,
        }
    }

    /// PCI class, subclass and programming interface, as `0xccsspp`.
    #[must_use]
    pub fn pci_class(self) -> u32 {
        match self {
            DeviceType::Block => 0x01_80_00,
            DeviceType::Console => 0x07_80_00,
            DeviceType::Entropy => 0xff_00_00,
        }
    }

    /// For messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeviceType::Block => "virtio-blk",
            DeviceType::Console => "virtio-console",
            DeviceType::Entropy => "virtio-rng",
        }
    }
}

/// The resting half of a device. Called under the transport's lock, from vCPU threads.
pub trait VirtioDevice: Send {
    /// What it is.
    fn device_type(&self) -> DeviceType;
    /// Feature bits of the device and of its rings; the transport adds its own.
    fn features(&self) -> u64;
    /// The largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Fills `data` from the configuration at `offset`, zeros where there is none.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration; most devices have nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// A number that changes with every change of the configuration that the driver did not make.
    fn config_generation(&self) -> u32 {
        0
    }
    /// Makes the running half. Called again after each reset.
    ///
    /// # Errors
    ///
    /// If the queues cannot be served or the host lacks something; the driver then sees
    /// DEVICE_NEEDS_RESET.
    fn activate(&mut self, with: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError>;
}

/// What a device is given to run.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: DmaView,
    /// How to tell the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// What driver and device agreed on.
    pub features: u64,
    /// The queues that the driver enabled, in order of their numbers.
    pub queues: Vec<QueueResources>,
}

impl Activation {
    /// The resources of queue `index`, which this device cannot do without.
    ///
    /// # Errors
    ///
    /// If the driver did not enable it.
    pub fn take_queue(&mut self, index: u16) -> Result<QueueResources, ActivateError> {
        let place = self.queues.iter().position(|queue| queue.index == index);
        let place = place.ok_or(ActivateError::NoQueue(index))?;
        Ok(self.queues.remove(place))
    }
}

/// A device could not be started.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver set a ring up that cannot be served.
    #[error("cannot serve queue {index}")]
    Queue {
        /// Its number.
        index: u16,
        /// What is wrong with it.
        source: QueueFault,
    },
    /// The driver did not enable a queue.
    #[error("queue {0} is not enabled")]
    NoQueue(u16),
    /// The host refused something.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// Names an event source of a worker, as the worker likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u32);

/// Tells a worker that it is about to be taken off its thread. It need not finish what it does then: whoever
/// raised this waits, under the transport's lock.
#[derive(Clone, Debug, Default)]
pub struct StopFlag {
    worker: Arc<AtomicBool>,
    thread: Arc<AtomicBool>,
}

impl StopFlag {
    /// One for another worker of the same thread.
    #[must_use]
    pub fn another(&self) -> Self {
        StopFlag {
            worker: Arc::default(),
            thread: Arc::clone(&self.thread),
        }
    }

    /// For this worker. There is no way back.
    pub fn raise(&self) {
        self.worker.store(true, Ordering::Relaxed);
    }

    /// For all workers of the thread.
    pub fn raise_all(&self) {
        self.thread.store(true, Ordering::Relaxed);
    }

    /// Whether it is time to stop.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.worker.load(Ordering::Relaxed) || self.thread.load(Ordering::Relaxed)
    }
}

/// The running half of a device. Lives on one I/O thread. Dropped by reset or after a fault, also with requests in
/// flight: when the drop returns they have ended, and what they brought back of private memory is given up.
pub trait Worker: Send {
    /// Descriptors to wait on until they are readable. Asked once, when the worker starts.
    fn event_sources(&self) -> Vec<(Token, &dyn AsRawFd)>;
    /// Whether `token` is an event descriptor of which each write is to call once: it is never read, which
    /// saves a system call for each event.
    fn counts_writes(&self, _token: Token) -> bool {
        false
    }
    /// Gives a worker whose calls can take long what to look at meanwhile. Called once, before it starts.
    fn set_stop(&mut self, _stop: StopFlag) {}
    /// `token` is readable, and stays so until it is read, or was written since the last call. Does a bounded
    /// amount of work.
    ///
    /// # Errors
    ///
    /// If the driver broke the rules. The worker is dropped then.
    fn on_event(&mut self, token: Token) -> Result<(), QueueFault>;
}

/// Reaches the driver. Used from I/O threads, without a lock.
pub trait Interrupt: Debug + Send + Sync {
    /// Sends the interrupt of `source`.
    ///
    /// # Errors
    ///
    /// If the host refuses; the interrupt is lost then.
    fn trigger(&self, source: Source) -> io::Result<()>;
}

/// Why the driver is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration or the status has changed.
    Config,
    /// A queue has something for the driver.
    Queue(u16),
}
