//! virtio over PCI, modern only (virtio 1.3, 4.1): one BAR, MSI-X, no INTx.
//!
//! Owns the resting half of a device and puts its workers on I/O threads when the driver sets
//! DRIVER_OK; a reset takes them off again and waits for that before the status reads 0. Kicks arrive
//! as ioeventfds: the transport tells [`NotifyRegistry`] where they are, also when the BAR moves. A
//! kick that reaches the register all the same is passed on.
//!
//! Waiting for the I/O thread under the transport's lock is safe, as no I/O thread takes that lock.

use std::fmt;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::capabilities::{self, Area, CfgWindow};
use super::device::{ActivateError, Activation, Interrupt, Source, VirtioDevice};
use super::interrupt::{NO_VECTOR, VirtioInterrupt};
use super::queue::QueueResources;
use super::registers::{Ask, CommonRegisters, Phase, Shown};
use super::status::{self, Move, status_move};
use crate::dma::DmaView;
use crate::guest_warn;
use crate::io_thread::{FaultSink, IoHandle, WorkerId};
use crate::pci::{ConfigSpace, Identity, Msix, MsixVectors, PciDevice, SpaceError};

/// Feature bits of the transport (virtio 1.3, 6).
const F_VERSION_1: u64 = 1 << 32;
const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// Vendor of all virtio devices, and what is added to the type for the device id (virtio 1.3, 4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

/// Told where a write is a kick, so that the kernel can take it there. Called under the transport's
/// lock, from vCPU threads.
pub trait NotifyRegistry: fmt::Debug + Send + Sync {
    /// A write of any size at the guest physical address `to` is a kick for `queue`: it makes `kick`
    /// readable. It is one at `from` no longer. `None` is nowhere. A failure costs speed only, as the
    /// transport passes on the kicks that reach it.
    fn place(&self, queue: u16, kick: &EventFd, from: Option<u64>, to: Option<u64>);
}

/// Whether the device may use all of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryAccess {
    /// As an ordinary VM gives it.
    Direct,
    /// Only what the guest shares: the driver must accept ACCESS_PLATFORM. In a TD.
    Restricted,
}

/// What the process around gives to one device.
#[derive(Debug)]
pub struct Wiring {
    /// Guest memory.
    pub memory: DmaView,
    /// At least [`VirtioPciDevice::vectors`] MSI-X vectors.
    pub vectors: Arc<dyn MsixVectors>,
    /// Where kicks go.
    pub notify: Arc<dyn NotifyRegistry>,
    /// I/O threads; the workers are dealt out to them in turn.
    pub io_threads: Vec<IoHandle>,
    /// See there.
    pub access: MemoryAccess,
}

/// A device could not be made: a mistake of the program or a refusal of the host.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The configuration space cannot hold it.
    #[error("cannot lay out the configuration space of {device}")]
    Space {
        /// What kind of device.
        device: &'static str,
        /// What did not fit.
        source: SpaceError,
    },
    /// No eventfd.
    #[error("cannot create an eventfd for {device}")]
    EventFd {
        /// What kind of device.
        device: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// There is no I/O thread, or more queues than the BAR has room for.
    #[error("{device} has {queues} queues and {threads} I/O threads")]
    Wiring {
        /// What kind of device.
        device: &'static str,
        /// Queues.
        queues: usize,
        /// Threads.
        threads: usize,
    },
}

/// See the module's text.
pub struct VirtioPciDevice {
    name: &'static str,
    device: Box<dyn VirtioDevice>,
    wiring: Wiring,
    config: ConfigSpace,
    msix: Msix,
    msix_control: u8,
    window: CfgWindow,
    registers: CommonRegisters,
    status: u8,
    interrupt: Arc<VirtioInterrupt>,
    kicks: Vec<Arc<EventFd>>,
    /// Where the notify registers are.
    placed: Option<u64>,
    /// Which worker is on which thread.
    workers: Vec<(IoHandle, WorkerId)>,
}

impl VirtioPciDevice {
    /// How many MSI-X vectors `device` can use: one for each queue and one for the configuration.
    #[must_use]
    pub fn vectors(device: &dyn VirtioDevice) -> u16 {
        let queues = u16::try_from(device.queue_sizes().len()).unwrap_or(u16::MAX);
        queues.saturating_add(1).min(capabilities::MAX_VECTORS)
    }

    /// A PCI function for `device`, with its BAR at no address yet.
    ///
    /// # Errors
    ///
    /// If the host has no eventfd left, or the parts do not fit together.
    pub fn new(device: Box<dyn VirtioDevice>, wiring: Wiring) -> Result<Self, TransportError> {
        let kind = device.device_type();
        let name = kind.name();
        let (queues, threads) = (device.queue_sizes().len(), wiring.io_threads.len());
        if threads == 0 || queues > capabilities::MAX_QUEUES {
            return Err(TransportError::Wiring {
                device: name,
                queues,
                threads,
            });
        }
        let id = DEVICE_BASE.wrapping_add(kind.id());
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: id,
            class: kind.pci_class(),
            revision: 1,
            subsystem_vendor: VENDOR,
            subsystem: id,
        });
        let msix = Msix::new(Arc::clone(&wiring.vectors), Self::vectors(&*device));
        let (msix_control, window) =
            capabilities::add(&mut config, &msix).map_err(|source| TransportError::Space {
                device: name,
                source,
            })?;
        let kicks: io::Result<Vec<_>> = (0..queues)
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect();
        let kicks = kicks.map_err(|source| TransportError::EventFd {
            device: name,
            source,
        })?;
        let interrupt = Arc::new(VirtioInterrupt::new(name, msix.trigger(), queues));
        let offered = device.features()
            | F_VERSION_1
            | match wiring.access {
                MemoryAccess::Direct => 0,
                MemoryAccess::Restricted => F_ACCESS_PLATFORM,
            };
        Ok(VirtioPciDevice {
            name,
            registers: CommonRegisters::new(offered, device.queue_sizes()),
            device,
            wiring,
            config,
            msix,
            msix_control,
            window,
            status: 0,
            interrupt,
            kicks,
            placed: None,
            workers: Vec::new(),
        })
    }

    fn phase(&self) -> Phase {
        if self.status & status::DRIVER_OK != 0 {
            Phase::Running
        } else if self.status & status::FEATURES_OK != 0 {
            Phase::Queues
        } else {
            Phase::Features
        }
    }

    fn shown_status(&self) -> u8 {
        match self.interrupt.needs_reset() {
            true => self.status | status::NEEDS_RESET,
            false => self.status,
        }
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let queue = self.registers.queue_select();
        let [generation, ..] = self.device.config_generation().to_le_bytes();
        let bytes = self.registers.bytes(Shown {
            status: self.shown_status(),
            generation,
            config_vector: self.interrupt.vector(Source::Config),
            queue_vector: self.interrupt.vector(Source::Queue(queue)),
        });
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, byte) in data.iter_mut().zip(bytes.iter().skip(from)) {
            *to = *byte;
        }
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        match self.registers.write(offset, data, self.phase()) {
            Ask::Nothing => {}
            Ask::Status(to) => self.set_status(to),
            Ask::ConfigVector(vector) => self.set_vector(Source::Config, vector),
            Ask::QueueVector(queue, vector) => self.set_vector(Source::Queue(queue), vector),
        }
    }

    /// A vector that does not exist reads back as none (virtio 1.3, 4.1.5.1.2.1).
    fn set_vector(&mut self, source: Source, vector: u16) {
        let known = vector < self.msix.count();
        let vector = if known { vector } else { NO_VECTOR };
        self.interrupt.set_vector(source, vector);
    }

    fn set_status(&mut self, to: u8) {
        match status_move(self.status, to) {
            Move::Reset => self.reset(),
            Move::Note => self.status = to & !status::NEEDS_RESET,
            Move::CheckFeatures if self.features_are_acceptable() => {
                self.status = to & !status::NEEDS_RESET;
            }
            Move::Activate => {
                self.status = to & !status::NEEDS_RESET;
                if let Err(error) = self.activate() {
                    guest_warn!("{}: {}", self.name, Chain(&error));
                    self.interrupt.break_device();
                }
            }
            Move::CheckFeatures | Move::Refuse => {}
        }
    }

    fn features_are_acceptable(&self) -> bool {
        let needed = F_VERSION_1 | self.registers.offered() & F_ACCESS_PLATFORM;
        let accepted = self.registers.accepted;
        accepted & !self.registers.offered() == 0 && accepted & needed == needed
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let queues = (0u16..).zip(self.registers.queues.iter().zip(&self.kicks));
        let queues =
            queues
                .filter(|(_, (queue, _))| queue.enabled)
                .map(|(index, (queue, kick))| QueueResources {
                    index,
                    size: queue.size,
                    addresses: queue.addresses,
                    kick: Arc::clone(kick),
                });
        let workers = self.device.activate(Activation {
            memory: self.wiring.memory.clone(),
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
            features: self.registers.accepted,
            queues: queues.collect(),
        })?;
        let threads = self.wiring.io_threads.iter().cycle();
        for (worker, thread) in workers.into_iter().zip(threads) {
            let faults = Arc::clone(&self.interrupt) as Arc<dyn FaultSink>;
            let id = thread.add(worker, faults);
            let id = id.map_err(|source| ActivateError::Host {
                what: "wait for the events of a worker",
                source,
            })?;
            self.workers.push((thread.clone(), id));
        }
        // What the driver added before DRIVER_OK is looked at without a kick.
        for kick in &self.kicks {
            write_kick(kick);
        }
        Ok(())
    }

    fn stop_workers(&mut self) {
        for (_, id) in &self.workers {
            id.stop();
        }
        for (thread, id) in self.workers.drain(..) {
            thread.remove(&id);
        }
    }

    /// Waits until no worker touches the rings; only then may the status read 0.
    fn reset(&mut self) {
        self.stop_workers();
        for kick in &self.kicks {
            // Empty or not, it is empty after that.
            let _ = kick.read();
        }
        self.registers.reset();
        self.interrupt.reset();
        self.msix.forget_pending();
        self.status = 0;
    }

    fn area_read(&mut self, area: Area, offset: u64, data: &mut [u8]) {
        match area {
            Area::Common => self.read_common(offset, data),
            Area::Isr => {
                if let Some(first) = data.first_mut().filter(|_| offset == 0) {
                    *first = self.interrupt.take_isr();
                }
            }
            Area::Device => self.device.read_config(offset, data),
            Area::Table => self.msix.table_read(offset, data),
            Area::Pending => self.msix.pending_read(offset, data),
            Area::Notify => {}
        }
    }

    fn area_write(&mut self, area: Area, offset: u64, data: &[u8]) {
        match area {
            Area::Common => self.write_common(offset, data),
            Area::Device => self.device.write_config(offset, data),
            Area::Notify => {
                let queue = usize::try_from(offset / capabilities::NOTIFY_STRIDE);
                if let Some(kick) = queue.ok().and_then(|queue| self.kicks.get(queue)) {
                    write_kick(kick);
                }
            }
            Area::Table => self.msix.table_write(offset, data),
            Area::Isr | Area::Pending => {}
        }
    }
}

impl PciDevice for VirtioPciDevice {
    fn name(&self) -> &str {
        self.name
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, register: u16, data: &mut [u8]) {
        if let Some((bar, offset)) = self.window.target(&self.config, register, data.len()) {
            let mut inside = [0; 4];
            if let Some(part) = inside.get_mut(..data.len()) {
                self.bar_read(bar, offset, part);
                data.copy_from_slice(part);
            }
            return;
        }
        self.config.read(register, data);
    }

    fn config_write(&mut self, register: u16, data: &[u8]) {
        if let Some((bar, offset)) = self.window.target(&self.config, register, data.len()) {
            self.bar_write(bar, offset, data);
            return;
        }
        self.config.write(register, data);
        let control = self.msix_control.wrapping_add(2);
        if register & !3 == u16::from(self.msix_control) {
            self.msix.set_control(self.config.u16_at(control));
        }
    }

    fn bars_moved(&mut self) {
        let bar = self
            .config
            .decoded_bars()
            .find(|bar| bar.index == capabilities::BAR);
        let now = bar.and_then(|bar| bar.base.checked_add(Area::Notify.offset()));
        let then = std::mem::replace(&mut self.placed, now);
        if now == then {
            return;
        }
        for (queue, kick) in (0u16..).zip(&self.kicks) {
            let at = |base: u64| {
                base.wrapping_add(u64::from(queue).wrapping_mul(capabilities::NOTIFY_STRIDE))
            };
            self.wiring
                .notify
                .place(queue, kick, then.map(at), now.map(at));
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((area, offset)) = Area::find(bar, offset) {
            self.area_read(area, offset, data);
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if let Some((area, offset)) = Area::find(bar, offset) {
            self.area_write(area, offset, data);
        }
    }
}

impl Drop for VirtioPciDevice {
    fn drop(&mut self) {
        self.stop_workers();
    }
}

impl fmt::Debug for VirtioPciDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPciDevice")
            .field("name", &self.name)
            .field("status", &self.shown_status())
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

/// A counter at its end is readable all the same.
fn write_kick(kick: &EventFd) {
    let _ = kick.write(1);
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
