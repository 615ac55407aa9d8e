//! How much work a worker does in one call on its own thread; then others have their turn, and the thread's
//! messages are looked at. What io_uring does costs nothing. One request is served whole, however long it is. Pure.

use super::slot::{Slot, Work};

/// Bytes that are served in one call.
const BUDGET: u64 = 16 << 20;
/// What the shortest request costs of that, and what a flush does.
const LEAST_COST: u64 = 4 << 10;
const FLUSH_COST: u64 = 2 << 20;
/// A discard writes tables and no data: one byte of so many.
const DISCARD_SHARE: u64 = 16;

/// What a discard of `len` bytes costs.
pub(super) fn discard_cost(len: u64) -> u64 {
    len.wrapping_div(DISCARD_SHARE)
}

/// What is left for one call.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    exceeded: bool,
}

impl Budget {
    pub fn new() -> Self {
        Budget {
            left: BUDGET,
            exceeded: false,
        }
    }

    /// Whether one more request may be served. If not, there is work for another call.
    pub fn has_more(&mut self) -> bool {
        self.exceeded = self.left == 0;
        !self.exceeded
    }

    /// So many bytes were copied without waiting.
    pub fn spend_bytes(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes.max(LEAST_COST));
    }

    /// What is left of a request is done.
    pub fn spend(&mut self, slot: &Slot) {
        let bytes = match slot.work {
            Work::Read | Work::Write { .. } => u64::from(slot.left),
            Work::Allocate {
                len, zeros: true, ..
            } => len,
            Work::Allocate { len, .. } => discard_cost(len),
            Work::Flush => FLUSH_COST,
        };
        self.spend_bytes(bytes);
    }

    /// Whether a request had to wait for another call.
    pub fn is_exceeded(&self) -> bool {
        self.exceeded
    }
}
