use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, Default)]
struct Hand(Arc<AtomicI64>);

impl Clock for Hand {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    fn unix_seconds(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// 2026-11-21 23:34:56 UTC, a Saturday.
const NOW: i64 = 1_795_304_096;

fn rtc() -> (Rtc, Hand) {
    let hand = Hand::default();
    hand.0.store(NOW, Ordering::Relaxed);
    (Rtc::new(Box::new(hand.clone())), hand)
}

fn read(rtc: &mut Rtc, register: u8) -> u8 {
    rtc.write(0, &[register | 0x80]).unwrap();
    let mut data = [0];
    rtc.read(1, &mut data).unwrap();
    data[0]
}

fn write(rtc: &mut Rtc, register: u8, value: u8) {
    rtc.write(0, &[register]).unwrap();
    rtc.write(1, &[value]).unwrap();
}

/// Century, year, month, day, hours, minutes, seconds, day of week.
fn fields(rtc: &mut Rtc) -> [u8; 8] {
    [0x32, 9, 8, 7, 4, 2, 0, 6].map(|register| read(rtc, register))
}

#[test]
fn time_is_bcd_and_24_hours_by_default() {
    let (mut rtc, _) = rtc();
    assert_eq!(read(&mut rtc, 0x0b), 0x02);
    let expected = [0x20, 0x26, 0x11, 0x21, 0x23, 0x34, 0x56, 0x07];
    assert_eq!(fields(&mut rtc), expected);
}

#[test]
fn time_is_binary_or_12_hours_when_register_b_says_so() {
    let (mut rtc, hand) = rtc();
    write(&mut rtc, 0x0b, B_BINARY | B_24_HOURS);
    assert_eq!(fields(&mut rtc), [20, 26, 11, 21, 23, 34, 56, 7]);
    write(&mut rtc, 0x0b, B_BINARY);
    assert_eq!(read(&mut rtc, 4), PM | 11);
    write(&mut rtc, 0x0b, 0);
    assert_eq!(read(&mut rtc, 4), PM | 0x11);
    for (hours_ago, shown) in [(11, PM | 0x12), (12, 0x11), (23, 0x12)] {
        hand.0.store(NOW - hours_ago * 3600, Ordering::Relaxed);
        assert_eq!(read(&mut rtc, 4), shown);
    }
}

#[test]
fn status_registers_let_linux_and_ovmf_go_on_at_once() {
    let (mut rtc, _) = rtc();
    write(&mut rtc, 0x0a, 0xff);
    assert_eq!(read(&mut rtc, 0x0a), 0x7f, "never updating");
    write(&mut rtc, 0x0c, 0xff);
    assert_eq!(read(&mut rtc, 0x0c), 0, "no interrupt");
    write(&mut rtc, 0x0d, 0);
    assert_eq!(read(&mut rtc, 0x0d), 0x80, "valid");
}

#[test]
fn clock_set_as_linux_does_runs_on_from_there() {
    let (mut rtc, hand) = rtc();
    write(&mut rtc, 0x0b, B_24_HOURS | B_SET);
    hand.0.fetch_add(10, Ordering::Relaxed);
    assert_eq!(read(&mut rtc, 0), 0x56, "held");
    for (register, value) in [(9, 0x99), (0x32, 0x19), (8, 0x12), (7, 0x31)] {
        write(&mut rtc, register, value);
    }
    for (register, value) in [(4, 0x23), (2, 0x59), (0, 0x58)] {
        write(&mut rtc, register, value);
    }
    write(&mut rtc, 0x0b, B_24_HOURS);
    hand.0.fetch_add(3, Ordering::Relaxed);
    let expected = [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01, 0x07];
    assert_eq!(fields(&mut rtc), expected);
}

#[test]
fn clock_set_to_an_afternoon_in_12_hours_is_right_in_24() {
    let (mut rtc, _) = rtc();
    for (written, hours) in [
        (PM | 0x12, 0x12),
        (0x12, 0),
        (PM | 0x01, 0x13),
        (0x11, 0x11),
    ] {
        write(&mut rtc, 0x0b, B_SET);
        write(&mut rtc, 4, written);
        write(&mut rtc, 0x0b, 0);
        assert_eq!(read(&mut rtc, 4), written);
        write(&mut rtc, 0x0b, B_24_HOURS);
        assert_eq!(read(&mut rtc, 4), hours);
    }
}

#[test]
fn field_written_while_running_moves_the_clock() {
    let (mut rtc, hand) = rtc();
    write(&mut rtc, 2, 0x00);
    hand.0.fetch_add(4, Ordering::Relaxed);
    assert_eq!([read(&mut rtc, 2), read(&mut rtc, 0)], [0x01, 0x00]);
}

#[test]
fn clock_set_to_no_moment_keeps_its_time() {
    let (mut rtc, _) = rtc();
    for (register, value) in [
        (8, 0x13),
        (7, 0x32),
        (4, 0x24),
        (2, 0x60),
        (0, 0x5a),
        (9, 0xa0),
    ] {
        write(&mut rtc, 0x0b, B_24_HOURS | B_SET);
        write(&mut rtc, register, value);
        write(&mut rtc, 0x0b, B_24_HOURS);
        let expected = [0x20, 0x26, 0x11, 0x21, 0x23, 0x34, 0x56, 0x07];
        assert_eq!(fields(&mut rtc), expected, "{value:#x} in {register:#x}");
    }
}

#[test]
fn alarm_and_memory_bytes_keep_what_was_written() {
    let (mut rtc, _) = rtc();
    for register in [1, 3, 5, 0x0e, 0x34, 0x7f] {
        assert_eq!(read(&mut rtc, register), 0);
        write(&mut rtc, register, register ^ 0xff);
    }
    for register in [1, 3, 5, 0x0e, 0x34, 0x7f] {
        assert_eq!(read(&mut rtc, register), register ^ 0xff);
    }
}

proptest! {
    #[test]
    fn any_writes_leave_a_clock_that_shows_a_moment(
        writes in proptest::collection::vec((0_u8..0x80, any::<u8>()), 0..100),
        later in 0..i64::MAX / 2,
    ) {
        let (mut rtc, hand) = rtc();
        for (register, value) in writes {
            write(&mut rtc, register, value);
        }
        hand.0.store(later, Ordering::Relaxed);
        write(&mut rtc, 0x0b, B_BINARY | B_24_HOURS);
        let [century, year, month, day, hour, minute, second, _] = fields(&mut rtc);
        let moment = Moment {
            year: u16::from(century) * 100 + u16::from(year),
            month, day, hour, minute, second,
        };
        prop_assert!(moment.to_unix().is_some(), "{:?}", moment);
    }
}
