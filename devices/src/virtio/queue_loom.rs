//! The queue against a driver on another thread, in every interleaving and with every value that the
//! memory model lets a load return. It is the production code: only the atomics are loom's.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p tdvmm-devices --lib --release queue_loom`

use std::sync::{Arc as StdArc, OnceLock};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{F_EVENT_IDX, Queue};
use crate::dma::DmaView;
use crate::virtio::ring::{Ring, RingWords};
use crate::virtio::segment::GuestMap;

const SIZE: u16 = 2;
const INDEX: usize = 1;
const ENTRIES: usize = 2;
const USED_EVENT: usize = 4;

fn words() -> &'static RingWords {
    let n = usize::from(SIZE);
    let double = |_| AtomicU64::new(0);
    Box::leak(Box::new(RingWords {
        desc: (0..n * 2).map(double).collect(),
        avail: (0..n + 3).map(|_| AtomicU16::new(0)).collect(),
        used: (0..2).map(|_| AtomicU16::new(0)).collect(),
        used_elements: (0..n * 2).map(|_| AtomicU32::new(0)).collect(),
        avail_event: AtomicU16::new(0),
    }))
}

fn queue(words: &'static RingWords, features: u64) -> Queue {
    static MEMORY: OnceLock<DmaView> = OnceLock::new();
    let view = MEMORY.get_or_init(|| {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        DmaView::all_shared(StdArc::new(ram))
    });
    Queue::over(
        Ring::of_words(words, SIZE),
        GuestMap::new(view),
        0,
        features,
    )
}

/// What a driver does to make one chain of one descriptor available.
fn offer(words: &RingWords, position: u16, addr: u64, len: u32) {
    let head = position % SIZE;
    let at = usize::from(head) * 2;
    words.desc[at].store(addr, Ordering::Relaxed);
    words.desc[at + 1].store(u64::from(len), Ordering::Relaxed);
    words.avail[ENTRIES + usize::from(head)].store(head, Ordering::Relaxed);
    words.avail[INDEX].store(position + 1, Ordering::Release);
}

#[test]
fn chain_that_is_taken_is_the_one_that_the_driver_wrote() {
    loom::model(|| {
        let words = words();
        let mut queue = queue(words, F_EVENT_IDX);
        let driver = loom::thread::spawn(move || {
            offer(words, 0, 0x1000, 11);
            offer(words, 1, 0x2000, 22);
        });
        let mut chain = queue.new_chain();
        let mut taken = 0;
        for _ in 0..2 {
            let pending = queue.begin_batch().unwrap();
            for _ in 0..pending {
                assert!(queue.take(&mut chain).unwrap());
                let segment = &chain.readable()[0];
                let expected = [(0x1000, 11), (0x2000, 22)][taken];
                assert_eq!((segment.guest(), segment.len()), expected);
                taken += 1;
            }
            assert!(!queue.take(&mut chain).unwrap());
        }
        driver.join().unwrap();
    });
}

#[test]
fn used_element_that_the_driver_sees_is_complete() {
    loom::model(|| {
        let words = words();
        offer(words, 0, 0x1000, 11);
        offer(words, 1, 0x2000, 22);
        let mut queue = queue(words, F_EVENT_IDX);
        let device = loom::thread::spawn(move || {
            let mut chain = queue.new_chain();
            queue.begin_batch().unwrap();
            while queue.take(&mut chain).unwrap() {
                queue.add_used(chain.head(), 5 + u32::from(chain.head()));
            }
            let _ = queue.publish();
        });
        let index = words.used[INDEX].load(Ordering::Acquire);
        for element in 0..usize::from(index) {
            let id = words.used_elements[element * 2].load(Ordering::Relaxed);
            let len = words.used_elements[element * 2 + 1].load(Ordering::Relaxed);
            assert_eq!((id, len), (element as u32, 5 + element as u32));
        }
        device.join().unwrap();
    });
}

/// The device goes to sleep while the driver adds: it has been kicked or it has seen the chain.
#[test]
fn chain_offered_while_the_device_falls_asleep_is_never_lost() {
    loom::model(|| {
        let words = words();
        // Kicks are off, as in the middle of a batch: the event index is one behind.
        words.avail_event.store(u16::MAX, Ordering::Relaxed);
        let mut queue = queue(words, F_EVENT_IDX);
        let kicked = Arc::new(AtomicBool::new(false));
        let driver = {
            let kicked = Arc::clone(&kicked);
            loom::thread::spawn(move || {
                offer(words, 0, 0x1000, 11);
                fence(Ordering::SeqCst);
                let event = words.avail_event.load(Ordering::Relaxed);
                if 1u16.wrapping_sub(event).wrapping_sub(1) < 1 {
                    kicked.store(true, Ordering::Relaxed);
                }
            })
        };
        let seen = queue.enable_kicks();
        driver.join().unwrap();
        assert!(seen || kicked.load(Ordering::Relaxed));
    });
}

/// The driver goes to sleep while the device completes: it gets an interrupt or has seen the element.
#[test]
fn completion_while_the_driver_falls_asleep_is_never_lost() {
    loom::model(|| {
        let words = words();
        offer(words, 0, 0x1000, 11);
        words.avail[USED_EVENT].store(u16::MAX, Ordering::Relaxed);
        let mut queue = queue(words, F_EVENT_IDX);
        let device = loom::thread::spawn(move || {
            let mut chain = queue.new_chain();
            queue.begin_batch().unwrap();
            assert!(queue.take(&mut chain).unwrap());
            queue.add_used(chain.head(), 0);
            queue.publish()
        });
        words.avail[USED_EVENT].store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let seen = words.used[INDEX].load(Ordering::Acquire) == 1;
        let interrupted = device.join().unwrap();
        assert!(seen || interrupted);
    });
}
