//! Times of one run, from the moment of execve.

#![expect(unsafe_code, reason = "the child tells the time right before execve")]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};

/// Times since execve.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Until the guest's first byte could be read from standard output.
    pub first_byte: Duration,
    /// Until the process had ended.
    pub exit: Duration,
}

impl Times {
    /// Runs `command`, which must write a byte and end well.
    pub fn of(mut command: Command) -> Result<Self> {
        let (mut stamps, mut stamper) = std::io::pipe()?;
        let (mut bytes, stdout) = std::io::pipe()?;
        command.stdout(stdout);
        let tell = move || stamper.write_all(&now().to_ne_bytes());
        // SAFETY: between fork and execve only what is async-signal-safe may be done. `now` is one call of
        // clock_gettime into an integer, and `write_all` on a pipe is `write`; neither allocates nor locks.
        unsafe { command.pre_exec(tell) };
        let mut child = command.spawn()?;
        // The parent's copies of the writing ends go with the command.
        drop(command);
        let mut byte = [0];
        let read = bytes.read(&mut byte);
        let first_byte = now();
        let status = child.wait()?;
        let exit = now();
        ensure!(status.success(), "the program ended with {status}");
        ensure!(
            read? == 1 && byte == *b"!",
            "not the guest's byte: {byte:?}"
        );
        let mut stamp = [0; 8];
        stamps.read_exact(&mut stamp)?;
        let start = u64::from_ne_bytes(stamp);
        let since = |end: u64| end.checked_sub(start).context("time goes back");
        Ok(Self {
            first_byte: Duration::from_nanos(since(first_byte)?),
            exit: Duration::from_nanos(since(exit)?),
        })
    }
}

/// Nanoseconds of the monotonic clock, which all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// One of the times of all runs, in milliseconds: the median, and what the quickest tenth stays below.
pub fn median_and_tenth(times: &[Times], part: impl Fn(&Times) -> Duration) -> (f64, f64) {
    let mut all: Vec<Duration> = times.iter().map(part).collect();
    all.sort_unstable();
    let at = |place: usize| all.get(place).copied().unwrap_or_default().as_secs_f64() * 1e3;
    (at(all.len() / 2), at(all.len() / 10))
}
