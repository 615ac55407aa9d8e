//! The sink behind the `log` macros: one line per record, to standard error or a file.
//!
//! Records can be made by a guest (through crates that log what a guest did), so the sink limits every
//! target that has no limiter of its own: after a burst a target gets one line a second, and
//! the next line says how many were left out. A line that cannot be written is dropped: logging never
//! stops the machine.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Stderr, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::serial::output::StandardStream;

/// Lines that a target may write at once.
const BURST: u32 = 64;
/// After a burst, a target regains one line in this time.
const REFILL: Duration = Duration::from_secs(1);
/// Lines of firmware on the debug port (`tdvmm_devices::debugcon`).
const DEBUG_PORT: &str = "guest_debug";
/// Targets that are told apart; the names are the program's own, so there are few.
const MAX_TARGETS: usize = 256;

/// Installs the sink. `verbosity` counts `-v`: warnings, then information, debugging, everything.
///
/// # Errors
///
/// If the file cannot be opened for appending.
pub fn install(verbosity: u8, file: Option<&Path>) -> io::Result<()> {
    let out = match file {
        Some(path) => Some(OpenOptions::new().create(true).append(true).open(path)?),
        None => None,
    };
    log::set_max_level(match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
    let sink = Sink {
        started: Instant::now(),
        out,
        stderr: LazyLock::new(|| StandardStream::of(io::stderr())),
        limits: Mutex::default(),
    };
    // Only a second call could fail, and then the first sink stays.
    let _ = log::set_boxed_logger(Box::new(sink));
    Ok(())
}

struct Sink {
    started: Instant,
    out: Option<File>,
    stderr: LazyLock<StandardStream<Stderr>>,
    /// Leaf lock: nothing is called while it is held.
    limits: Mutex<HashMap<String, Limit>>,
}

struct Limit {
    tokens: u32,
    refilled: Instant,
    left_out: u64,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            refilled: now,
            left_out: 0,
        }
    }

    /// Whether a line may be written at `now`, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let gained = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        if gained > 0 {
            self.tokens = self
                .tokens
                .saturating_add(u32::try_from(gained).unwrap_or(BURST))
                .min(BURST);
            self.refilled = now;
        }
        if self.tokens == 0 {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Sink {
    fn admit(&self, target: &str) -> Option<u64> {
        let now = Instant::now();
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if limits.len() < MAX_TARGETS || limits.contains_key(target) {
            target
        } else {
            ""
        };
        if let Some(limit) = limits.get_mut(key) {
            return limit.admit(now);
        }
        limits
            .entry(key.to_owned())
            .or_insert_with(|| Limit::new(now))
            .admit(now)
    }
}

/// Writes to standard error unless its reader has fallen behind.
fn write_if_ready(stderr: &StandardStream<Stderr>, line: &[u8]) -> io::Result<usize> {
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => Ok(0),
        _ => stderr.write_once(line),
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The debug port has a limit of its own, wider than this one.
        let left_out = match record.target() {
            DEBUG_PORT => Some(0),
            target => self.admit(target),
        };
        let Some(left_out) = left_out else { return };
        let note = if left_out > 0 {
            format!(" ({left_out} lines left out)")
        } else {
            String::new()
        };
        let line = format!(
            "tdvmm {:10.6} {:5} {}{note}\n",
            self.started.elapsed().as_secs_f64(),
            record.level(),
            record.args(),
        );
        // One write per line keeps lines of several threads apart.
        let _ = match &self.out {
            Some(file) => (&*file).write(line.as_bytes()),
            None => write_if_ready(&self.stderr, line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_limited_and_counted() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let written = (0..1000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(limit.admit(start + REFILL), Some(1000 - u64::from(BURST)));
        assert_eq!(limit.admit(start + REFILL), None);
    }
}
