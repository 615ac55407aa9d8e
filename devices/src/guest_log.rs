//! Messages that a guest can cause, limited at each place they come from.
//!
//! [`guest_warn!`](crate::guest_warn) is the only way a device logs. Each call site has a [`Limiter`]: 10 lines at
//! once, then one a second; the next line that gets through tells how many did not. Bytes that the
//! guest made are printed through [`GuestText`] only.

#![expect(
    clippy::disallowed_macros,
    reason = "the one place that logs; everyone else comes through a limiter"
)]

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lines that a call site may log at once.
const BURST: u64 = 10;
/// Time after which it may log one more.
const REFILL: Duration = Duration::from_secs(1);

/// How many lines may still be logged at one place. Lock-free; a race costs or gains a line.
#[derive(Debug)]
pub struct Limiter {
    burst: u64,
    refill: Duration,
    /// Start of the oldest refill period that has not been spent, in periods since the first use of
    /// any limiter.
    spent_until: AtomicU64,
    suppressed: AtomicU64,
}

impl Limiter {
    /// The limiter of `guest_warn!`.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_rate(BURST, REFILL)
    }

    /// At most `burst` lines at once, and one more after each `refill`.
    #[must_use]
    pub const fn with_rate(burst: u64, refill: Duration) -> Self {
        Self {
            burst,
            refill,
            spent_until: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Asks for one line: the number of lines suppressed since the last one, or `None` to be silent.
    #[must_use]
    pub fn admit(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        self.admit_at(START.get_or_init(Instant::now).elapsed())
    }

    /// A line moves `spent_until` on by one period; it may run ahead of now by `burst` periods.
    fn admit_at(&self, now: Duration) -> Option<u64> {
        let period = self.refill.as_nanos().max(1);
        let now = u64::try_from(now.as_nanos().checked_div(period)?).unwrap_or(u64::MAX);
        let spent = self
            .spent_until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| {
                let next = spent.max(now).saturating_add(1);
                (next <= now.saturating_add(self.burst)).then_some(next)
            });
        if spent.is_err() {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

/// Logs a warning that a guest caused, limited at this call site. Arguments as those of `format!`.
#[macro_export]
macro_rules! guest_warn {
    ($($argument:tt)+) => {{
        static LIMITER: $crate::guest_log::Limiter = $crate::guest_log::Limiter::new();
        if let Some(suppressed) = LIMITER.admit() {
            $crate::guest_log::warn(module_path!(), suppressed, format_args!($($argument)+));
        }
    }};
}

/// What [`guest_warn!`](crate::guest_warn) calls once its limiter has let the line through.
pub fn warn(target: &str, suppressed: u64, message: fmt::Arguments<'_>) {
    if suppressed == 0 {
        log::warn!(target: target, "{message}");
    } else {
        log::warn!(target: target, "{message} ({suppressed} like this suppressed)");
    }
}

/// Logs what a guest itself had to say, for a caller with a limiter of its own.
pub fn info(target: &str, suppressed: u64, message: fmt::Arguments<'_>) {
    if suppressed != 0 {
        log::info!(target: target, "({suppressed} lines suppressed)");
    }
    log::info!(target: target, "{message}");
}

/// Bytes of the guest, fit for a terminal: at most 256 of them, control characters escaped.
#[derive(Clone, Copy)]
pub struct GuestText<'a>(pub &'a [u8]);

impl GuestText<'_> {
    const SHOWN: usize = 256;
}

impl fmt::Display for GuestText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..Self::SHOWN).unwrap_or(self.0);
        write!(f, "{}", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            f.write_str("...")?;
        }
        Ok(())
    }
}

impl fmt::Debug for GuestText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limiter_lets_a_burst_through_then_one_a_period_and_counts_the_rest() {
        let limiter = Limiter::new();
        let at = Duration::from_secs;
        let admitted = (0..100).filter_map(|_| limiter.admit_at(at(5))).count();
        assert_eq!(admitted, 10);
        assert_eq!(limiter.admit_at(at(6)), Some(90));
        assert_eq!(limiter.admit_at(at(6)), None);
        assert_eq!(limiter.admit_at(at(7)), Some(1));
    }

    #[test]
    fn limiter_left_alone_gets_no_more_than_its_burst_back() {
        let limiter = Limiter::with_rate(3, Duration::from_millis(1));
        for second in [0, 1000] {
            let now = Duration::from_secs(second);
            let admitted = (0..50).filter_map(|_| limiter.admit_at(now)).count();
            assert_eq!(admitted, 3);
        }
    }

    #[test]
    fn guest_text_is_escaped_and_cut() {
        assert_eq!(GuestText(b"a\x1b[2J\n").to_string(), "a\\x1b[2J\\n");
        let long = GuestText(&[b'x'; 1000]).to_string();
        assert_eq!(long.len(), 256 + 3);
    }
}
