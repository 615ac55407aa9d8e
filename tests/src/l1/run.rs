//! What is known of a run of a program in L1: what it said and when, and how it ended.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::protocol::Outcome;

/// One run of a program, or one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(pub(super) u32);

impl RunId {
    /// Never used twice: late events of one run must not meet another one.
    pub(super) fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Exit code or signal.
    pub outcome: Outcome,
    /// Since its start, in L1's time.
    pub after: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) name: String,
    arguments: String,
    pub(super) output: Vec<u8>,
    /// Length of the output before a piece, and when that piece came.
    times: Vec<(usize, Duration)>,
    pub(super) ended: Option<Ended>,
}

impl Run {
    pub(super) fn new(name: &str, arguments: &str) -> Self {
        Self {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            ..Self::default()
        }
    }

    /// Takes in a piece of output that came at `time`, since the start of the run.
    pub(super) fn hear(&mut self, time: Duration, piece: &[u8]) {
        self.times.push((self.output.len(), time));
        self.output.extend_from_slice(piece);
    }

    /// When the first `text` in the output began to come.
    pub(super) fn said(&self, text: &str) -> Option<Duration> {
        let at = self
            .output
            .windows(text.len().max(1))
            .position(|window| window == text.as_bytes())?;
        let pieces = self.times.partition_point(|(begin, _)| *begin <= at);
        let (_, time) = self.times.get(pieces.checked_sub(1)?)?;
        Some(*time)
    }
}

/// All of it, as the log of a case keeps it.
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "=== {} {}: ", self.name, self.arguments)?;
        match self.ended {
            Some(end) => writeln!(
                f,
                "{:?} after {:.3} s",
                end.outcome,
                end.after.as_secs_f64()
            ),
            None => writeln!(f, "still running"),
        }?;
        writeln!(f, "{}", String::from_utf8_lossy(&self.output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_text_is_that_of_the_piece_it_begins_in() {
        let [first, second] = [1, 2].map(Duration::from_secs);
        let mut run = Run::default();
        run.hear(first, b"abcd");
        run.hear(second, b"efgh");
        assert_eq!(run.said("abc"), Some(first));
        assert_eq!(run.said("de"), Some(first));
        assert_eq!(run.said("ef"), Some(second));
        assert_eq!(run.said("x"), None);
    }
}
