//! The platform devices wired to recorders: what `vmm` does with them on KVM.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tdvmm_devices::bus::{Bus, BusBuilder, BusDevice, SharedDevice};
use tdvmm_devices::clock::HostClock;
use tdvmm_devices::debugcon::DebugCon;
use tdvmm_devices::dma::{DmaView, PageState};
use tdvmm_devices::fwcfg::FwCfg;
use tdvmm_devices::ioapic::IoApic;
use tdvmm_devices::irq::{IrqWire, Msi, MsiRouter};
use tdvmm_devices::pci::{
    ConfigMechanism1, ConfigSpace, Ecam, HostBridge, Identity, LpcBridge, MmioWindow, Msix,
    MsixPlace, MsixTrigger, MsixVectors, PciDevice, PciRoot,
};
use tdvmm_devices::pm::PowerBlock;
use tdvmm_devices::power::{PowerEvent, PowerSink};
use tdvmm_devices::reset::{I8042, Port92, ResetControl};
use tdvmm_devices::rtc::Rtc;
use tdvmm_devices::serial::Serial;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const RAM: u64 = 0x20_0000;
const PRIVATE: Range<u64> = 0x10_0000..RAM;
pub const ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
pub const WINDOW: Range<u64> = 0x8000_0000..0xe000_0000;
pub const IOAPIC: Range<u64> = 0xfec0_0000..0xfec0_1000;

/// Counts what the devices ask of the machine around them.
#[derive(Debug, Default)]
struct Counts {
    power: AtomicU64,
    interrupts: AtomicU64,
    routes: AtomicU64,
}

impl PowerSink for Counts {
    fn request(&self, _: PowerEvent) {
        self.power.fetch_add(1, Ordering::Relaxed);
    }
}

impl IrqWire for Counts {
    fn pulse(&self) -> io::Result<()> {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Fails now and then, as a host may.
impl MsiRouter for Counts {
    fn route(&self, _: u32, _: Option<Msi>) -> io::Result<()> {
        match self.routes.fetch_add(1, Ordering::Relaxed) % 7 {
            0 => Err(io::ErrorKind::OutOfMemory.into()),
            _ => Ok(()),
        }
    }
}

impl MsixVectors for Counts {
    fn route(&self, vector: u16, to: Msi) -> io::Result<()> {
        MsiRouter::route(self, vector.into(), Some(to))
    }
    fn fire(&self, _: u16) -> io::Result<()> {
        self.pulse()
    }
}

#[derive(Debug)]
struct Pages;

impl PageState for Pages {
    fn is_shared(&self, range: Range<u64>) -> bool {
        range.end <= PRIVATE.start
    }
    fn generation(&self) -> u64 {
        0
    }
    fn discard_private(&self, _: Range<u64>) {}
}

/// A PCI function with MSI-X and nothing else: BAR 1 has the table, and the pending bits at 0x800.
struct MsixFunction {
    config: ConfigSpace,
    control: u8,
    msix: Msix,
}

impl MsixFunction {
    fn new(vectors: Arc<dyn MsixVectors>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            ..Identity::default()
        });
        config.add_bar(1, 0x1000).unwrap();
        let msix = Msix::new(vectors, 3);
        let place = |offset| MsixPlace { bar: 1, offset };
        let body = msix.capability(place(0), place(0x800));
        let at = config.add_capability(Msix::CAPABILITY_ID, &body).unwrap();
        config.set_writable(at + 2, &Msix::CONTROL_WRITABLE.to_le_bytes());
        Self {
            config,
            control: at + 2,
            msix,
        }
    }
}

impl PciDevice for MsixFunction {
    fn name(&self) -> &str {
        "msix-function"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn config_write(&mut self, register: u16, data: &[u8]) {
        self.config.write(register, data);
        self.msix.set_control(self.config.u16_at(self.control));
    }
    fn bar_read(&mut self, _: u8, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(0x800) {
            Some(offset) => self.msix.pending_read(offset, data),
            None => self.msix.table_read(offset, data),
        }
    }
    fn bar_write(&mut self, _: u8, offset: u64, data: &[u8]) {
        self.msix.table_write(offset, data);
    }
}

pub struct Machine {
    pub ports: Bus,
    pub memory: Bus,
    ram: Arc<GuestMemoryMmap>,
    counts: Arc<Counts>,
    serial: Arc<Mutex<Serial>>,
    triggers: Vec<Arc<MsixTrigger>>,
}

impl Machine {
    pub fn new() -> Self {
        let counts = Arc::new(Counts::default());
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        ram.write_slice(&[0x5a; RAM as usize], GuestAddress(0))
            .unwrap();
        let ram = Arc::new(ram);
        let (root, triggers) = pci(&counts);
        let serial = Serial::new(Arc::clone(&counts) as _, Box::new(()));
        let serial = Arc::new(Mutex::new(serial));
        Self {
            ports: ports(&counts, &root, &ram, &serial),
            memory: BusBuilder::default()
                .insert(ECAM.start, 1 << 28, shared(Ecam::new(Arc::clone(&root))))
                .unwrap()
                .insert(
                    WINDOW.start,
                    WINDOW.end - WINDOW.start,
                    shared(MmioWindow::new(root, WINDOW.start)),
                )
                .unwrap()
                .insert(
                    IOAPIC.start,
                    IoApic::LEN,
                    shared(IoApic::new(Arc::clone(&counts) as _)),
                )
                .unwrap()
                .build(),
            ram,
            counts,
            serial,
            triggers,
        }
    }

    /// What comes from outside of the guest: input, and interrupts of devices.
    pub fn disturb(&self) {
        self.serial.lock().unwrap().enqueue(b"input for the guest");
        for (vector, trigger) in (0..).zip(&self.triggers) {
            trigger.trigger(vector).unwrap();
        }
    }

    pub fn private_memory_is_untouched(&self) -> bool {
        let mut data = vec![0; (PRIVATE.end - PRIVATE.start) as usize];
        let at = GuestAddress(PRIVATE.start);
        self.ram.read_slice(&mut data, at).unwrap();
        data.iter().all(|byte| *byte == 0x5a)
    }

    pub fn powered(&self) -> u64 {
        self.counts.power.load(Ordering::Relaxed)
    }

    pub fn interrupts(&self) -> u64 {
        self.counts.interrupts.load(Ordering::Relaxed)
    }
}

fn shared<D: BusDevice + 'static>(device: D) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn pci(counts: &Arc<Counts>) -> (Arc<PciRoot>, Vec<Arc<MsixTrigger>>) {
    let mut root = PciRoot::new();
    let mut triggers = Vec::new();
    root.insert(HostBridge::SLOT, Arc::new(Mutex::new(HostBridge::new())))
        .unwrap();
    root.insert(LpcBridge::SLOT, Arc::new(Mutex::new(LpcBridge::new(0x600))))
        .unwrap();
    for _ in 0..4 {
        let function = MsixFunction::new(Arc::clone(counts) as _);
        triggers.push(function.msix.trigger());
        root.insert_next(Arc::new(Mutex::new(function))).unwrap();
    }
    root.assign_bars(WINDOW.start, WINDOW.end - WINDOW.start)
        .unwrap();
    (Arc::new(root), triggers)
}

fn ports(
    counts: &Arc<Counts>,
    root: &Arc<PciRoot>,
    ram: &Arc<GuestMemoryMmap>,
    serial: &Arc<Mutex<Serial>>,
) -> Bus {
    let power = || Arc::clone(counts) as Arc<dyn PowerSink>;
    let view = DmaView::new(Arc::clone(ram), Arc::new(Pages));
    let files = vec![("etc/file".to_owned(), Arc::new(vec![1_u8; 5000]) as _)];
    let fw_cfg = FwCfg::build(Vec::new(), files, view).unwrap();
    let clock = || Box::new(HostClock::new());
    let config = ConfigMechanism1::new(Arc::clone(root), ResetControl::new(power()));
    let devices: [(u64, u64, SharedDevice); 8] = [
        (0x3f8, Serial::PORTS, Arc::clone(serial) as _),
        (0x70, Rtc::PORTS, shared(Rtc::new(clock()))),
        (0x60, I8042::PORTS, shared(I8042::new(power()))),
        (0x92, Port92::PORTS, shared(Port92::new(power()))),
        (0xcf8, ConfigMechanism1::PORTS, shared(config)),
        (
            0x600,
            PowerBlock::PORTS,
            shared(PowerBlock::new(power(), clock())),
        ),
        (0x510, FwCfg::PORTS, shared(fw_cfg)),
        (0x402, DebugCon::PORTS, shared(DebugCon::new())),
    ];
    let builder = devices
        .into_iter()
        .try_fold(BusBuilder::default(), |builder, (base, len, device)| {
            builder.insert(base, len, device)
        });
    builder.unwrap().build()
}
