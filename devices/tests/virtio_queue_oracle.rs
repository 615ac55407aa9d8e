//! Differential test: the queue and `virtio-queue` on the same random rings, right and wrong ones.
//!
//! `virtio-queue` ends a bad chain early and does not look at the buffers, where the queue faults. So a
//! chain is good if the oracle walked it to a descriptor without NEXT, in the right order, in memory and shared;
//! the queue must take exactly the good ones, with the same segments.
#![cfg(test)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of the test")]

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use tdvmm_devices::dma::{DmaView, PageState};
use tdvmm_devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, Queue};
use virtio_queue::{Queue as Oracle, QueueOwnedT, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

mod driver;
use driver::{Desc, Driver, INDIRECT, NEXT, WRITE, ram};

/// Two regions that touch, then a hole, then a third.
const REGIONS: [(u64, usize); 3] = [(0, 0x1_0000), (0x1_0000, 0x1_0000), (0x4_0000, 0x1000)];
const TABLES: u64 = 0x8000;
const TABLE_LEN: u64 = 0x100;

fn desc() -> impl Strategy<Value = Desc> {
    let addr = prop_oneof![
        8 => 0x2000u64..0x8000,
        2 => Just(0xfff0u64),
        1 => 0x1_ff00u64..0x4_0100,
        1 => any::<u64>(),
    ];
    let len =
        prop_oneof![8 => 1u32..0x400, 1 => Just(0), 1 => 0x8000u32..0x1_1000, 1 => any::<u32>()];
    let flags = prop_oneof![
        4 => Just(NEXT),
        4 => Just(NEXT | WRITE),
        2 => Just(WRITE),
        1 => Just(0),
        1 => any::<u16>().prop_map(|flags| flags & !INDIRECT),
    ];
    (addr, len, flags, 0u16..18).prop_map(|(addr, len, flags, next)| Desc {
        addr,
        len,
        flags,
        next,
    })
}

/// Descriptors of a table: mostly each points to the one behind it, so that chains get long.
fn table() -> impl Strategy<Value = Vec<Desc>> {
    prop::collection::vec((desc(), 0u8..10), 16).prop_map(|list| {
        let chained = list
            .into_iter()
            .zip(1u16..)
            .map(|((mut desc, luck), next)| {
                if luck > 0 {
                    desc.next = next;
                }
                desc
            });
        chained.collect()
    })
}

/// Turns some descriptors of the main table into references to an indirect one.
fn indirect() -> impl Strategy<Value = Vec<(usize, u64, u32)>> {
    let len = prop_oneof![6 => (1u32..=16).prop_map(|n| n * 16), 1 => 0u32..256];
    prop::collection::vec((0usize..16, 0u64..4, len), 0..4)
}

fn oracle(driver: &Driver) -> Oracle {
    let mut queue = Oracle::new(driver.size).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(driver.at.desc))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(driver.at.avail))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(driver.at.used))
        .unwrap();
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

/// (address, length, writable) cut where regions meet.
fn cut(addr: u64, len: u32, writable: bool) -> Vec<(u64, u32, bool)> {
    match u32::try_from(0x1_0000u64.saturating_sub(addr)) {
        Ok(first) if first > 0 && first < len => {
            vec![(addr, first, writable), (0x1_0000, len - first, writable)]
        }
        _ => vec![(addr, len, writable)],
    }
}

/// All from this address on is private to the guest.
#[derive(Debug)]
struct PrivateFrom(u64);

impl PageState for PrivateFrom {
    fn is_shared(&self, range: Range<u64>) -> bool {
        range.end <= self.0
    }
    fn generation(&self) -> u64 {
        0
    }
    fn discard_private(&self, _: Range<u64>) {}
}

/// The chain as the oracle sees it, or `None` where a device must not serve it.
fn expected(
    driver: &Driver,
    chain: virtio_queue::DescriptorChain<&vm_memory::GuestMemoryMmap>,
    private_from: u64,
) -> Option<Vec<(u64, u32, bool)>> {
    let list: Vec<_> = chain.collect();
    if list.last()?.has_next() {
        return None;
    }
    let mut parts = Vec::new();
    let mut writable = false;
    for desc in list.into_iter().filter(|desc| desc.len() > 0) {
        let in_memory = driver.ram.check_range(desc.addr(), desc.len() as usize);
        let shared = desc
            .addr()
            .raw_value()
            .checked_add(u64::from(desc.len()))
            .is_some_and(|end| end <= private_from);
        if !in_memory || !shared || (writable && !desc.is_write_only()) {
            return None;
        }
        writable = desc.is_write_only();
        parts.extend(cut(desc.addr().raw_value(), desc.len(), writable));
    }
    Some(parts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_ring_is_walked_as_the_oracle_walks_it(
        size_log in 0u32..5,
        main in table(),
        tables in prop::collection::vec(table(), 4),
        references in indirect(),
        heads in prop::collection::vec(prop_oneof![12 => 0u16..16, 1 => any::<u16>()], 16),
        ahead in 0u16..17,
        private_from in prop_oneof![2 => Just(u64::MAX), 1 => 0x9000u64..0x4_2000],
    ) {
        let size = 1u16 << size_log;
        let driver = Driver::new(ram(&REGIONS), 0x1000, size);
        for (index, desc) in main.iter().enumerate().take(usize::from(size)) {
            driver.desc(index as u16, *desc);
        }
        for (table, at) in tables.iter().zip((TABLES..).step_by(TABLE_LEN as usize)) {
            for (desc, at) in table.iter().zip((at..).step_by(16)) {
                driver.write(at, &desc.bytes());
            }
        }
        for (index, table, len) in references {
            if index < usize::from(size) {
                let addr = TABLES + table * TABLE_LEN;
                driver.desc(index as u16, Desc { addr, len, flags: INDIRECT, next: 0 });
            }
        }
        for (position, head) in heads.iter().enumerate().take(usize::from(size)) {
            driver.entry(position as u16, head % size.max(2));
        }
        driver.set_avail_index(ahead);

        let features = F_EVENT_IDX | F_INDIRECT_DESC;
        let view = match private_from {
            u64::MAX => driver.view(),
            from => DmaView::new(Arc::clone(&driver.ram), Arc::new(PrivateFrom(from))),
        };
        let mut queue = Queue::new(&view, &driver.resources(0), features).unwrap();
        let mut oracle = oracle(&driver);
        let mut chain = queue.new_chain();
        let batch = queue.begin_batch();
        prop_assert_eq!(batch.is_ok(), ahead <= size);
        prop_assert_eq!(oracle.iter(&*driver.ram).is_ok(), ahead <= size);
        if batch.is_err() {
            return Ok(());
        }
        for _ in 0..ahead {
            let theirs = oracle.pop_descriptor_chain(&*driver.ram).unwrap();
            let head = theirs.head_index();
            let theirs = expected(&driver, theirs, private_from);
            let ours = queue.take(&mut chain);
            prop_assert_eq!(ours.is_ok(), theirs.is_some(), "{:?} {:?}", ours, theirs);
            let Some(theirs) = theirs else { break };
            let read = chain.readable().iter().map(|s| (s.guest(), s.len(), false));
            let write = chain.writable().iter().map(|s| (s.guest(), s.len(), true));
            let ours: Vec<_> = read.chain(write).collect();
            prop_assert_eq!(chain.head(), head);
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn used_ring_and_notifications_are_those_of_the_oracle(
        size_log in 0u32..5,
        event_idx: bool,
        flags in 0u16..2,
        rounds in prop::collection::vec(
            (1u16..17, prop::collection::vec(any::<u32>(), 16), -3i16..20),
            1..40,
        ),
    ) {
        let size = 1u16 << size_log;
        let [mut left, mut right] = [(); 2].map(|()| Driver::new(ram(&REGIONS), 0x1000, size));
        let features = if event_idx { F_EVENT_IDX } else { 0 };
        let mut queue = Queue::new(&left.view(), &left.resources(0), features).unwrap();
        let mut oracle = oracle(&right);
        oracle.set_event_idx(event_idx);
        let mut chain = queue.new_chain();
        for (count, lengths, event) in rounds {
            let count = count.min(size);
            for driver in [&mut left, &mut right] {
                driver.set_avail_flags(flags);
                let wish = driver.avail.wrapping_add_signed(event);
                driver.set_used_event(wish);
                for head in 0..count {
                    driver.chain(head, &[(0x4000, 1, true)]);
                    driver.offer(head);
                }
            }
            queue.begin_batch().unwrap();
            for len in lengths.iter().take(usize::from(count)) {
                prop_assert!(queue.take(&mut chain).unwrap());
                queue.add_used(chain.head(), *len);
                let theirs = oracle.pop_descriptor_chain(&*right.ram).unwrap();
                oracle.add_used(&*right.ram, theirs.head_index(), *len).unwrap();
            }
            let ours = queue.publish();
            let theirs = oracle.needs_notification(&*right.ram).unwrap();
            // Without EVENT_IDX the oracle leaves the driver's flag to its caller.
            prop_assert_eq!(ours, theirs && (event_idx || flags == 0));
            let theirs = oracle.enable_notification(&*right.ram).unwrap();
            prop_assert_eq!(queue.enable_kicks(), theirs);
            let len = (left.end() - left.at.desc) as usize;
            prop_assert_eq!(left.read(left.at.desc, len), right.read(right.at.desc, len));
        }
    }
}
