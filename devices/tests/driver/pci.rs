//! A driver of a virtio PCI function: finds the areas by their capabilities, sets the device up, and
//! sees interrupts and where kicks are placed.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::cast_possible_truncation,
    reason = "each test uses a part"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tdvmm_devices::dma::DmaView;
use tdvmm_devices::io_thread::IoThread;
use tdvmm_devices::irq::Msi;
use tdvmm_devices::pci::{MsixVectors, PciDevice};
use tdvmm_devices::virtio::device::VirtioDevice;
use tdvmm_devices::virtio::transport::{MemoryAccess, NotifyRegistry, VirtioPciDevice, Wiring};
use vmm_sys_util::eventfd::EventFd;

use super::Driver;

pub const BAR_BASE: u32 = 0x8000_0000;
/// No test waits longer for something that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Counts the interrupts of each vector.
#[derive(Debug, Default)]
pub struct Vectors {
    fired: Mutex<BTreeMap<u16, u64>>,
    bell: Condvar,
}

impl MsixVectors for Vectors {
    fn route(&self, _: u16, _: Msi) -> io::Result<()> {
        Ok(())
    }
    fn fire(&self, vector: u16) -> io::Result<()> {
        *self
            .fired
            .lock()
            .expect("works in a test")
            .entry(vector)
            .or_default() += 1;
        self.bell.notify_all();
        Ok(())
    }
}

impl Vectors {
    pub fn count(&self, vector: u16) -> u64 {
        self.fired
            .lock()
            .expect("works in a test")
            .get(&vector)
            .copied()
            .unwrap_or(0)
    }

    /// Waits until `vector` has fired `count` times in all.
    pub fn wait_for(&self, vector: u16, count: u64) {
        let fired = self.fired.lock().expect("works in a test");
        let waiting =
            |fired: &mut BTreeMap<u16, u64>| fired.get(&vector).copied().unwrap_or(0) < count;
        let (_fired, late) = self
            .bell
            .wait_timeout_while(fired, PATIENCE, waiting)
            .expect("works in a test");
        assert!(
            !late.timed_out(),
            "vector {vector} has not fired {count} times"
        );
    }

    /// Waits until `done` holds, looking again after each interrupt.
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) {
        let mut fired = self.fired.lock().expect("works in a test");
        while !done() {
            let (next, late) = self
                .bell
                .wait_timeout(fired, PATIENCE)
                .expect("works in a test");
            assert!(!late.timed_out(), "no interrupt came");
            fired = next;
        }
    }
}

/// Where kicks are placed, by queue.
#[derive(Debug, Default)]
pub struct Places(pub Mutex<BTreeMap<u16, u64>>);

impl NotifyRegistry for Places {
    fn place(&self, queue: u16, _: &EventFd, from: Option<u64>, to: Option<u64>) {
        let mut places = self.0.lock().expect("works in a test");
        assert_eq!(places.get(&queue).copied(), from);
        match to {
            Some(to) => places.insert(queue, to),
            None => places.remove(&queue),
        };
    }
}

/// Offsets in the common configuration (virtio 1.3, 4.1.4.3).
pub mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// A function and the machine around it.
pub struct Card {
    pub function: VirtioPciDevice,
    pub vectors: Arc<Vectors>,
    pub places: Arc<Places>,
    /// Offsets of the areas in the BAR by `cfg_type`.
    pub areas: BTreeMap<u8, u64>,
    pub table: u64,
    /// Dropped last.
    pub threads: Vec<IoThread>,
}

impl Card {
    pub fn new(device: Box<dyn VirtioDevice>, memory: DmaView) -> Self {
        Self::with_access(device, memory, MemoryAccess::Direct, 1)
    }

    pub fn with_access(
        device: Box<dyn VirtioDevice>,
        memory: DmaView,
        access: MemoryAccess,
        threads: usize,
    ) -> Self {
        let threads: Vec<_> = (0..threads)
            .map(|_| IoThread::spawn("tdvmm-io", || ()).expect("works in a test"))
            .collect();
        let (vectors, places) = (Arc::new(Vectors::default()), Arc::new(Places::default()));
        let wiring = Wiring {
            memory,
            vectors: vectors.clone(),
            notify: places.clone(),
            io_threads: threads.iter().map(IoThread::handle).collect(),
            access,
        };
        let mut function = VirtioPciDevice::new(device, wiring).expect("works in a test");
        function.config_mut().place_bar(0, BAR_BASE);
        function.bars_moved();
        let mut card = Card {
            function,
            vectors,
            places,
            areas: BTreeMap::new(),
            table: 0,
            threads,
        };
        card.find_areas();
        card.enable_msix();
        card
    }

    fn find_areas(&mut self) {
        let config = self.function.config();
        let mut at = config.u16_at(0x34) as u8;
        while at != 0 {
            let (id, next) = (config.u16_at(at) as u8, (config.u16_at(at) >> 8) as u8);
            match id {
                0x09 => {
                    let kind = (config.u16_at(at + 2) >> 8) as u8;
                    self.areas.insert(kind, u64::from(config.u32_at(at + 8)));
                }
                0x11 => self.table = u64::from(config.u32_at(at + 4) & !7),
                _ => {}
            }
            at = next;
        }
    }

    fn enable_msix(&mut self) {
        let config = self.function.config();
        let mut at = config.u16_at(0x34) as u8;
        while config.u16_at(at) as u8 != 0x11 {
            at = (config.u16_at(at) >> 8) as u8;
        }
        let count = (config.u16_at(at + 2) & 0x7ff) + 1;
        for vector in 0..count {
            let entry = self.table + 16 * u64::from(vector);
            self.function
                .bar_write(0, entry, &0xfee0_0000_u32.to_le_bytes());
            self.function
                .bar_write(0, entry + 8, &u32::from(vector).to_le_bytes());
            self.function.bar_write(0, entry + 12, &[0; 4]);
        }
        self.function
            .config_write(u16::from(at) + 2, &0x8000_u16.to_le_bytes());
    }

    /// Masks or unmasks a vector.
    pub fn mask(&mut self, vector: u16, masked: bool) {
        let control = self.table + 16 * u64::from(vector) + 12;
        let bit = u32::from(masked);
        self.function.bar_write(0, control, &bit.to_le_bytes());
    }

    pub fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        let base = self.areas[&1];
        self.function.bar_read(0, base + offset, &mut data);
        data
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let base = self.areas[&1];
        self.function.bar_write(0, base + offset, data);
    }

    pub fn read_device<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        let base = self.areas[&4];
        self.function.bar_read(0, base + offset, &mut data);
        data
    }

    pub fn status(&mut self) -> u8 {
        let [status] = self.read(common::STATUS);
        status
    }

    pub fn set_status(&mut self, status: u8) {
        self.write(common::STATUS, &[status]);
    }

    pub fn offered(&mut self) -> u64 {
        let mut features = 0;
        for half in 0..2u32 {
            self.write(common::DEVICE_FEATURE_SELECT, &half.to_le_bytes());
            let bits = u32::from_le_bytes(self.read(common::DEVICE_FEATURE));
            features |= u64::from(bits) << (32 * half);
        }
        features
    }

    pub fn accept(&mut self, features: u64) {
        for half in 0..2u32 {
            self.write(common::DRIVER_FEATURE_SELECT, &half.to_le_bytes());
            let bits = (features >> (32 * half)) as u32;
            self.write(common::DRIVER_FEATURE, &bits.to_le_bytes());
        }
    }

    /// Queue `index` uses vector `index + 1`.
    pub fn enable_queue(&mut self, index: u16, ring: &Driver) {
        self.write(common::QUEUE_SELECT, &index.to_le_bytes());
        self.write(common::QUEUE_SIZE, &ring.size.to_le_bytes());
        self.write(common::QUEUE_VECTOR, &(index + 1).to_le_bytes());
        self.write(common::QUEUE_DESC, &ring.at.desc.to_le_bytes());
        self.write(common::QUEUE_DRIVER, &ring.at.avail.to_le_bytes());
        // In halves, as Linux does.
        let (low, high) = (ring.at.used as u32, (ring.at.used >> 32) as u32);
        self.write(common::QUEUE_DEVICE, &low.to_le_bytes());
        self.write(common::QUEUE_DEVICE + 4, &high.to_le_bytes());
        self.write(common::QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    /// Brings the device up with all of `features` that it offers.
    pub fn start(&mut self, features: u64, rings: &[&Driver]) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        let accepted = self.offered() & features;
        self.accept(accepted);
        self.set_status(11);
        assert_eq!(self.status(), 11, "features are acceptable");
        self.write(common::CONFIG_VECTOR, &0u16.to_le_bytes());
        for (index, ring) in (0..).zip(rings) {
            self.enable_queue(index, ring);
        }
        self.set_status(15);
    }

    pub fn kick(&mut self, queue: u16) {
        let at = self.areas[&2] + 4 * u64::from(queue);
        self.function.bar_write(0, at, &queue.to_le_bytes());
    }

    /// Waits until the device has given back `count` more, and collects them.
    pub fn collect(&self, ring: &mut Driver, count: usize) -> Vec<(u32, u32)> {
        let target = ring.seen.wrapping_add(count as u16);
        self.vectors.wait_until(|| ring.is_used_up_to(target));
        std::iter::from_fn(|| ring.collect()).collect()
    }
}
