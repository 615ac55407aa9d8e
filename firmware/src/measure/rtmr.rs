//! A run-time measurement register (RTMR), which only ever takes in one digest more.

use sha2::{Digest as _, Sha384};

use super::Digest;

/// Bytes of a digest.
const LEN: usize = 48;

/// The value of a register. It starts as zeros; nothing but the end of the TD resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtmr(Digest);

impl Rtmr {
    /// A register of a TD that has just started.
    #[must_use]
    pub const fn new() -> Self {
        Self(Digest::from_bytes([0; LEN]))
    }

    /// Takes in `event`: the new value is the digest of the old one and of it (`TDG.MR.RTMR.EXTEND`).
    pub fn extend(&mut self, event: &Digest) {
        let hash = Sha384::new()
            .chain_update(self.0.as_bytes())
            .chain_update(event.as_bytes());
        self.0 = Digest::from_bytes(hash.finalize().into());
    }

    /// The value.
    #[must_use]
    pub const fn value(&self) -> Digest {
        self.0
    }
}

impl Default for Rtmr {
    fn default() -> Self {
        Self::new()
    }
}
