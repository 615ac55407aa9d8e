//! The worker against a backend that is slow.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::worker::{OUTPUT_KICK, PIECE, TURN};
use super::*;
use crate::dma::DmaView;
use crate::virtio::RingAddresses;
use crate::virtio::device::{Interrupt, Source};
use crate::virtio::queue::QueueResources;

#[derive(Debug)]
struct Deaf;

impl Interrupt for Deaf {
    fn trigger(&self, _: Source) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps what it gets, and does something each time.
struct Keeping<F> {
    kept: Arc<Mutex<Vec<u8>>>,
    then: F,
}

impl<F: FnMut() + Send> ConsoleBackend for Keeping<F> {
    fn write(&mut self, bytes: &[u8]) {
        self.kept.lock().unwrap().extend_from_slice(bytes);
        (self.then)();
    }
}

const RINGS: [u64; 2] = [0x1000, 0x2000];
const DATA: u64 = 0x4000;

struct Bench {
    ram: Arc<GuestMemoryMmap>,
    worker: Box<dyn Worker>,
    kick: Arc<EventFd>,
    kept: Arc<Mutex<Vec<u8>>>,
}

impl Bench {
    fn new(then: impl FnMut() + Send + 'static) -> Self {
        let kept = Arc::new(Mutex::default());
        let backend = Keeping {
            kept: Arc::clone(&kept),
            then,
        };
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let ram = Arc::new(ram);
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queues = (0..).zip(RINGS).map(|(index, ring)| QueueResources {
            index,
            size: 16,
            addresses: RingAddresses {
                desc: ring,
                avail: ring + 0x100,
                used: ring + 0x200,
            },
            kick: Arc::clone(&kick),
        });
        let with = Activation {
            memory: DmaView::all_shared(ram.clone()),
            interrupt: Arc::new(Deaf),
            features: 0,
            queues: queues.collect(),
        };
        let mut console = Console::new(Box::new(backend)).unwrap();
        let worker = console.activate(with).unwrap().remove(0);
        Bench {
            ram,
            worker,
            kick,
            kept,
        }
    }

    /// Makes one chain available, and gives its bytes.
    fn say(&self, len: usize) -> Vec<u8> {
        let text: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
        let [_, ring] = RINGS;
        let put = |value: u16, at: u64| self.ram.write_obj(value, GuestAddress(at)).unwrap();
        self.ram.write_slice(&text, GuestAddress(DATA)).unwrap();
        self.ram.write_obj(DATA, GuestAddress(ring)).unwrap();
        let len = u32::try_from(len).unwrap();
        self.ram.write_obj(len, GuestAddress(ring + 8)).unwrap();
        put(0, ring + 0x104);
        put(1, ring + 0x102);
        text
    }

    fn used(&self) -> u16 {
        let [_, ring] = RINGS;
        self.ram.read_obj(GuestAddress(ring + 0x202)).unwrap()
    }

    fn kept(&self) -> Vec<u8> {
        self.kept.lock().unwrap().clone()
    }
}

#[test]
fn output_to_a_slow_backend_lets_others_have_their_turn_and_loses_nothing() {
    // As a reader that takes a piece within the time that is waited for it.
    let mut bench = Bench::new(|| std::thread::sleep(TURN));
    let text = bench.say(2 * PIECE + 1);
    for pieces in 1..=3 {
        bench.worker.on_event(OUTPUT_KICK).unwrap();
        assert_eq!(bench.kept(), text[..text.len().min(pieces * PIECE)]);
        assert_eq!(bench.used(), 0);
        assert!(bench.kick.read().is_ok(), "it is to be called again");
        bench.kick.write(1).unwrap();
    }
    bench.worker.on_event(OUTPUT_KICK).unwrap();
    assert_eq!((bench.kept(), bench.used()), (text, 1));
    assert!(bench.kick.read().is_err(), "all is done");
}
