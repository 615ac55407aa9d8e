//! The guest that puts load on a disk, `tests/guests/blk_load.S`: what it is assembled with, and the images
//! that it reads or makes.

/// Bytes of a request.
pub const PAGE: usize = 4096;
/// As in the guest.
const PATTERN: u64 = 0x0007_4647_6d6d_6c6b;

/// What the requests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read pages that must be those of [`image`].
    Read,
    /// Write them.
    Write,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests in flight.
    pub depth: u32,
    /// Whether the guest waits for interrupts; it polls otherwise.
    pub irq: bool,
    /// What they do.
    pub kind: Kind,
    /// How many in all.
    pub requests: u32,
    /// Pages of the disk, a power of two.
    pub pages: u32,
    /// Whether the guest switches itself off when it is done; it halts otherwise.
    pub ends: bool,
}

impl Load {
    /// Entries of the ring: three for each request in flight.
    #[must_use]
    pub fn queue_size(&self) -> u32 {
        (3 * self.depth).next_power_of_two().max(128)
    }

    /// What the guest is assembled with.
    #[must_use]
    pub fn defines(&self) -> Vec<String> {
        let define = |name: &str, value: u32| format!("{name}={value}");
        vec![
            define("DEPTH", self.depth),
            define("SIZE", self.queue_size()),
            define("IRQ", self.irq.into()),
            define("KIND", (self.kind == Kind::Write).into()),
            define("REQUESTS", self.requests),
            define("PAGES", self.pages),
            define("OFF", self.ends.into()),
        ]
    }
}

/// A disk of `pages` pages that begin with their numbers XOR a pattern, and are zeros otherwise.
#[must_use]
pub fn image(pages: u32) -> Vec<u8> {
    let mut bytes = vec![0; pages as usize * PAGE];
    for (number, page) in (0u64..).zip(bytes.chunks_mut(PAGE)) {
        page[..8].copy_from_slice(&(number ^ PATTERN).to_le_bytes());
    }
    bytes
}
