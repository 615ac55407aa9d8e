//! The driver's side of a queue for tests and benches: writes rings, right ones and wrong ones.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::cast_possible_truncation,
    reason = "each test uses a part"
)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use tdvmm_devices::dma::DmaView;
use tdvmm_devices::virtio::RingAddresses;
use tdvmm_devices::virtio::queue::QueueResources;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub mod pci;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A descriptor as a driver writes it.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A split ring in guest memory, and the driver's place in it.
#[derive(Debug)]
pub struct Driver {
    pub ram: Arc<GuestMemoryMmap>,
    pub at: RingAddresses,
    pub size: u16,
    pub avail: u16,
    pub seen: u16,
}

pub fn ram(ranges: &[(u64, usize)]) -> Arc<GuestMemoryMmap> {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|(at, len)| (GuestAddress(*at), *len))
        .collect();
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("in memory"))
}

impl Driver {
    /// A ring of `size` entries whose areas begin at `base`, a multiple of 16.
    pub fn new(ram: Arc<GuestMemoryMmap>, base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let at = RingAddresses {
            desc: base,
            avail,
            used,
        };
        Driver {
            ram,
            at,
            size,
            avail: 0,
            seen: 0,
        }
    }

    /// First address behind the areas.
    pub fn end(&self) -> u64 {
        self.at.used + 6 + 8 * u64::from(self.size)
    }

    pub fn resources(&self, index: u16) -> QueueResources {
        QueueResources {
            index,
            size: self.size,
            addresses: self.at,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).expect("in memory")),
        }
    }

    pub fn view(&self) -> DmaView {
        DmaView::all_shared(Arc::clone(&self.ram))
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.ram
            .write_slice(bytes, GuestAddress(at))
            .expect("in memory");
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in memory");
        bytes
    }

    fn word(&self, at: u64) -> u16 {
        let word = self.ram.load(GuestAddress(at), Ordering::Acquire);
        word.expect("in memory")
    }

    /// In one piece: the device may look at any time.
    fn set_word(&self, at: u64, word: u16) {
        let stored = self.ram.store(word, GuestAddress(at), Ordering::Release);
        stored.expect("in memory");
    }

    pub fn desc(&self, index: u16, desc: Desc) {
        self.write(self.at.desc + 16 * u64::from(index), &desc.bytes());
    }

    /// Writes descriptors `first..` as one chain of (address, length, writable).
    pub fn chain(&self, first: u16, parts: &[(u64, u32, bool)]) {
        for (i, (addr, len, writable)) in parts.iter().enumerate() {
            let index = (first + i as u16) % self.size;
            let more = if i + 1 < parts.len() { NEXT } else { 0 };
            self.desc(
                index,
                Desc {
                    addr: *addr,
                    len: *len,
                    flags: more | if *writable { WRITE } else { 0 },
                    next: (index + 1) % self.size,
                },
            );
        }
    }

    pub fn entry(&self, position: u16, head: u16) {
        let slot = u64::from(position % self.size);
        self.set_word(self.at.avail + 4 + 2 * slot, head);
    }

    /// Puts `head` into the available ring and shows it.
    pub fn offer(&mut self, head: u16) {
        self.entry(self.avail, head);
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    pub fn set_avail_index(&self, index: u16) {
        self.set_word(self.at.avail + 2, index);
    }

    pub fn set_avail_flags(&self, flags: u16) {
        self.set_word(self.at.avail, flags);
    }

    pub fn set_used_event(&self, index: u16) {
        self.set_word(self.at.avail + 4 + 2 * u64::from(self.size), index);
    }

    pub fn avail_event(&self) -> u16 {
        self.word(self.at.used + 4 + 8 * u64::from(self.size))
    }

    pub fn used_flags(&self) -> u16 {
        self.word(self.at.used)
    }

    pub fn used_index(&self) -> u16 {
        self.word(self.at.used + 2)
    }

    /// Whether the device has come to `target`; if not, it will interrupt for the next element that it gives back.
    pub fn is_used_up_to(&self, target: u16) -> bool {
        loop {
            let seen = self.used_index();
            self.set_used_event(seen);
            // The device stores its index and then loads the event; here it is the other way round.
            fence(Ordering::SeqCst);
            // What came in between may not have interrupted, as it met the event of before.
            if self.used_index() == seen {
                return seen == target;
            }
        }
    }

    pub fn used_element(&self, position: u16) -> (u32, u32) {
        let at = self.at.used + 4 + 8 * u64::from(position % self.size);
        let id = self.ram.read_obj(GuestAddress(at)).expect("in memory");
        let len = self.ram.read_obj(GuestAddress(at + 4)).expect("in memory");
        (id, len)
    }

    /// The next element that the device gave back.
    pub fn collect(&mut self) -> Option<(u32, u32)> {
        if self.seen == self.used_index() {
            return None;
        }
        let element = self.used_element(self.seen);
        self.seen = self.seen.wrapping_add(1);
        Some(element)
    }
}
