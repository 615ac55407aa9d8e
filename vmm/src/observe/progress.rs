//! Progress of what takes long, on standard error: a line a second, and none for what is over sooner.

use std::io::{self, Write};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);

/// Lines of the form `tdvmm: WHAT: 512 of 2048 MiB`.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    shown: Instant,
}

impl Progress {
    /// Nothing is shown before a second has gone by.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            shown: Instant::now(),
        }
    }

    /// So many bytes are done.
    pub fn show(&mut self, done: u64, total: u64) {
        if self.shown.elapsed() < EVERY {
            return;
        }
        self.shown = Instant::now();
        let (done, total) = (done >> 20, total >> 20);
        // Progress that cannot be shown does not matter.
        let _ = io::stderr()
            .write_all(format!("tdvmm: {}: {done} of {total} MiB\n", self.what).as_bytes());
    }
}
