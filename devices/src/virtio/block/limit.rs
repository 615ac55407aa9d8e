//! Token buckets: how many bytes and operations a disk may have per second. Pure; the time comes in.

use std::time::Duration;

/// One limit, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens (bytes or operations) that the bucket holds, more than 0.
    pub size: u64,
    /// Time in which an empty bucket fills up.
    pub refill: Duration,
}

/// A bucket that fills with time. It may go into debt by one request, so that a request larger than
/// the bucket passes at all; the debt is paid before the next one.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: Rate,
    /// Nanoseconds of filling that the content is worth, below 0 in debt.
    credit: i128,
    filled_at: Duration,
}

impl Bucket {
    /// A full bucket. Times are since any fixed moment.
    #[must_use]
    pub fn new(rate: Rate, now: Duration) -> Self {
        Bucket {
            rate,
            credit: nanos(rate.refill),
            filled_at: now,
        }
    }

    /// How long to wait until a request may pass; zero: now.
    #[must_use]
    pub fn wait(&mut self, now: Duration) -> Duration {
        let passed = nanos(now.saturating_sub(self.filled_at));
        self.filled_at = now;
        let full = nanos(self.rate.refill);
        self.credit = self.credit.saturating_add(passed).min(full);
        match u64::try_from(self.credit.saturating_neg()) {
            Ok(debt) if self.credit <= 0 => Duration::from_nanos(debt.saturating_add(1)),
            _ => Duration::ZERO,
        }
    }

    /// A request of `tokens` passes.
    pub fn spend(&mut self, tokens: u64) {
        let worth = i128::from(tokens).saturating_mul(nanos(self.rate.refill));
        let worth = worth.checked_div(i128::from(self.rate.size)).unwrap_or(0);
        self.credit = self.credit.saturating_sub(worth);
    }
}

fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

/// The limits of one disk, shared by its queues.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// `None` is without limit.
    #[must_use]
    pub fn new(bytes: Option<Rate>, operations: Option<Rate>, now: Duration) -> Self {
        Limiter {
            bytes: bytes.map(|rate| Bucket::new(rate, now)),
            operations: operations.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Lets one request of `bytes` pass, or says how long it has to wait.
    ///
    /// # Errors
    ///
    /// The time after which to ask again.
    pub fn pass(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let mut both = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let waits = both
            .iter_mut()
            .filter_map(|(bucket, _)| Some(bucket.as_mut()?.wait(now)));
        let wait = waits.max().unwrap_or_default();
        if wait > Duration::ZERO {
            return Err(wait);
        }
        for (bucket, tokens) in both {
            if let Some(bucket) = bucket {
                bucket.spend(tokens);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(size: u64) -> Option<Rate> {
        Some(Rate {
            size,
            refill: SECOND,
        })
    }

    /// Requests that pass within `time`, asking again whenever told to.
    fn passed(limiter: &mut Limiter, bytes: u64, time: Duration) -> u64 {
        let (mut now, mut count) = (Duration::ZERO, 0);
        while now < time {
            match limiter.pass(bytes, now) {
                Ok(()) => count += 1,
                Err(wait) => now += wait,
            }
        }
        count
    }

    #[test]
    fn operations_pass_at_the_rate_after_the_first_burst() {
        let mut limiter = Limiter::new(None, rate(100), Duration::ZERO);
        let count = passed(&mut limiter, 1 << 20, 10 * SECOND);
        assert!((1090..=1102).contains(&count), "{count}");
    }

    #[test]
    fn the_tighter_limit_counts() {
        let mut limiter = Limiter::new(rate(4096 * 10), rate(1000), Duration::ZERO);
        let count = passed(&mut limiter, 4096, 10 * SECOND);
        assert!((108..=111).contains(&count), "{count}");
    }

    #[test]
    fn request_larger_than_the_bucket_passes_and_is_paid_for_later() {
        let mut limiter = Limiter::new(rate(1000), None, Duration::ZERO);
        assert_eq!(limiter.pass(5000, Duration::ZERO), Ok(()));
        let wait = limiter.pass(1, Duration::ZERO).unwrap_err();
        assert!(wait > 4 * SECOND - SECOND / 100 && wait <= 4 * SECOND + SECOND / 100);
        assert_eq!(limiter.pass(1, wait), Ok(()));
    }

    #[test]
    fn limiter_without_limits_never_waits() {
        let mut limiter = Limiter::new(None, None, Duration::ZERO);
        assert_eq!(limiter.pass(u64::MAX, Duration::ZERO), Ok(()));
    }

    #[test]
    fn idle_time_fills_no_more_than_the_bucket() {
        let mut limiter = Limiter::new(None, rate(10), Duration::ZERO);
        let later = 1000 * SECOND;
        let burst = (0..).take_while(|_| limiter.pass(0, later).is_ok()).count();
        assert_eq!(burst, 10);
    }
}
