//! Whether to look for more requests for a moment before going to sleep. Pure but for the clock.
//!
//! To sleep and be woken costs some microseconds of CPU, and the kick an exit of the vCPU. A driver that polls
//! has its next request ready sooner than that. So a worker lingers for [`MOMENT`] where that has paid lately,
//! and tries it once in [`PROBE`] times where it has not: what is lost by it is bounded either way.

use std::time::{Duration, Instant};

/// Less than what sleeping and waking costs.
const MOMENT: Duration = Duration::from_micros(2);
/// One of so many sleeps is delayed to see whether it pays.
const PROBE: u8 = 64;
/// What a success earns, and a failure costs.
const EARNED: u8 = 2;
const MOST: u8 = 16;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Linger {
    /// Failures that are still allowed.
    credit: u8,
    /// Sleeps since the last attempt.
    sleeps: u8,
}

impl Linger {
    /// Waits for `more` to be true, if that is promising; whether it became true.
    #[inline]
    pub fn wait(&mut self, more: impl Fn() -> bool) -> bool {
        if !self.is_promising() {
            return false;
        }
        let begin = Instant::now();
        let found = loop {
            if more() {
                break true;
            }
            std::hint::spin_loop();
            if begin.elapsed() >= MOMENT {
                break false;
            }
        };
        self.learn(found);
        found
    }

    fn is_promising(&mut self) -> bool {
        if self.credit > 0 {
            return true;
        }
        self.sleeps = self.sleeps.wrapping_add(1);
        self.sleeps >= PROBE
    }

    fn learn(&mut self, found: bool) {
        self.sleeps = 0;
        self.credit = match found {
            true => self.credit.saturating_add(EARNED).min(MOST),
            false => self.credit.saturating_sub(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_that_never_comes_in_time_costs_one_look_in_many_sleeps() {
        let mut linger = Linger::default();
        let looks = std::cell::Cell::new(0u32);
        let mut lingered = 0;
        for _ in 0..640 {
            let before = looks.get();
            let found = linger.wait(|| {
                looks.set(looks.get() + 1);
                false
            });
            assert!(!found);
            lingered += u32::from(looks.get() > before);
        }
        assert_eq!(lingered, 640 / u32::from(PROBE));
    }

    #[test]
    fn driver_that_polls_is_waited_for_every_time_once_that_was_found_out() {
        let mut linger = Linger::default();
        let found = (0..200).filter(|_| linger.wait(|| true)).count();
        assert_eq!(found, 200 - usize::from(PROBE) + 1);
        // And given up again after some failures.
        let failures = (0..200).filter(|_| {
            let promising = linger.credit > 0;
            linger.wait(|| false);
            promising
        });
        assert_eq!(failures.count(), usize::from(MOST));
    }
}
