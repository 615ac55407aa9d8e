use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::power::recorder::Recorder;

#[derive(Clone, Debug, Default)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
    fn unix_seconds(&self) -> i64 {
        0
    }
}

struct Block {
    block: PowerBlock,
    hand: Hand,
    power: Arc<Recorder>,
}

impl Block {
    fn new() -> Self {
        let (power, hand) = (Arc::new(Recorder::default()), Hand::default());
        let sink: Arc<dyn PowerSink> = Arc::clone(&power) as _;
        let block = PowerBlock::new(sink, Box::new(hand.clone()));
        Self { block, hand, power }
    }

    fn read<const N: usize>(&mut self, offset: u64) -> u32 {
        let mut data = [0; N];
        self.block.read(offset, &mut data).unwrap();
        let mut value = [0; 4];
        value[..N].copy_from_slice(&data);
        u32::from_le_bytes(value)
    }

    fn timer_at(&mut self, time: Duration) -> u32 {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap();
        self.hand.0.store(nanoseconds, Ordering::Relaxed);
        self.read::<4>(TIMER)
    }
}

#[test]
fn timer_counts_at_its_frequency_in_24_bits() {
    let mut block = Block::new();
    assert_eq!(block.timer_at(Duration::ZERO), 0);
    assert_eq!(block.timer_at(Duration::from_secs(1)), 3_579_545);
    assert_eq!(block.timer_at(Duration::from_secs(4)), 14_318_180);
    assert_eq!(
        block.timer_at(Duration::from_secs(5)),
        17_897_725 - (1 << 24)
    );
    // 2^24 ticks take this long, rounded up.
    let wrap = Duration::from_nanos(4_686_968_875);
    assert_eq!(block.timer_at(wrap - Duration::from_nanos(1)), 0x00ff_ffff);
    assert_eq!(block.timer_at(wrap), 0);
}

#[test]
fn timer_is_right_after_years() {
    let mut block = Block::new();
    let years = Duration::from_secs(500 * 365 * 86_400);
    let ticks = u128::from(years.as_secs()) * 3_579_545;
    assert_eq!(u128::from(block.timer_at(years)), ticks & 0x00ff_ffff);
}

#[test]
fn timer_cannot_be_set() {
    let mut block = Block::new();
    block.block.write(TIMER, &[1, 2, 3, 4]).unwrap();
    assert_eq!(block.timer_at(Duration::ZERO), 0);
}

#[test]
fn pm1_control_keeps_sci_enable_and_switches_off_by_slp_en() {
    let mut block = Block::new();
    assert_eq!(block.read::<2>(PM1_CONTROL), 0);
    block.block.write(PM1_CONTROL, &[1, 0]).unwrap();
    assert_eq!(block.read::<2>(PM1_CONTROL), 1);
    // A sleep type alone does nothing.
    block.block.write(PM1_CONTROL, &[1, 0x1c]).unwrap();
    assert!(block.power.take().is_empty());
    block.block.write(PM1_CONTROL, &[1, 0x34]).unwrap();
    assert_eq!(block.power.take(), [PowerEvent::PowerOff]);
    assert_eq!(block.read::<2>(PM1_CONTROL), 0x1401, "SLP_EN reads as 0");
    // OVMF writes type 0.
    block.block.write(PM1_CONTROL, &[0, 0x20]).unwrap();
    assert_eq!(block.power.take(), [PowerEvent::PowerOff]);
}

#[test]
fn sleep_control_switches_off_by_slp_en() {
    let mut block = Block::new();
    block.block.write(SLEEP_CONTROL, &[0x14]).unwrap();
    assert!(block.power.take().is_empty());
    block.block.write(SLEEP_CONTROL, &[0x34]).unwrap();
    assert_eq!(block.power.take(), [PowerEvent::PowerOff]);
    assert_eq!(block.read::<1>(SLEEP_CONTROL), 0x14);
    block.block.write(SLEEP_STATUS, &[0xff]).unwrap();
    assert_eq!(block.read::<1>(SLEEP_STATUS), 0);
}

#[test]
fn pm1_events_are_never_pending_and_enables_are_kept() {
    let mut block = Block::new();
    block.block.write(PM1_STATUS, &[0xff, 0xff]).unwrap();
    assert_eq!(block.read::<2>(PM1_STATUS), 0);
    block.block.write(PM1_ENABLE, &[0xff, 0xff]).unwrap();
    assert_eq!(block.read::<2>(PM1_ENABLE), 0x0721);
    assert_eq!(block.read::<4>(PM1_STATUS), 0x0721_0000);
    block.block.write(PM1_STATUS, &[0xff, 0xff, 0, 0]).unwrap();
    assert_eq!(block.read::<4>(PM1_STATUS), 0);
}

#[test]
fn access_that_fits_no_register_is_refused() {
    let mut block = Block::new();
    let errors = [
        block.block.read(PM1_CONTROL, &mut [0; 4]).unwrap_err(),
        block.block.write(PM1_CONTROL, &[0x20]).unwrap_err(),
        block.block.read(0x10, &mut [0]).unwrap_err(),
        block.block.write(0x1f, &[0]).unwrap_err(),
    ];
    let expected = [
        AccessError::Size(4),
        AccessError::Size(1),
        AccessError::NoRegister(0x10),
        AccessError::NoRegister(0x1f),
    ];
    assert_eq!(errors, expected);
    assert!(block.power.take().is_empty());
}
