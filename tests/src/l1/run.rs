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
    ///
    /// `searched` is where to begin, 0 at first; where `text` is not there yet, it is moved to where it can be when more
    /// has come. A guest's output comes in many small pieces, after each of which somebody looks.
    pub(super) fn said(&self, text: &str, searched: &mut usize) -> Option<Duration> {
        let length = text.len().max(1);
        let output = self.output.get(*searched..).unwrap_or_default();
        let found = output
            .windows(length)
            .position(|window| window == text.as_bytes());
        let Some(found) = found else {
            let rest = self.output.len().saturating_sub(length - 1);
            *searched = rest.max(*searched);
            return None;
        };
        let at = *searched + found;
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
        assert_eq!(run.said("abc", &mut 0), Some(first));
        assert_eq!(run.said("de", &mut 0), Some(first));
        assert_eq!(run.said("ef", &mut 0), Some(second));
        assert_eq!(run.said("x", &mut 0), None);
    }

    #[test]
    fn text_in_pieces_is_found_and_no_byte_is_searched_twice() {
        let time = Duration::from_secs(1);
        let (mut run, mut searched) = (Run::default(), 0);
        assert_eq!(run.said("ready", &mut searched), None);
        for (count, byte) in (1..).zip(b"not yet: read") {
            run.hear(Duration::ZERO, &[*byte]);
            assert_eq!(run.said("ready", &mut searched), None);
            // What is left are the bytes that `ready` may begin with.
            assert_eq!(searched, usize::saturating_sub(count, 4));
        }
        run.hear(time, b"y, then more");
        assert_eq!(run.said("ready", &mut searched), Some(Duration::ZERO));
        assert_eq!(run.said("more", &mut searched), Some(time));
    }
}
