//! No allocation per request, counted by the allocator itself.
#![cfg(test)]
#![expect(unsafe_code, reason = "an allocator is")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tdvmm_devices::virtio::block::{Block, BlockOptions, DiskOptions, ImageFormat};

mod driver;
use driver::pci::Card;
use driver::{Driver, ram};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: all calls go on to `System` as they came, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above; `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of `rounds` rounds of 32 requests each, those of the driver's side among them.
fn allocations(card: &mut Card, ring: &mut Driver, rounds: u64) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..rounds {
        for n in 0..32 {
            ring.offer(n * 4);
        }
        card.kick(0);
        let target = ring.avail;
        card.vectors.wait_until(|| ring.is_used_up_to(target));
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// One test, as it counts for the whole process.
#[test]
fn disk_allocates_nothing_for_a_request_with_the_page_cache_or_without() {
    for direct in [false, true] {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        std::io::Write::write_all(&mut image.as_file(), &[1; 1 << 18]).unwrap();
        image.as_file().sync_all().unwrap();
        let disk = DiskOptions {
            path: image.path().to_owned(),
            read_only: false,
            direct,
            format: ImageFormat::Unsaid,
            backing_files: false,
        };
        let block = Block::open(&disk, &BlockOptions::default()).unwrap();
        let ram = ram(&[(0, 0x20_0000)]);
        let mut ring = Driver::new(Arc::clone(&ram), 0x1000, 128);
        let mut card = Card::new(Box::new(block), ring.view());
        card.start(u64::MAX, &[&ring]);
        for n in 0..32u16 {
            let header = 0x8000 + 16 * u64::from(n);
            ring.write(header, &[0; 16]);
            ring.write(header + 8, &n.to_le_bytes());
            let data = 0x1_0000 + 4096 * u64::from(n);
            ring.chain(
                n * 4,
                &[(header, 16, false), (data, 4096, true), (0x9000, 1, true)],
            );
        }
        // First the lists grow to what they need.
        allocations(&mut card, &mut ring, 50);
        let few = allocations(&mut card, &mut ring, 10);
        let many = allocations(&mut card, &mut ring, 500);
        assert_eq!((few, many), (0, 0), "direct: {direct}");
    }
}
