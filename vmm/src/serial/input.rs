//! Input for the serial port: what the operator or a client types, held back while the guest is behind.
//!
//! The port has room for one FIFO. What does not fit waits here, at most one buffer, and nothing more is
//! read until it is gone: a guest that never reads costs no memory, and no key is lost.

use std::sync::{Arc, Mutex, PoisonError};

use tdvmm_devices::serial::Serial;

/// Bytes that are read at once.
pub const CHUNK: usize = 256;

/// See the module's text.
#[derive(Debug)]
pub struct Input {
    port: Arc<Mutex<Serial>>,
    waiting: Vec<u8>,
}

impl Input {
    /// Input for `port`.
    #[must_use]
    pub fn new(port: Arc<Mutex<Serial>>) -> Self {
        Self {
            port,
            waiting: Vec::with_capacity(2 * CHUNK),
        }
    }

    /// Gives `bytes` to the guest, after what is waiting. True when all of it fit.
    pub fn offer(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend_from_slice(bytes);
        self.advance()
    }

    /// Gives the guest what is waiting. True when all of it fit.
    pub fn advance(&mut self) -> bool {
        if !self.waiting.is_empty() {
            let taken = {
                let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
                let room = port.room().min(self.waiting.len());
                port.enqueue(&self.waiting[..room])
            };
            self.waiting.drain(..taken);
        }
        self.waiting.is_empty()
    }
}
