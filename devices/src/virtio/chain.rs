//! A descriptor chain, walked once into a bounded list of segments.
//!
//! Each descriptor is read once; its range is then checked and resolved, and nothing of the ring is looked
//! at again for this request. The list is owned and used again for the next request, so it allocates only
//! until it has grown to the longest chain seen.

use super::queue::{MAX_SIZE, QueueFault};
use super::ring::{Descriptor, Ring};
use super::segment::{GuestMap, Segment};
use crate::dma::DmaView;

/// Descriptor flags (virtio 1.3, 2.7.5).
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// Bytes of a descriptor in an indirect table.
const DESCRIPTOR_LEN: u32 = 16;

/// What most requests need; longer ones make the list grow once.
const USUAL_SEGMENTS: usize = 16;

/// See the module's text. The readable segments come first.
#[derive(Debug)]
pub struct Chain {
    /// Declared first and so dropped before `view`, which keeps the memory mapped.
    segments: Vec<Segment>,
    /// How many of the segments are readable.
    readable: usize,
    readable_len: u32,
    total_len: u32,
    head: u16,
    /// Page-state generation under which the segments were checked.
    generation: u64,
    view: DmaView,
}

impl Chain {
    pub(super) fn new(view: &DmaView) -> Self {
        Chain {
            segments: Vec::with_capacity(USUAL_SEGMENTS),
            readable: 0,
            readable_len: 0,
            total_len: 0,
            head: 0,
            generation: 0,
            view: view.clone(),
        }
    }

    /// The number that [`super::queue::Queue::add_used`] takes.
    #[inline]
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver gives to the device.
    #[inline]
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// What the device may fill.
    #[inline]
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes of all readable segments.
    #[inline]
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes of all writable segments.
    #[inline]
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.total_len.wrapping_sub(self.readable_len)
    }

    /// Copies readable bytes from `offset` on into `to`; how many there were.
    pub fn read_at(&self, offset: u32, to: &mut [u8]) -> usize {
        let mut done = 0;
        for (segment, skip) in from_offset(self.readable(), offset) {
            let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            done = done.wrapping_add(segment.read(skip, rest));
        }
        done
    }

    /// Copies `from` to the writable bytes from `offset` on; how many had room.
    pub fn write_at(&self, offset: u32, from: &[u8]) -> usize {
        let mut done = 0;
        for (segment, skip) in from_offset(self.writable(), offset) {
            let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            done = done.wrapping_add(segment.write(skip, rest));
        }
        done
    }

    /// Called when an I/O into or out of the segments has ended. If pages of them became private
    /// meanwhile, the I/O may have brought their shared side back: it is given up again, and the
    /// queue faults (step 4 of the conversion protocol).
    ///
    /// # Errors
    ///
    /// If a segment is no longer shared.
    #[inline]
    pub fn check_after_io(&self) -> Result<(), QueueFault> {
        if self.view.generation() == self.generation {
            return Ok(());
        }
        self.recheck_segments()
    }

    #[cold]
    fn recheck_segments(&self) -> Result<(), QueueFault> {
        let mut result = Ok(());
        for segment in &self.segments {
            let (addr, len) = (segment.guest(), u64::from(segment.len()));
            if !self.view.is_shared(addr, len) {
                self.view.discard_private(addr..addr.saturating_add(len));
                result = Err(QueueFault::Memory { addr, len });
            }
        }
        result
    }

    /// Replaces the content by the chain of `head`.
    #[inline]
    pub(super) fn walk(
        &mut self,
        ring: &Ring,
        map: &GuestMap,
        generation: u64,
        head: u16,
        indirect: bool,
    ) -> Result<(), QueueFault> {
        self.clear(head, generation);
        let (mut index, mut left) = (head, ring.size());
        loop {
            let descriptor = ring
                .descriptor(index)
                .ok_or(QueueFault::Descriptor(index))?;
            if descriptor.flags & F_INDIRECT != 0 {
                return self.walk_table(map, descriptor, indirect);
            }
            self.push(map, descriptor)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            // More steps than descriptors: the chain bites its tail.
            left = left.wrapping_sub(1);
            if left == 0 {
                return Err(QueueFault::TooLong);
            }
            index = descriptor.next;
        }
    }

    /// virtio 1.3, 2.7.5.3: the table ends the chain and holds no further tables.
    fn walk_table(
        &mut self,
        map: &GuestMap,
        table: Descriptor,
        negotiated: bool,
    ) -> Result<(), QueueFault> {
        let fault = QueueFault::Indirect(table.len);
        let count = table.len / DESCRIPTOR_LEN;
        // The WRITE flag of the table's own descriptor is to be ignored (virtio 1.3, 2.7.5.3.2).
        if !negotiated
            || table.flags & F_NEXT != 0
            || count == 0
            || !table.len.is_multiple_of(DESCRIPTOR_LEN)
        {
            return Err(fault);
        }
        let count = u16::try_from(count).ok().filter(|count| *count <= MAX_SIZE);
        let count = count.ok_or(fault)?;
        let entries = map.segment(table.addr, table.len)?;
        let (mut index, mut left) = (0, count);
        loop {
            let descriptor = entries
                .descriptor(index)
                .ok_or(QueueFault::Descriptor(index))?;
            if descriptor.flags & F_INDIRECT != 0 {
                return Err(fault);
            }
            self.push(map, descriptor)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            left = left.wrapping_sub(1);
            if left == 0 {
                return Err(QueueFault::TooLong);
            }
            index = descriptor.next;
        }
    }

    fn clear(&mut self, head: u16, generation: u64) {
        self.segments.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.total_len = 0;
        self.head = head;
        self.generation = generation;
    }

    /// A descriptor of no bytes adds nothing, wherever it points.
    #[inline]
    fn push(&mut self, map: &GuestMap, descriptor: Descriptor) -> Result<(), QueueFault> {
        let Descriptor {
            addr, len, flags, ..
        } = descriptor;
        if len == 0 {
            return Ok(());
        }
        let total = self.total_len.checked_add(len);
        self.total_len = total.ok_or(QueueFault::TooLong)?;
        let readable = flags & F_WRITE == 0;
        if readable && self.readable < self.segments.len() {
            return Err(QueueFault::Order);
        }
        map.push_segments(&mut self.segments, addr, len)?;
        if self.segments.len() > usize::from(MAX_SIZE) {
            return Err(QueueFault::TooLong);
        }
        if readable {
            self.readable = self.segments.len();
            self.readable_len = self.total_len;
        }
        Ok(())
    }
}

/// The segments from byte `offset` on, each with how much of it to skip.
fn from_offset(segments: &[Segment], offset: u32) -> impl Iterator<Item = (&Segment, usize)> {
    let mut left = offset;
    segments.iter().filter_map(move |segment| {
        let skip = left.min(segment.len());
        left = left.wrapping_sub(skip);
        (skip < segment.len()).then_some((segment, usize::try_from(skip).ok()?))
    })
}
