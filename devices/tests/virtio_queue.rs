//! The queue by itself: what a correct driver sees, and a fault for everything else.
#![cfg(test)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tdvmm_devices::dma::{DmaView, PageState};
use tdvmm_devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, Queue, QueueFault};

mod driver;
use driver::{Desc, Driver, INDIRECT, NEXT, WRITE, ram};

const FEATURES: u64 = F_EVENT_IDX | F_INDIRECT_DESC;

fn driver() -> Driver {
    Driver::new(ram(&[(0, 0x2_0000)]), 0x1000, 8)
}

fn queue(driver: &Driver, features: u64) -> Queue {
    Queue::new(&driver.view(), &driver.resources(0), features).unwrap()
}

fn take_one(driver: &Driver) -> Result<Vec<(u64, u32)>, QueueFault> {
    let mut queue = queue(driver, FEATURES);
    let mut chain = queue.new_chain();
    queue.begin_batch()?;
    queue.take(&mut chain)?;
    let segments = chain.readable().iter().chain(chain.writable());
    Ok(segments.map(|s| (s.guest(), s.len())).collect())
}

#[test]
fn chain_is_walked_and_given_back() {
    let mut driver = driver();
    driver.chain(
        2,
        &[(0x4000, 16, false), (0x5000, 32, true), (0x6000, 1, true)],
    );
    driver.write(0x4000, b"sixteen bytes in");
    driver.offer(2);
    let mut queue = queue(&driver, FEATURES);
    let mut chain = queue.new_chain();
    assert_eq!(queue.begin_batch(), Ok(1));
    assert_eq!(queue.take(&mut chain), Ok(true));
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 33));
    let mut bytes = [0; 20];
    assert_eq!(chain.read_at(8, &mut bytes), 8);
    assert_eq!(&bytes[..8], b"bytes in");
    assert_eq!(chain.write_at(31, b"abcd"), 2);
    assert_eq!(driver.read(0x501f, 1), b"a");
    assert_eq!(driver.read(0x6000, 2), b"b\0");
    queue.add_used(chain.head(), 33);
    assert_eq!(driver.used_index(), 0);
    assert!(queue.publish());
    assert_eq!(driver.collect(), Some((2, 33)));
    assert_eq!(queue.take(&mut chain), Ok(false));
    assert!(!queue.enable_kicks());
    assert_eq!(driver.avail_event(), 1);
}

#[test]
fn indices_that_wrap_lose_no_chain() {
    let mut driver = driver();
    let mut queue = queue(&driver, FEATURES);
    let mut chain = queue.new_chain();
    for round in 0..70_000u32 {
        let head = (round % 8) as u16;
        driver.chain(head, &[(0x4000, 1 + round % 7, true)]);
        driver.offer(head);
        assert_eq!(queue.begin_batch(), Ok(1));
        assert_eq!(queue.take(&mut chain), Ok(true));
        queue.add_used(head, chain.writable_len());
        driver.set_used_event(driver.seen);
        assert!(queue.publish());
        assert_eq!(driver.collect(), Some((u32::from(head), 1 + round % 7)));
    }
}

#[test]
fn interrupt_comes_only_when_the_driver_asks_for_it() {
    for (features, flags, event, expected) in [
        (0, 0, 77, true),
        (0, 1, 0, false),
        (F_EVENT_IDX, 1, 1, true),
        (F_EVENT_IDX, 0, 2, false),
        (F_EVENT_IDX, 0, 0, true),
        (F_EVENT_IDX, 0, u16::MAX, false),
    ] {
        let mut driver = driver();
        driver.chain(0, &[(0x4000, 1, true)]);
        driver.offer(0);
        driver.offer(0);
        driver.set_avail_flags(flags);
        driver.set_used_event(event);
        let mut queue = queue(&driver, features);
        let mut chain = queue.new_chain();
        queue.begin_batch().unwrap();
        while queue.take(&mut chain).unwrap() {
            queue.add_used(0, 0);
        }
        assert_eq!(queue.publish(), expected, "{features:#x} {flags} {event}");
        assert!(!queue.publish());
    }
}

#[test]
fn kicks_without_event_index_are_switched_by_the_flag() {
    let mut driver = driver();
    let mut queue = queue(&driver, 0);
    queue.disable_kicks();
    assert_eq!(driver.used_flags(), 1);
    driver.offer(0);
    assert!(queue.enable_kicks());
    assert_eq!(driver.used_flags(), 0);
}

#[test]
fn available_index_beyond_the_ring_is_a_fault() {
    let driver = driver();
    let mut queue = queue(&driver, FEATURES);
    driver.set_avail_index(8);
    assert_eq!(queue.begin_batch(), Ok(8));
    driver.set_avail_index(9);
    assert!(matches!(
        queue.begin_batch(),
        Err(QueueFault::AvailIndex { index: 9, .. })
    ));
    driver.set_avail_index(u16::MAX);
    assert!(queue.begin_batch().is_err());
}

#[test]
fn more_in_flight_than_the_ring_holds_is_a_fault() {
    let mut driver = driver();
    driver.chain(0, &[(0x4000, 1, true)]);
    let mut queue = queue(&driver, FEATURES);
    let mut chain = queue.new_chain();
    for _ in 0..8 {
        driver.offer(0);
        queue.begin_batch().unwrap();
        assert_eq!(queue.take(&mut chain), Ok(true));
    }
    driver.offer(0);
    assert!(matches!(
        queue.begin_batch(),
        Err(QueueFault::AvailIndex { in_flight: 8, .. })
    ));
}

#[test]
fn head_and_next_outside_of_the_table_are_faults() {
    let mut driver = driver();
    driver.offer(8);
    assert_eq!(take_one(&driver), Err(QueueFault::Descriptor(8)));
    let mut driver = self::driver();
    let desc = Desc {
        addr: 0x4000,
        len: 1,
        flags: NEXT,
        next: 200,
    };
    driver.desc(0, desc);
    driver.offer(0);
    assert_eq!(take_one(&driver), Err(QueueFault::Descriptor(200)));
}

#[test]
fn chain_that_bites_its_tail_is_a_fault() {
    let mut driver = driver();
    let desc = Desc {
        addr: 0x4000,
        len: 1,
        flags: NEXT,
        next: 0,
    };
    driver.desc(0, desc);
    driver.offer(0);
    assert_eq!(take_one(&driver), Err(QueueFault::TooLong));
}

#[test]
fn chain_of_the_whole_table_is_taken() {
    let mut driver = driver();
    let parts: Vec<_> = (0..8).map(|i| (0x4000 + i * 16, 16, i > 3)).collect();
    driver.chain(0, &parts);
    driver.offer(0);
    assert_eq!(take_one(&driver).unwrap().len(), 8);
}

#[test]
fn chain_of_4_gib_is_a_fault() {
    let mut driver = Driver::new(ram(&[(0, 3 << 30)]), 0x1000, 8);
    driver.chain(0, &[(0x4000, 2 << 30, true), (0x4000, 2 << 30, true)]);
    driver.offer(0);
    assert_eq!(take_one(&driver), Err(QueueFault::TooLong));
}

#[test]
fn readable_behind_writable_is_a_fault() {
    let mut driver = driver();
    driver.chain(0, &[(0x4000, 1, true), (0x4000, 1, false)]);
    driver.offer(0);
    assert_eq!(take_one(&driver), Err(QueueFault::Order));
}

#[test]
fn empty_descriptors_are_skipped_wherever_they_point() {
    let mut driver = driver();
    driver.chain(
        0,
        &[
            (u64::MAX, 0, true),
            (0x4000, 1, false),
            (7, 0, false),
            (0x4001, 1, true),
        ],
    );
    driver.offer(0);
    assert_eq!(take_one(&driver), Ok(vec![(0x4000, 1), (0x4001, 1)]));
}

#[test]
fn memory_that_is_not_there_is_a_fault() {
    for (addr, len) in [
        (0x2_0000, 1),
        (0x1_ffff, 2),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (1 << 63, 16),
    ] {
        let mut driver = driver();
        driver.chain(0, &[(addr, len, true)]);
        driver.offer(0);
        let len = u64::from(len);
        assert_eq!(take_one(&driver), Err(QueueFault::Memory { addr, len }));
    }
}

#[test]
fn indirect_table_ends_the_chain() {
    let mut driver = driver();
    let table = |i: u64, flags, next| Desc {
        addr: 0x5000 + i,
        len: 1,
        flags,
        next,
    };
    // Unaligned on purpose: an indirect table may be.
    driver.write(0x4001, &table(0, NEXT, 2).bytes());
    driver.write(0x4011, &table(1, 0, 9).bytes());
    driver.write(0x4021, &table(2, NEXT | WRITE, 1).bytes());
    let mut entry = Desc {
        addr: 0x4001,
        len: 48,
        flags: INDIRECT,
        next: 0,
    };
    driver.desc(0, entry);
    driver.offer(0);
    assert_eq!(take_one(&driver), Err(QueueFault::Order));
    driver.write(0x4011, &table(1, WRITE, 9).bytes());
    assert_eq!(
        take_one(&driver),
        Ok(vec![(0x5000, 1), (0x5002, 1), (0x5001, 1)])
    );
    // Not negotiated.
    let mut queue = queue(&driver, F_EVENT_IDX);
    let mut chain = queue.new_chain();
    queue.begin_batch().unwrap();
    assert_eq!(queue.take(&mut chain), Err(QueueFault::Indirect(48)));
    // Continued, empty, of a wrong length, too long, nested.
    for (flags, len) in [
        (INDIRECT | NEXT, 48),
        (INDIRECT, 0),
        (INDIRECT, 40),
        (INDIRECT, 16400),
    ] {
        entry.flags = flags;
        entry.len = len;
        driver.desc(0, entry);
        assert_eq!(take_one(&driver), Err(QueueFault::Indirect(len)));
    }
    entry.flags = INDIRECT;
    entry.len = 48;
    driver.desc(0, entry);
    driver.write(0x4021, &table(2, INDIRECT, 1).bytes());
    assert_eq!(take_one(&driver), Err(QueueFault::Indirect(48)));
    driver.write(0x4001, &table(0, NEXT, 3).bytes());
    assert_eq!(take_one(&driver), Err(QueueFault::Descriptor(3)));
    driver.write(0x4001, &table(0, NEXT, 0).bytes());
    assert_eq!(take_one(&driver), Err(QueueFault::TooLong));
}

#[test]
fn ring_that_cannot_be_served_is_refused() {
    let driver = driver();
    let refused = |change: fn(&mut tdvmm_devices::virtio::queue::QueueResources)| {
        let mut resources = driver.resources(0);
        change(&mut resources);
        Queue::new(&driver.view(), &resources, 0).unwrap_err()
    };
    assert_eq!(refused(|r| r.size = 0), QueueFault::Size(0));
    assert_eq!(refused(|r| r.size = 6), QueueFault::Size(6));
    assert_eq!(refused(|r| r.size = 2048), QueueFault::Size(2048));
    for fault in [
        refused(|r| r.addresses.desc += 8),
        refused(|r| r.addresses.avail += 1),
        refused(|r| r.addresses.used += 2),
        refused(|r| r.addresses.desc = 0x2_0000 - 16),
        refused(|r| r.addresses.used = u64::MAX - 3),
    ] {
        assert!(matches!(fault, QueueFault::Memory { .. }), "{fault}");
    }
}

/// Pages that a test turns private.
#[derive(Debug, Default)]
struct Pages {
    private_from: AtomicU64,
    generation: AtomicU64,
    discarded: AtomicU64,
}

impl Pages {
    fn make_private_from(&self, addr: u64) {
        self.private_from.store(addr, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl PageState for Pages {
    fn is_shared(&self, range: Range<u64>) -> bool {
        range.end <= self.private_from.load(Ordering::Relaxed)
    }
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
    fn discard_private(&self, range: Range<u64>) {
        self.discarded
            .fetch_add(range.end - range.start, Ordering::Relaxed);
    }
}

#[test]
fn ring_made_private_faults_at_the_next_batch() {
    let driver = driver();
    let pages = Arc::new(Pages::default());
    pages.make_private_from(0x2_0000);
    let view = DmaView::new(Arc::clone(&driver.ram), pages.clone());
    let mut queue = Queue::new(&view, &driver.resources(0), FEATURES).unwrap();
    assert_eq!(queue.begin_batch(), Ok(0));
    // Pages behind the ring: nothing to it.
    pages.make_private_from(driver.end());
    assert_eq!(queue.begin_batch(), Ok(0));
    pages.make_private_from(driver.end() - 1);
    assert_eq!(queue.begin_batch(), Err(QueueFault::RingPrivate));
    assert!(pages.discarded.load(Ordering::Relaxed) > 0);
    assert_eq!(queue.begin_batch(), Err(QueueFault::RingPrivate));
}

#[test]
fn ring_made_private_while_served_is_given_up_when_the_queue_ends() {
    let driver = driver();
    let pages = Arc::new(Pages::default());
    pages.make_private_from(0x2_0000);
    let view = DmaView::new(Arc::clone(&driver.ram), pages.clone());
    let open = || Queue::new(&view, &driver.resources(0), FEATURES).unwrap();
    let (before, mut during) = (open(), open());
    drop(before);
    assert_eq!(pages.discarded.load(Ordering::Relaxed), 0);
    during.begin_batch().unwrap();
    pages.make_private_from(driver.end() - 1);
    during.disable_kicks();
    drop(during);
    assert!(pages.discarded.load(Ordering::Relaxed) > 0);
}

#[test]
fn segment_made_private_during_io_is_discarded_and_faults() {
    let mut driver = driver();
    driver.chain(0, &[(0x4000, 16, false), (0x8000, 512, true)]);
    driver.offer(0);
    let pages = Arc::new(Pages::default());
    pages.make_private_from(0x2_0000);
    let view = DmaView::new(Arc::clone(&driver.ram), pages.clone());
    let mut queue = Queue::new(&view, &driver.resources(0), FEATURES).unwrap();
    let mut chain = queue.new_chain();
    queue.begin_batch().unwrap();
    queue.take(&mut chain).unwrap();
    pages.make_private_from(0x1_0000);
    assert_eq!(chain.check_after_io(), Ok(()));
    pages.make_private_from(0x8000);
    let fault = QueueFault::Memory {
        addr: 0x8000,
        len: 512,
    };
    assert_eq!(chain.check_after_io(), Err(fault));
    assert_eq!(pages.discarded.load(Ordering::Relaxed), 512);
    // A new request there is refused when it is walked.
    driver.offer(0);
    queue.begin_batch().unwrap();
    assert_eq!(queue.take(&mut chain), Err(fault));
}
