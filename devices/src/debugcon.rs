//! The debug port of firmware (0x402): bytes become lines of the log, a bounded number of them.
//!
//! Reads give 0xe9, by which firmware knows that someone listens. Debug builds of firmware are chatty,
//! so the limit is wider than that of warnings: 1000 lines at once, then 100 a second.

use std::time::Duration;

use crate::bus::{AccessError, BusDevice};
use crate::guest_log::{self, GuestText, Limiter};

/// What a read gives.
const PRESENT: u8 = 0xe9;
/// A longer line is cut in pieces.
const LINE: usize = 200;
/// Where the lines go in the log.
const TARGET: &str = "guest_debug";

/// See the module's text. Goes on 1 port.
#[derive(Debug)]
pub struct DebugCon {
    line: Vec<u8>,
    limiter: Limiter,
}

impl DebugCon {
    /// Ports that it answers.
    pub const PORTS: u64 = 1;

    /// A port with an empty line.
    #[must_use]
    pub fn new() -> Self {
        Self {
            line: Vec::with_capacity(LINE),
            limiter: Limiter::with_rate(1000, Duration::from_millis(10)),
        }
    }

    /// Takes a byte; true if the line is complete and is to be told and cleared.
    fn take(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' => !self.line.is_empty(),
            b'\r' => false,
            _ => {
                self.line.push(byte);
                self.line.len() >= LINE
            }
        }
    }
}

impl Default for DebugCon {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for DebugCon {
    fn name(&self) -> &str {
        "debug-port"
    }

    fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let len = data.len();
        let [value] = data else {
            return Err(AccessError::Size(len));
        };
        *value = PRESENT;
        Ok(())
    }

    fn write(&mut self, _: u64, data: &[u8]) -> Result<(), AccessError> {
        let &[value] = data else {
            return Err(AccessError::Size(data.len()));
        };
        if self.take(value) {
            if let Some(suppressed) = self.limiter.admit() {
                let text = GuestText(&self.line);
                guest_log::info(TARGET, suppressed, format_args!("{text}"));
            }
            self.line.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_a_line_at_its_end_or_when_it_is_long() {
        let mut port = DebugCon::new();
        let complete = |port: &mut DebugCon, bytes: &[u8]| {
            let done = bytes.iter().filter(|b| port.take(**b)).count();
            (done, port.line.len())
        };
        assert_eq!(complete(&mut port, b"\r\n\n"), (0, 0), "empty lines");
        assert_eq!(complete(&mut port, b"SecCore\r"), (0, 7));
        assert_eq!(complete(&mut port, b"\n"), (1, 7));
        port.line.clear();
        assert_eq!(complete(&mut port, &[b'x'; LINE]), (1, LINE));
    }

    #[test]
    fn line_never_grows_beyond_its_bound() {
        let mut port = DebugCon::new();
        for byte in (0..=u8::MAX).cycle().take(100_000) {
            port.write(0, &[byte]).unwrap();
            assert!(port.line.len() < LINE && port.line.capacity() == LINE);
        }
    }

    #[test]
    fn read_tells_that_someone_listens() {
        let mut data = [0];
        DebugCon::new().read(0, &mut data).unwrap();
        assert_eq!(data, [0xe9]);
    }
}
