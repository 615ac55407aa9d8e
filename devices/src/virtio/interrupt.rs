//! From a worker to the driver: which MSI-X vector, and the bits that a polling driver reads.
//!
//! Shared by the transport, which writes the vectors, and the workers, which use them. No lock: a vector
//! that changes while an interrupt is on its way may send either one, as with any device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use super::device::{Interrupt, Source};
use super::queue::QueueFault;
use crate::guest_warn;
use crate::io_thread::FaultSink;
use crate::pci::MsixTrigger;

/// No vector: such interrupts are dropped (virtio 1.3, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status (virtio 1.3, 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// See the module's text.
#[derive(Debug)]
pub(super) struct VirtioInterrupt {
    name: &'static str,
    msix: Arc<MsixTrigger>,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    isr: AtomicU8,
    needs_reset: AtomicBool,
}

impl VirtioInterrupt {
    pub fn new(name: &'static str, msix: Arc<MsixTrigger>, queues: usize) -> Self {
        VirtioInterrupt {
            name,
            msix,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    fn cell(&self, source: Source) -> Option<&AtomicU16> {
        match source {
            Source::Config => Some(&self.config),
            Source::Queue(index) => self.queues.get(usize::from(index)),
        }
    }

    pub fn vector(&self, source: Source) -> u16 {
        self.cell(source)
            .map_or(NO_VECTOR, |cell| cell.load(Ordering::Relaxed))
    }

    pub fn set_vector(&self, source: Source, vector: u16) {
        if let Some(cell) = self.cell(source) {
            cell.store(vector, Ordering::Relaxed);
        }
    }

    /// Reading the ISR status clears it.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Marks the device as broken and tells the driver.
    pub fn break_device(&self) {
        self.needs_reset.store(true, Ordering::Release);
        if let Err(error) = self.trigger(Source::Config) {
            guest_warn!(
                "{}: cannot tell the driver of the fault: {error}",
                self.name
            );
        }
    }

    /// As after a reset of the device: vectors are unset (virtio 1.3, 4.1.4.3.1).
    pub fn reset(&self) {
        self.config.store(NO_VECTOR, Ordering::Relaxed);
        for queue in &self.queues {
            queue.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.isr.store(0, Ordering::Relaxed);
        self.needs_reset.store(false, Ordering::Release);
    }
}

impl Interrupt for VirtioInterrupt {
    fn trigger(&self, source: Source) -> io::Result<()> {
        let vector = self.vector(source);
        if vector != NO_VECTOR {
            return self.msix.trigger(vector);
        }
        let bit = match source {
            Source::Config => ISR_CONFIG,
            Source::Queue(_) => ISR_QUEUE,
        };
        self.isr.fetch_or(bit, Ordering::AcqRel);
        Ok(())
    }
}

impl FaultSink for VirtioInterrupt {
    fn fault(&self, fault: QueueFault) {
        guest_warn!(
            "{}: the driver broke the rules of a queue: {fault}",
            self.name
        );
        self.break_device();
    }
}
