//! Wiring: the devices of the plan, put on the two buses.

use std::sync::{Arc, Mutex};

use tdvmm_arch::map::{self, gsi};
use tdvmm_devices::bus::{BusBuilder, MapError, SharedDevice};
use tdvmm_devices::clock::HostClock;
use tdvmm_devices::debugcon::DebugCon;
use tdvmm_devices::dma::DmaView;
use tdvmm_devices::fwcfg::{FwCfg, FwCfgError};
use tdvmm_devices::io_thread::IoThread;
use tdvmm_devices::ioapic::IoApic;
use tdvmm_devices::pci::{
    BarError, ConfigMechanism1, Ecam, HostBridge, LpcBridge, MmioWindow, PciRoot, SlotError,
};
use tdvmm_devices::pit::StoppedTimer;
use tdvmm_devices::pm::PowerBlock;
use tdvmm_devices::power::PowerSink;
use tdvmm_devices::reset::{I8042, Port92, ResetControl};
use tdvmm_devices::rtc::Rtc;
use tdvmm_devices::virtio::transport::{MemoryAccess, TransportError};
use thiserror::Error;

use super::events::InputSource;
use super::functions::{self, Backends};
use crate::kvm::KvmError;
use crate::kvm::routes::IrqRoutes;
use crate::kvm::vm::VmHandles;
use crate::plan::Plan;
use crate::plan::platform::{Device, Place, Space};
use crate::vcpu::run_loop::{Buses, TdServices};

/// The devices cannot be wired.
#[derive(Debug, Error)]
pub enum BoardError {
    /// The address map is wrong: a mistake of this program.
    #[error("the address map is wrong")]
    Map(#[source] MapError),
    /// The PCI bus is wrong: a mistake of this program.
    #[error("the PCI bus is wrong")]
    Slot(#[source] SlotError),
    /// The memory of PCI devices does not fit its window.
    #[error("the PCI devices need more address space than there is")]
    Bars(#[source] BarError),
    /// The contents of fw_cfg cannot be offered: a mistake of this program.
    #[error("cannot offer the contents of fw_cfg")]
    FwCfg(#[source] FwCfgError),
    /// KVM refuses an interrupt.
    #[error("cannot wire an interrupt")]
    Irq(#[source] KvmError),
    /// A thread for a device cannot be started.
    #[error("cannot start an I/O thread")]
    IoThread(#[source] std::io::Error),
    /// A virtio device cannot be wired.
    #[error("cannot wire a virtio device")]
    Virtio(#[source] TransportError),
}

/// The wired devices.
#[derive(Debug)]
pub struct Board {
    /// Where vCPU exits are served.
    pub buses: Arc<Buses>,
    /// Where input for the serial port comes from.
    pub input: InputSource,
    /// Where the work of virtio devices is done; it stops when they are dropped.
    pub io_threads: Vec<IoThread>,
}

impl Board {
    /// Wires the devices of `plan`, which lead to `backends`. They see guest memory through `memory`, `td` serves a
    /// TD's exits, and what the guest asks of the machine goes to `power`.
    ///
    /// # Errors
    ///
    /// If KVM refuses an interrupt, or the host has no thread left.
    pub(super) fn wire(
        plan: &Plan,
        backends: Backends,
        handles: &VmHandles,
        memory: &DmaView,
        td: Option<Arc<dyn TdServices>>,
        power: &Arc<dyn PowerSink>,
    ) -> Result<Self, BoardError> {
        let routes = &handles.routes;
        let mut root = pci_root()?;
        let access = match td {
            Some(_) => MemoryAccess::Restricted,
            None => MemoryAccess::Direct,
        };
        let io_threads = functions::wire(
            &mut root,
            &plan.pci,
            backends.devices,
            handles,
            memory,
            access,
        )?;
        let pci = Arc::new(root);
        if plan.firmware().is_none() {
            pci.assign_bars(map::PCI_WINDOW.start().0, map::PCI_WINDOW.len())
                .map_err(BoardError::Bars)?;
        }
        let (mut ports, mut mmio) = (BusBuilder::default(), BusBuilder::default());
        let (mut com1, mut input) = (None, InputSource::None);
        if let Some(serial) = backends.serial {
            let irq = routes.wire(gsi::COM1).map_err(BoardError::Irq)?;
            let (port, source) = serial.wire(irq);
            (com1, input) = (Some(port), source);
        }
        for Place {
            device,
            space,
            base,
            len,
        } in &plan.platform
        {
            let power = Arc::clone(power);
            let pci = Arc::clone(&pci);
            let device: SharedDevice = match device {
                // The plan has one where there is a backend.
                Device::Com1 => match com1.take() {
                    Some(port) => port,
                    None => continue,
                },
                Device::Rtc => shared(Rtc::new(Box::new(HostClock::new()))),
                Device::Timer => shared(StoppedTimer),
                Device::I8042 => shared(I8042::new(power)),
                Device::Port92 => shared(Port92::new(power)),
                Device::PciConfig => shared(ConfigMechanism1::new(pci, ResetControl::new(power))),
                Device::PowerBlock => shared(PowerBlock::new(power, Box::new(HostClock::new()))),
                Device::FwCfg => shared(fw_cfg(plan, memory)?),
                Device::DebugCon => shared(DebugCon::new()),
                Device::IoApic => shared(IoApic::new(Arc::<IrqRoutes>::clone(routes))),
                Device::Ecam => shared(Ecam::new(pci)),
                Device::PciWindow => shared(MmioWindow::new(pci, *base)),
            };
            let bus = match space {
                Space::Port => &mut ports,
                Space::Memory => &mut mmio,
            };
            *bus = std::mem::take(bus)
                .insert(*base, *len, device)
                .map_err(BoardError::Map)?;
        }
        let buses = Buses {
            ports: ports.build(),
            mmio: mmio.build(),
            td,
        };
        Ok(Self {
            buses: Arc::new(buses),
            input,
            io_threads,
        })
    }
}

fn shared<D: tdvmm_devices::bus::BusDevice + 'static>(device: D) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn fw_cfg(plan: &Plan, memory: &DmaView) -> Result<FwCfg, BoardError> {
    let contents = plan
        .firmware()
        .map(|firmware| firmware.fw_cfg.clone())
        .unwrap_or_default();
    FwCfg::build(contents.items, contents.files, memory.clone()).map_err(BoardError::FwCfg)
}

fn pci_root() -> Result<PciRoot, BoardError> {
    let mut root = PciRoot::new();
    root.insert(HostBridge::SLOT, Arc::new(Mutex::new(HostBridge::new())))
        .map_err(BoardError::Slot)?;
    let lpc = LpcBridge::new(map::port::PMBASE);
    root.insert(LpcBridge::SLOT, Arc::new(Mutex::new(lpc)))
        .map_err(BoardError::Slot)?;
    Ok(root)
}
