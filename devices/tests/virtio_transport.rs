//! The transport with a simple device: set-up, reset, interrupts, moves of the BAR, hostile accesses.
#![cfg(test)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of the test")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use proptest::prelude::*;
use tdvmm_devices::pci::PciDevice;
use tdvmm_devices::virtio::device::{
    ActivateError, Activation, DeviceType, StopFlag, Token, VirtioDevice, Worker,
};
use tdvmm_devices::virtio::entropy::Entropy;
use tdvmm_devices::virtio::queue::QueueFault;
use tdvmm_devices::virtio::transport::MemoryAccess;
use vmm_sys_util::eventfd::EventFd;

mod driver;
use driver::pci::{BAR_BASE, Card, PATIENCE, common};
use driver::{Driver, ram};

const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;
const EVENT_IDX: u64 = 1 << 29;
const ALL: u64 = u64::MAX;

fn card() -> (Card, Driver) {
    let ram = ram(&[(0, 0x10_0000)]);
    let ring = Driver::new(Arc::clone(&ram), 0x1000, 16);
    let zeros = Entropy::from_file(File::open("/dev/zero").unwrap());
    (Card::new(Box::new(zeros), ring.view()), ring)
}

fn offer_buffer(ring: &mut Driver, at: u64) {
    ring.write(at, &[0xaa; 64]);
    ring.chain(0, &[(at, 64, true)]);
    ring.offer(0);
}

#[test]
fn device_that_is_set_up_serves_and_interrupts() {
    let (mut card, mut ring) = card();
    card.start(ALL, &[&ring]);
    assert_eq!(card.status(), 15);
    for round in 1..=3 {
        offer_buffer(&mut ring, 0x4000);
        card.kick(0);
        // The element is there before the interrupt.
        card.vectors.wait_for(1, round);
        assert_eq!(card.collect(&mut ring, 1), [(0, 64)]);
        assert_eq!(ring.read(0x4000, 64), [0; 64]);
        assert_eq!(card.vectors.count(1), round);
    }
    assert_eq!(card.vectors.count(0), 0);
}

#[test]
fn what_was_offered_before_driver_ok_is_served_without_a_kick() {
    let (mut card, mut ring) = card();
    offer_buffer(&mut ring, 0x4000);
    card.start(ALL, &[&ring]);
    assert_eq!(card.collect(&mut ring, 1), [(0, 64)]);
}

#[test]
fn features_without_version_1_or_beyond_the_offer_are_refused() {
    let (mut card, _) = card();
    let offered = card.offered();
    assert_eq!(offered & (VERSION_1 | ACCESS_PLATFORM), VERSION_1);
    for (features, expected) in [(EVENT_IDX, 3), (VERSION_1 | 1 << 40, 3), (VERSION_1, 11)] {
        for status in [0, 1, 3] {
            card.set_status(status);
        }
        card.accept(features);
        card.set_status(11);
        assert_eq!(card.status(), expected, "{features:#x}");
    }
    // Too late for more.
    card.accept(offered);
    card.write(common::DRIVER_FEATURE_SELECT, &[0; 4]);
    assert_eq!(card.read(common::DRIVER_FEATURE), [0; 4]);
}

#[test]
fn restricted_memory_makes_access_platform_a_must() {
    let ram = ram(&[(0, 0x10_0000)]);
    let ring = Driver::new(ram, 0x1000, 16);
    let device = Box::new(Entropy::open().unwrap());
    let mut card = Card::with_access(device, ring.view(), MemoryAccess::Restricted, 1);
    for (features, expected) in [(VERSION_1, 3), (VERSION_1 | ACCESS_PLATFORM, 11)] {
        for status in [0, 1, 3] {
            card.set_status(status);
        }
        card.accept(features);
        card.set_status(11);
        assert_eq!(card.status(), expected);
    }
}

#[test]
fn reset_puts_everything_back_and_the_device_starts_again() {
    let (mut card, mut ring) = card();
    let fresh: [u8; 56] = card.read(0);
    for _ in 0..20 {
        card.start(ALL, &[&ring]);
        offer_buffer(&mut ring, 0x4000);
        card.kick(0);
        card.collect(&mut ring, 1);
        card.set_status(0);
        assert_eq!(
            card.read::<56>(0)[common::DEVICE_FEATURE as usize + 4..],
            fresh[8..]
        );
        // Nobody looks at the rings any more.
        offer_buffer(&mut ring, 0x4000);
        card.kick(0);
        assert_eq!(ring.read(0x4000, 64), [0xaa; 64]);
        ring = Driver::new(Arc::clone(&ring.ram), 0x1000, 16);
        ring.write(0x1000, &[0; 0x400]);
    }
}

/// A device of two queues. The worker of the second one is busy until it is told to stop, and says then whether it was.
struct Busy(Sender<bool>);

struct BusyWorker {
    kick: Arc<EventFd>,
    stop: StopFlag,
    busy: Option<Sender<bool>>,
}

impl VirtioDevice for Busy {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, with: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let workers = with.queues.into_iter().map(|queue| {
            Box::new(BusyWorker {
                kick: queue.kick,
                stop: StopFlag::default(),
                busy: (queue.index == 1).then(|| self.0.clone()),
            }) as Box<dyn Worker>
        });
        Ok(workers.collect())
    }
}

impl Worker for BusyWorker {
    fn event_sources(&self) -> Vec<(Token, &dyn AsRawFd)> {
        vec![(Token(0), &*self.kick)]
    }
    fn set_stop(&mut self, stop: StopFlag) {
        self.stop = stop;
    }
    fn on_event(&mut self, _: Token) -> Result<(), QueueFault> {
        self.kick.read().unwrap();
        if let Some(busy) = self.busy.take() {
            let begin = Instant::now();
            busy.send(false).unwrap();
            while !self.stop.is_raised() && begin.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            busy.send(self.stop.is_raised()).unwrap();
        }
        Ok(())
    }
}

#[test]
fn reset_tells_all_workers_to_stop_before_it_waits_for_the_first() {
    let (said, heard) = channel();
    let ram = ram(&[(0, 0x10_0000)]);
    let rings = [0x1000, 0x2000].map(|at| Driver::new(Arc::clone(&ram), at, 16));
    let mut card = Card::new(Box::new(Busy(said)), rings[0].view());
    card.start(ALL, &[&rings[0], &rings[1]]);
    // It is at it, since the start.
    assert!(!heard.recv_timeout(PATIENCE).unwrap());
    card.set_status(0);
    assert!(heard.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn fault_asks_for_a_reset_and_a_reset_heals() {
    let (mut card, mut ring) = card();
    card.start(ALL, &[&ring]);
    ring.set_avail_index(100);
    card.kick(0);
    card.vectors.wait_for(0, 1);
    assert_eq!(card.status(), 15 | 64);
    // Deaf until then.
    ring.set_avail_index(0);
    offer_buffer(&mut ring, 0x4000);
    card.kick(0);
    card.set_status(0);
    assert_eq!(card.status(), 0);
    assert_eq!(ring.used_index(), 0);
    let mut ring = Driver::new(Arc::clone(&ring.ram), 0x2000, 16);
    card.start(ALL, &[&ring]);
    offer_buffer(&mut ring, 0x4000);
    card.kick(0);
    assert_eq!(card.collect(&mut ring, 1), [(0, 64)]);
}

#[test]
fn ring_outside_of_memory_is_a_fault_at_driver_ok() {
    let (mut card, ring) = card();
    let mut wrong = Driver::new(Arc::clone(&ring.ram), 0x1000, 16);
    wrong.at.used = 0x1000_0000;
    card.start(ALL, &[&wrong]);
    assert_eq!(card.status(), 15 | 64);
    assert_eq!(card.vectors.count(0), 1);
}

#[test]
fn interrupt_that_was_held_back_does_not_survive_a_reset() {
    for (reset, expected) in [(false, 1), (true, 0)] {
        let (mut card, ring) = card();
        let mut wrong = Driver::new(Arc::clone(&ring.ram), 0x1000, 16);
        wrong.at.used = 0x1000_0000;
        card.mask(0, true);
        // A fault at DRIVER_OK is told at once, by vector 0.
        card.start(ALL, &[&wrong]);
        assert_eq!(card.status(), 15 | 64);
        if reset {
            card.set_status(0);
        }
        card.mask(0, false);
        assert_eq!(card.vectors.count(0), expected);
    }
}

#[test]
fn kicks_are_placed_where_the_bar_is() {
    let (mut card, _) = card();
    let notify = card.areas[&2];
    let placed = |card: &Card| card.places.0.lock().unwrap().get(&0).copied();
    assert_eq!(placed(&card), Some(u64::from(BAR_BASE) + notify));
    card.function
        .config_write(0x10, &0x9000_0000_u32.to_le_bytes());
    card.function.bars_moved();
    assert_eq!(placed(&card), Some(0x9000_0000 + notify));
    card.function.config_write(0x04, &[0, 0]);
    card.function.bars_moved();
    assert_eq!(placed(&card), None);
}

#[test]
fn vector_that_does_not_exist_reads_back_as_none() {
    let (mut card, _) = card();
    card.write(common::CONFIG_VECTOR, &7u16.to_le_bytes());
    assert_eq!(card.read(common::CONFIG_VECTOR), [0xff; 2]);
    card.write(common::CONFIG_VECTOR, &1u16.to_le_bytes());
    assert_eq!(card.read(common::CONFIG_VECTOR), [1, 0]);
    card.write(common::QUEUE_SELECT, &9u16.to_le_bytes());
    assert_eq!(card.read(common::QUEUE_SIZE), [0; 2]);
}

#[test]
fn window_in_configuration_space_reaches_the_bar() {
    let (mut card, _) = card();
    let config = card.function.config();
    let mut at = config.u16_at(0x34) as u8;
    while config.u16_at(at) as u8 != 9 || (config.u16_at(at + 2) >> 8) != 5 {
        at = (config.u16_at(at) >> 8) as u8;
    }
    let at = u16::from(at);
    card.function
        .config_write(at + 8, &(common::STATUS as u32).to_le_bytes());
    card.function.config_write(at + 12, &1u32.to_le_bytes());
    card.function.config_write(at + 16, &[1]);
    assert_eq!(card.status(), 1);
    let mut status = [0];
    card.function.config_read(at + 16, &mut status);
    assert_eq!(status, [1]);
}

#[derive(Clone, Debug)]
enum Access {
    BarRead(u64, usize),
    BarWrite(u64, Vec<u8>),
    ConfigRead(u16, usize),
    ConfigWrite(u16, Vec<u8>),
    Moved,
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![6 => 0u64..0x40, 1 => 0x3000u64..0x3010, 1 => 0x4000u64..0x4020, 2 => 0u64..0x9000, 1 => any::<u64>()];
    let data = prop_oneof![
        Just(vec![1]),
        Just(vec![3]),
        Just(vec![11]),
        Just(vec![15]),
        Just(vec![1, 0]),
        Just(0x1000u64.to_le_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..9),
    ];
    prop_oneof![
        3 => (offset.clone(), 1usize..9).prop_map(|(at, len)| Access::BarRead(at, len)),
        9 => (offset, data.clone()).prop_map(|(at, data)| Access::BarWrite(at, data)),
        1 => (0u16..0x1000, 0usize..3).prop_map(|(at, log)| Access::ConfigRead(at & !3, 1 << log)),
        2 => (0u16..0x100, 0usize..3, data).prop_map(|(at, log, mut data)| {
            data.resize(1 << log, 0x55);
            Access::ConfigWrite(at & !3, data)
        }),
        1 => Just(Access::Moved),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_sequence_of_accesses_does_harm(accesses in prop::collection::vec(access(), 1..200)) {
        let (mut card, mut ring) = card();
        for access in accesses {
            match access {
                Access::BarRead(at, len) => {
                    let mut data = [0; 8];
                    card.function.bar_read(0, at, &mut data[..len]);
                }
                Access::BarWrite(at, data) => card.function.bar_write(0, at, &data),
                Access::ConfigRead(at, len) => {
                    let mut data = [0; 4];
                    card.function.config_read(at, &mut data[..len]);
                }
                Access::ConfigWrite(at, data) => card.function.config_write(at, &data),
                Access::Moved => card.function.bars_moved(),
            }
        }
        // It still works.
        card.function.config_mut().place_bar(0, BAR_BASE);
        let mut again = Card { table: card.table, ..card };
        again.set_status(0);
        prop_assert_eq!(again.status(), 0);
        again.start(ALL, &[&ring]);
        offer_buffer(&mut ring, 0x4000);
        again.kick(0);
        let deadline = Instant::now() + PATIENCE;
        while ring.used_index() == 0 {
            prop_assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
