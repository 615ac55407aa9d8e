//! Guests that write anything anywhere: every worker lives on, resets end, and the device works again.
#![cfg(test)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tdvmm_devices::virtio::block::{Block, BlockOptions, DiskOptions, Engine, ImageFormat};
use tdvmm_devices::virtio::console::{Console, Stream};
use tdvmm_devices::virtio::device::VirtioDevice;
use tdvmm_devices::virtio::entropy::Entropy;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

mod driver;
use driver::pci::{Card, PATIENCE};
use driver::{Desc, Driver, INDIRECT, ram};

const RING: u64 = 0x1000;
const SIZE: u16 = 16;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Disk(Engine),
    Console,
    Entropy,
}

fn device(kind: Kind, image: &std::path::Path) -> Box<dyn VirtioDevice> {
    match kind {
        Kind::Disk(engine) => {
            let disk = DiskOptions {
                path: image.to_owned(),
                read_only: false,
                direct: false,
                format: ImageFormat::Raw,
                backing_files: false,
            };
            let options = BlockOptions {
                engine,
                queue_size: SIZE,
                ..BlockOptions::default()
            };
            Box::new(Block::open(&disk, &options).unwrap())
        }
        Kind::Console => {
            let (_, guest) = std::os::unix::net::UnixStream::pair().unwrap();
            guest.set_nonblocking(true).unwrap();
            Box::new(Console::new(Box::new(Stream::new(guest).unwrap())).unwrap())
        }
        Kind::Entropy => Box::new(Entropy::open().unwrap()),
    }
}

/// A card with all its queues on rings that follow each other.
fn card(kind: Kind, image: &std::path::Path) -> (Card, Vec<Driver>) {
    let device = device(kind, image);
    let count = device.queue_sizes().len() as u64;
    let ram = ram(&[(0, 0x8_0000)]);
    let rings: Vec<_> = (0..count)
        .map(|n| Driver::new(Arc::clone(&ram), RING + 0x1000 * n, SIZE))
        .collect();
    let view = rings[0].view();
    (Card::new(device, view), rings)
}

fn start(card: &mut Card, rings: &[Driver]) {
    for ring in rings {
        ring.write(ring.at.desc, &[0; 0x400]);
    }
    let rings: Vec<_> = rings.iter().collect();
    card.start(u64::MAX, &rings);
}

/// A reset ends, and one request is served after it.
fn works(kind: Kind, card: &mut Card, rings: &mut [Driver]) {
    let before = Instant::now();
    card.set_status(0);
    assert_eq!(card.status(), 0);
    assert!(before.elapsed() < PATIENCE);
    for ring in rings.iter_mut() {
        (ring.avail, ring.seen) = (0, 0);
    }
    start(card, rings);
    let queue = usize::from(matches!(kind, Kind::Console));
    let ring = &mut rings[queue];
    ring.write(0x7_0000, &[0; 16]);
    match kind {
        Kind::Disk(_) => ring.chain(
            0,
            &[
                (0x7_0000, 16, false),
                (0x7_1000, 512, true),
                (0x7_2000, 1, true),
            ],
        ),
        Kind::Console => ring.chain(0, &[(0x7_0000, 16, false)]),
        Kind::Entropy => ring.chain(0, &[(0x7_0000, 16, true)]),
    }
    ring.offer(0);
    card.kick(queue as u16);
    let deadline = Instant::now() + PATIENCE;
    while ring.used_index() != 1 {
        assert!(Instant::now() < deadline, "{kind:?}: no answer");
        std::thread::yield_now();
    }
}

fn kinds() -> [Kind; 4] {
    [
        Kind::Disk(Engine::Uring),
        Kind::Disk(Engine::Blocking),
        Kind::Console,
        Kind::Entropy,
    ]
}

#[derive(Clone, Debug)]
enum Move {
    Desc(u16, Desc),
    Bytes(u64, Vec<u8>),
    Offer(u16),
    Index(u16),
    Kick(u16),
    Reset,
}

/// Addresses that mostly lie in memory: buffers, and now and then the rings themselves.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0x4000u64..0x8_0000, 1 => RING..RING + 0x2000, 1 => any::<u64>()]
}

fn next_move() -> impl Strategy<Value = Move> {
    let len = prop_oneof![
        Just(16u32),
        Just(1),
        Just(512),
        Just(4096),
        Just(48),
        any::<u32>()
    ];
    let flags = prop_oneof![4 => 0u16..4, 1 => Just(INDIRECT), 1 => any::<u16>()];
    let desc = (address(), len, flags, 0u16..18).prop_map(|(addr, len, flags, next)| Desc {
        addr,
        len,
        flags,
        next,
    });
    let request = (0u32..15, 0u64..80).prop_map(|(kind, sector)| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes
    });
    let bytes = prop_oneof![request, prop::collection::vec(any::<u8>(), 1..64)];
    prop_oneof![
        6 => (0u16..SIZE, desc).prop_map(|(at, desc)| Move::Desc(at, desc)),
        3 => (0x4000u64..0x7_0000, bytes).prop_map(|(at, bytes)| Move::Bytes(at, bytes)),
        6 => (0u16..SIZE).prop_map(Move::Offer),
        1 => any::<u16>().prop_map(Move::Index),
        4 => (0u16..3).prop_map(Move::Kick),
        1 => Just(Move::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn nothing_that_a_guest_does_stops_a_device(
        moves in prop::collection::vec(next_move(), 1..120),
    ) {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image.as_file().set_len(64 * 512).unwrap();
        for kind in kinds() {
            let (mut card, mut rings) = card(kind, image.path());
            start(&mut card, &rings);
            let mut turn = 0;
            for step in &moves {
                turn = (turn + 1) % rings.len();
                let ring = &mut rings[turn];
                match step {
                    Move::Desc(at, desc) => ring.desc(*at, *desc),
                    Move::Bytes(at, bytes) => ring.write(*at, bytes),
                    Move::Offer(head) => ring.offer(*head),
                    Move::Index(index) => ring.set_avail_index(*index),
                    Move::Kick(queue) => card.kick(*queue),
                    Move::Reset => {
                        card.set_status(0);
                        for ring in &mut rings {
                            (ring.avail, ring.seen) = (0, 0);
                        }
                        start(&mut card, &rings);
                    }
                }
            }
            works(kind, &mut card, &mut rings);
        }
    }
}

/// Writes random bytes over rings and buffers until told to stop.
fn scribble(ram: &GuestMemoryMmap, stop: &AtomicBool) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while !stop.load(Ordering::Relaxed) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = RING + state % 0x2400;
        // Small numbers now and then, which make plausible indices and flags.
        let value = if state & 0x10000 == 0 {
            state >> 32 & 0x11
        } else {
            state >> 32
        };
        ram.write_obj(value as u16, GuestAddress(at & !1)).unwrap();
    }
}

#[test]
fn ring_that_changes_all_the_time_does_no_harm() {
    /// Ends the other thread also when this one fails, which the scope would wait for.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    image.as_file().set_len(64 * 512).unwrap();
    for kind in kinds() {
        let (mut card, mut rings) = card(kind, image.path());
        let ram = Arc::clone(&rings[0].ram);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| scribble(&ram, &stop));
            let _stop = Stop(&stop);
            let end = Instant::now() + Duration::from_millis(400);
            while Instant::now() < end {
                start(&mut card, &rings);
                for queue in [0, 1].repeat(20) {
                    card.kick(queue);
                    std::thread::yield_now();
                }
                card.set_status(0);
                assert_eq!(card.status(), 0);
            }
        });
        works(kind, &mut card, &mut rings);
    }
}
