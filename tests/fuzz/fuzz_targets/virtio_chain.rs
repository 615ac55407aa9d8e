//! A ring of nearly legal descriptors, direct and indirect: whatever the queue takes lies in memory, in
//! the right order, and what it does not take is a fault.

#![no_main]

use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tdvmm_devices::dma::DmaView;
use tdvmm_devices::virtio::RingAddresses;
use tdvmm_devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, Queue, QueueResources};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u16 = 16;
const MEMORY: u64 = 0x2_0000;
const RING: RingAddresses = RingAddresses {
    desc: 0x1000,
    avail: 0x1100,
    used: 0x1200,
};
const TABLES: u64 = 0x2000;

/// A descriptor of few bits, so that legal ones are frequent.
#[derive(Arbitrary, Debug)]
struct Desc {
    page: u8,
    offset: u16,
    len: u32,
    /// Selects how much of `len` counts.
    scale: u8,
    flags: u8,
    next: u8,
}

impl Desc {
    /// `tables` says whether it may refer to an indirect table, of which there are four.
    fn bytes(&self, tables: bool) -> [u8; 16] {
        let mut addr = u64::from(self.page % 34) << 12 | u64::from(self.offset & 0xfff);
        let mut len = match self.scale % 8 {
            0 => self.len,
            1 => self.len & 0xffff,
            2 => 0,
            _ => self.len & 0xff,
        };
        let mut flags = u16::from(self.flags & 3);
        if self.flags & 0xf0 == 0xf0 {
            flags = u16::from(self.flags);
        } else if tables && self.flags & 0x70 == 0x70 {
            flags = 4;
            addr = TABLES + u64::from(self.page % 4) * 0x100;
            len = 16 * (len % 17);
        }
        let next = u16::from(self.next % 17);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }
}

#[derive(Arbitrary, Debug)]
struct Recipe {
    main: [Desc; 16],
    tables: Vec<Desc>,
    heads: [u8; 16],
    ahead: u8,
}

fuzz_target!(|recipe: Recipe| {
    static RAM: OnceLock<Arc<GuestMemoryMmap>> = OnceLock::new();
    let half = (MEMORY / 2) as usize;
    let ranges = [(GuestAddress(0), half), (GuestAddress(MEMORY / 2), half)];
    let ram = RAM.get_or_init(|| Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()));
    let put = |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at)).unwrap();
    for (at, desc) in (RING.desc..).step_by(16).zip(&recipe.main) {
        put(at, &desc.bytes(true));
    }
    for (at, desc) in (TABLES..).step_by(16).zip(recipe.tables.iter().take(64)) {
        put(at, &desc.bytes(desc.flags == 0x7f));
    }
    for (at, head) in (RING.avail + 4..).step_by(2).zip(&recipe.heads) {
        put(at, &u16::from(*head % 17).to_le_bytes());
    }
    put(RING.avail + 2, &u16::from(recipe.ahead % 20).to_le_bytes());

    let view = DmaView::all_shared(Arc::clone(ram));
    let resources = QueueResources {
        index: 0,
        size: SIZE,
        addresses: RING,
        kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    };
    let mut queue = Queue::new(&view, &resources, F_EVENT_IDX | F_INDIRECT_DESC).unwrap();
    let mut chain = queue.new_chain();
    if queue.begin_batch().is_err() {
        assert!(recipe.ahead % 20 > 16);
        return;
    }
    while let Ok(true) = queue.take(&mut chain) {
        let mut total = 0;
        for segment in chain.readable().iter().chain(chain.writable()) {
            let end = segment.guest() + u64::from(segment.len());
            assert!(segment.len() > 0 && end <= MEMORY);
            assert!(segment.guest() >= MEMORY / 2 || end <= MEMORY / 2);
            total += u64::from(segment.len());
        }
        let (given, wanted) = (chain.readable_len(), chain.writable_len());
        assert_eq!(total, u64::from(given) + u64::from(wanted));
        let mut bytes = [0; 64];
        assert!(chain.read_at(0, &mut bytes) as u64 <= u64::from(given));
        queue.add_used(chain.head(), wanted);
    }
    let _ = queue.publish();
    let _ = queue.enable_kicks();
});
