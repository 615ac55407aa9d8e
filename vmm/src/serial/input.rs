//! Input for the serial port: what the operator or a client types, held back while the guest is behind.
//!
//! The port has room for one FIFO. What does not fit waits here, at most one buffer, and nothing more is
//! read until it is gone: a guest that never reads costs no memory, and no key is lost.

use std::sync::{Arc, Mutex, PoisonError};

use tdvmm_devices::serial::Serial;

/// Bytes that are read at once.
pub const CHUNK: usize = 256;

/// Bytes that wait for the guest at most.
const WAITING_MAX: usize = 4096;

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

    /// Gives `bytes` to the guest, after what is waiting. True when all of it fit. What is beyond
    /// [`WAITING_MAX`] is dropped; a caller that stops reading until `advance` is true never gets there.
    pub fn offer(&mut self, bytes: &[u8]) -> bool {
        let room = WAITING_MAX
            .saturating_sub(self.waiting.len())
            .min(bytes.len());
        self.waiting.extend_from_slice(&bytes[..room]);
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
