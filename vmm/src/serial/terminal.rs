//! The operator's terminal in raw mode, given back on every way out.
//!
//! Raw mode is left when the guard is dropped, and by the hook of [`restore_on_panic`]: a panic ends the
//! process without dropping anything. Signals that end the process come through the main loop,
//! so they drop the guard.

use std::io::{self, IsTerminal};
use std::sync::Mutex;

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The settings to go back to, while the terminal is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input is raw as long as this lives.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal: every key goes to the guest, Ctrl-C too.
    ///
    /// # Errors
    ///
    /// If the terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        // Output processing stays: the program's own lines end in a bare line feed.
        raw.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
        if let Ok(mut slot) = SAVED.lock() {
            *slot = Some(saved);
        }
        let guard = Self(());
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, if it is raw. Harmless otherwise, and from any thread.
pub fn restore() {
    // `try_lock`: a panic while the lock is held must not hang.
    if let Ok(mut slot) = SAVED.try_lock()
        && let Some(saved) = slot.take()
    {
        // Nothing more can be done on the way out.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &saved);
    }
}

/// Lets every panic restore the terminal before it is reported. Called once, at the start.
pub fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

/// Finds Ctrl-A x in what the operator types; Ctrl-A Ctrl-A gives the guest one Ctrl-A.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    after_escape: bool,
}

const ESCAPE: u8 = 0x01;

impl EscapeFilter {
    /// Takes typed bytes, appends those for the guest to `out`; true when the operator wants to end.
    pub fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            match (std::mem::take(&mut self.after_escape), byte) {
                (true, b'x' | b'X') => return true,
                (false, ESCAPE) => self.after_escape = true,
                (_, byte) => out.push(byte),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_then_x_ends_and_doubled_escape_passes_one() {
        let mut filter = EscapeFilter::default();
        let mut out = Vec::new();
        assert!(!filter.feed(b"ab\x01", &mut out));
        assert!(!filter.feed(b"\x01c\x01d", &mut out));
        assert_eq!(out, b"ab\x01cd");
        assert!(!filter.feed(b"\x01", &mut out));
        assert!(filter.feed(b"x", &mut out));
    }
}
