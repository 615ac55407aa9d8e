//! MSI-X of a function (PCI Local Bus 3.0, 6.8.2): capability, vector table, pending bits.
//!
//! The guest's side ([`Msix`]) belongs to the function and is used under its lock. The device's side
//! ([`MsixTrigger`]) is shared with I/O threads and takes no lock: a vector that is masked keeps its
//! interrupt as a pending bit, which unmasking delivers.
//!
//! Masking leaves the route of a vector as it is, since an interrupt may be on its way just then; a
//! route is set when a vector becomes unmasked with a message that differs from the one it had.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::guest_warn;
use crate::irq::Msi;

/// The vectors of one function as the process has them (irqfds and GSI routes), or a recorder.
pub trait MsixVectors: Debug + Send + Sync {
    /// From now on [`MsixVectors::fire`] on `vector` sends `to`.
    ///
    /// # Errors
    ///
    /// If the host refuses; the vector keeps its former route then.
    fn route(&self, vector: u16, to: Msi) -> io::Result<()>;
    /// Sends the message of `vector`. Never blocks.
    ///
    /// # Errors
    ///
    /// If the host refuses; the interrupt is lost then.
    fn fire(&self, vector: u16) -> io::Result<()>;
}

/// A place in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixPlace {
    /// Number of the BAR.
    pub bar: u8,
    /// Offset, a multiple of 8.
    pub offset: u32,
}

impl MsixPlace {
    fn wire(self) -> [u8; 4] {
        ((self.offset & !7) | u32::from(self.bar & 7)).to_le_bytes()
    }
}

#[derive(Debug)]
struct Line {
    masked: AtomicBool,
    pending: AtomicBool,
}

/// The device's side. Cheap to clone behind an `Arc`; used from any thread.
#[derive(Debug)]
pub struct MsixTrigger {
    lines: Box<[Line]>,
    vectors: Arc<dyn MsixVectors>,
}

impl MsixTrigger {
    /// Sends the interrupt of `vector`, or notes it as pending while that is masked. A vector that
    /// does not exist (such as `NO_VECTOR` of virtio) sends nothing.
    ///
    /// # Errors
    ///
    /// If the host refuses; the interrupt is lost then.
    pub fn trigger(&self, vector: u16) -> io::Result<()> {
        let Some(line) = self.lines.get(usize::from(vector)) else {
            return Ok(());
        };
        // First pending, then the mask; `unmask` clears the mask first, then looks for pending. In any
        // order of the two threads one of them sees both and sends, and the swap lets only one.
        line.pending.store(true, Ordering::SeqCst);
        if line.masked.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.send_pending(vector, line)
    }

    fn send_pending(&self, vector: u16, line: &Line) -> io::Result<()> {
        if line.pending.swap(false, Ordering::SeqCst) {
            self.vectors.fire(vector)?;
        }
        Ok(())
    }
}

/// One entry of the table as the guest wrote it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    words: [u32; 4],
    /// What the vector sends now.
    routed: Option<Msi>,
}

impl Entry {
    const MASKED: u32 = 1;

    fn message(&self) -> Msi {
        let [low, high, data, _] = self.words;
        Msi {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        }
    }

    fn is_masked(&self) -> bool {
        let [_, _, _, control] = self.words;
        control & Self::MASKED != 0
    }
}

/// The guest's side. See the module's text.
#[derive(Debug)]
pub struct Msix {
    table: Box<[Entry]>,
    trigger: Arc<MsixTrigger>,
    enabled: bool,
    all_masked: bool,
}

impl Msix {
    /// Capability id.
    pub const CAPABILITY_ID: u8 = 0x11;
    /// Bytes of a table entry.
    pub const ENTRY_LEN: u64 = 16;
    /// The most vectors that a function may have.
    pub const MAX_VECTORS: u16 = 2048;
    const ENABLE: u16 = 1 << 15;
    const MASK_ALL: u16 = 1 << 14;
    /// Which bits of the capability's message control (at +2) a guest may write.
    pub const CONTROL_WRITABLE: u16 = Self::ENABLE | Self::MASK_ALL;

    /// A table of `count` vectors (1 to 2048, else the nearest), all masked, MSI-X off.
    #[must_use]
    pub fn new(vectors: Arc<dyn MsixVectors>, count: u16) -> Self {
        let count = usize::from(count.clamp(1, Self::MAX_VECTORS));
        let masked = Entry {
            words: [0, 0, 0, Entry::MASKED],
            routed: None,
        };
        let lines = (0..count).map(|_| Line {
            masked: AtomicBool::new(true),
            pending: AtomicBool::new(false),
        });
        Self {
            table: vec![masked; count].into_boxed_slice(),
            trigger: Arc::new(MsixTrigger {
                lines: lines.collect(),
                vectors,
            }),
            enabled: false,
            all_masked: false,
        }
    }

    /// Number of vectors.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.table.len()).unwrap_or(Self::MAX_VECTORS)
    }

    /// The device's side.
    #[must_use]
    pub fn trigger(&self) -> Arc<MsixTrigger> {
        Arc::clone(&self.trigger)
    }

    /// Body of the capability, for `ConfigSpace::add_capability`; message control comes first.
    #[must_use]
    pub fn capability(&self, table: MsixPlace, pending: MsixPlace) -> [u8; 10] {
        let [c0, c1] = self.count().wrapping_sub(1).to_le_bytes();
        let [t0, t1, t2, t3] = table.wire();
        let [p0, p1, p2, p3] = pending.wire();
        [c0, c1, t0, t1, t2, t3, p0, p1, p2, p3]
    }

    /// Bytes of the pending bit array.
    #[must_use]
    pub fn pending_len(&self) -> u64 {
        u64::from(self.count()).div_ceil(64).saturating_mul(8)
    }

    /// The guest wrote the capability's message control; the new value as stored.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & Self::ENABLE != 0;
        self.all_masked = control & Self::MASK_ALL != 0;
        for vector in 0..self.count() {
            self.apply(vector);
        }
    }

    /// The device was reset: what it had to say is not said any more. Table and masks are the function's and stay.
    pub fn forget_pending(&self) {
        for line in &self.trigger.lines {
            line.pending.store(false, Ordering::SeqCst);
        }
    }

    /// Reads the table. Anything but an aligned dword or quadword reads as 0 (6.8.2 allows no other).
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (chunk, (vector, word)) in data.chunks_exact_mut(4).zip(words(offset)) {
            if let Some(value) = self
                .table
                .get(usize::from(vector))
                .and_then(|entry| entry.words.get(word))
            {
                chunk.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Writes the table. Anything but an aligned dword or quadword is dropped.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) {
            return;
        }
        for (chunk, (vector, word)) in data.chunks_exact(4).zip(words(offset)) {
            let stored = self
                .table
                .get_mut(usize::from(vector))
                .and_then(|entry| entry.words.get_mut(word));
            let (Some(stored), &[a, b, c, d]) = (stored, chunk) else {
                return;
            };
            *stored = u32::from_le_bytes([a, b, c, d]);
            if word == 3 {
                *stored &= Entry::MASKED;
            }
            self.apply(vector);
        }
    }

    /// Reads the pending bits. They cannot be written.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, value) in (offset..).zip(data.iter_mut()) {
            let first = usize::try_from(byte.saturating_mul(8)).unwrap_or(usize::MAX);
            let lines = self.trigger.lines.iter().skip(first).take(8);
            *value = lines.rev().fold(0, |bits, line| {
                (bits << 1) | u8::from(line.pending.load(Ordering::SeqCst))
            });
        }
    }

    /// Makes the line follow the entry: route first, then open, then deliver what was pending.
    fn apply(&mut self, vector: u16) {
        let index = usize::from(vector);
        let (Some(entry), Some(line)) = (self.table.get_mut(index), self.trigger.lines.get(index))
        else {
            return;
        };
        if !self.enabled || self.all_masked || entry.is_masked() {
            line.masked.store(true, Ordering::SeqCst);
            return;
        }
        let message = entry.message();
        if entry.routed != Some(message) {
            if let Err(error) = self.trigger.vectors.route(vector, message) {
                guest_warn!("MSI-X vector {vector}: cannot be routed to {message:x?}: {error}");
                return;
            }
            entry.routed = Some(message);
        }
        line.masked.store(false, Ordering::SeqCst);
        if let Err(error) = self.trigger.send_pending(vector, line) {
            guest_warn!("MSI-X vector {vector}: pending interrupt lost: {error}");
        }
    }
}

/// Vector and word of each dword from `offset` on; none if that is not aligned.
fn words(offset: u64) -> impl Iterator<Item = (u16, usize)> {
    let first = if offset.is_multiple_of(4) {
        offset / 4
    } else {
        u64::MAX
    };
    (first..u64::MAX).map_while(|word| {
        let vector = u16::try_from(word / 4).ok()?;
        Some((vector, usize::try_from(word % 4).ok()?))
    })
}

#[cfg(test)]
mod tests;
