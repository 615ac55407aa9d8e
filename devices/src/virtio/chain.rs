//! A descriptor chain, walked once into a bounded list of segments.
//!
//! Each descriptor is read once; its range is then checked and resolved, and nothing of the ring is looked
//! at again for this request. The list is owned and used again for the next request, so it allocates only
//! until it has grown to the longest chain seen.

use super::queue::{MAX_SIZE, QueueFault};
use super::ring::{Descriptor, Ring};
use super::segment::{GuestMap, IndirectTable, Segment};
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
    /// Grows, never shrinks; behind `count` it holds what former requests left.
    segments: Vec<Segment>,
    count: usize,
    /// How many of the segments are readable.
    readable: usize,
    readable_len: u32,
    total_len: u32,
    head: u16,
    /// Page-state generation under which the segments were checked.
    generation: u64,
    /// Number of the region where the last segment was: most likely the next one is there too.
    region: usize,
    /// Keeps the memory mapped that the segments lie in.
    view: DmaView,
}

/// The list under construction; all of it fits into registers.
struct List<'a> {
    map: &'a GuestMap,
    region: usize,
    count: usize,
    readable: usize,
    readable_len: u64,
    total_len: u64,
}

impl Chain {
    pub(super) fn new(view: &DmaView) -> Self {
        Chain {
            segments: std::iter::repeat_with(|| Segment::UNUSED)
                .take(USUAL_SEGMENTS)
                .collect(),
            count: 0,
            readable: 0,
            readable_len: 0,
            total_len: 0,
            head: 0,
            generation: 0,
            region: 0,
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
        self.segments
            .get(self.readable..self.count)
            .unwrap_or_default()
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
        for segment in self.readable().iter().chain(self.writable()) {
            let (addr, len) = (segment.guest(), u64::from(segment.len()));
            if !self.view.is_shared(addr, len) {
                self.view.discard_private(addr..addr.saturating_add(len));
                result = Err(QueueFault::Memory { addr, len });
            }
        }
        result
    }

    /// Replaces the content by the chain of `head`; an error leaves the former content.
    #[inline]
    pub(super) fn walk(
        &mut self,
        ring: &Ring,
        map: &GuestMap,
        generation: u64,
        head: u16,
        indirect: bool,
    ) -> Result<(), QueueFault> {
        let mut list = List::new(map, self.region);
        let read = |index| ring.descriptor(index);
        if let Some(from) = list.follow(&mut self.segments, read, head, ring.size())? {
            let table = open_table(map, list.region, from, indirect)?;
            let read = |index| table.descriptor(index);
            if list
                .follow(&mut self.segments, read, 0, table.count())?
                .is_some()
            {
                return Err(QueueFault::Indirect(from.len));
            }
        }
        self.total_len = u32::try_from(list.total_len).map_err(|_| QueueFault::TooLong)?;
        self.readable_len = lower_half(list.readable_len);
        self.head = head;
        self.generation = generation;
        self.count = list.count;
        self.readable = list.readable;
        self.region = list.region;
        Ok(())
    }
}

impl<'a> List<'a> {
    #[inline]
    fn new(map: &'a GuestMap, region: usize) -> Self {
        List {
            map,
            region,
            count: 0,
            readable: 0,
            readable_len: 0,
            total_len: 0,
        }
    }

    /// Follows a chain of at most `left` descriptors. `Some` is a reference to an indirect table, at
    /// which the chain ends. A descriptor of no bytes adds nothing, wherever it points.
    #[inline]
    fn follow(
        &mut self,
        slots: &mut Vec<Segment>,
        read: impl Fn(u16) -> Option<Descriptor>,
        mut index: u16,
        mut left: u16,
    ) -> Result<Option<Descriptor>, QueueFault> {
        let mut region = self.map.region(self.region);
        loop {
            let Some(descriptor) = read(index) else {
                return Err(QueueFault::Descriptor(index));
            };
            let Descriptor {
                addr, len, flags, ..
            } = descriptor;
            if flags & F_INDIRECT != 0 {
                return Ok(Some(descriptor));
            }
            if len != 0 {
                let readable = flags & F_WRITE == 0;
                if readable && self.readable != self.count {
                    return Err(QueueFault::Order);
                }
                if !self.map.view().is_shared(addr, u64::from(len)) {
                    return Err(memory_fault(descriptor));
                }
                // Cannot overflow: at most twice MAX_SIZE descriptors of 32-bit lengths.
                self.total_len = self.total_len.wrapping_add(u64::from(len));
                if let Some(segment) = region.segment(addr, len)
                    && let Some(slot) = slots.get_mut(self.count)
                {
                    *slot = segment;
                    self.count = self.count.wrapping_add(1);
                } else {
                    match push_slow(self.map, slots, self.count, descriptor) {
                        Ok(now) => (self.count, self.region) = now,
                        Err(fault) => return Err(fault),
                    }
                    region = self.map.region(self.region);
                }
                if readable {
                    self.readable = self.count;
                    self.readable_len = self.total_len;
                }
            }
            if flags & F_NEXT == 0 {
                return Ok(None);
            }
            // More steps than descriptors: the chain bites its tail.
            left = left.wrapping_sub(1);
            if left == 0 {
                return Err(QueueFault::TooLong);
            }
            index = descriptor.next;
        }
    }
}

/// The list of `count` segments is full, or the bytes are not all in the region of the last one. Gives
/// the new count and region. It takes no `List`, which would have to live in memory for that.
#[cold]
#[inline(never)]
fn push_slow(
    map: &GuestMap,
    slots: &mut Vec<Segment>,
    mut count: usize,
    from: Descriptor,
) -> Result<(usize, usize), QueueFault> {
    let (mut addr, mut left) = (from.addr, from.len);
    loop {
        if count == slots.len() {
            if count >= usize::from(MAX_SIZE) {
                return Err(QueueFault::TooLong);
            }
            slots.resize_with(count.saturating_mul(2), || Segment::UNUSED);
        }
        let number = map.region_of(addr).ok_or_else(|| memory_fault(from))?;
        let region = map.region(number);
        let len = region.holds(addr, left);
        let segment = region.segment(addr, len);
        let segment = segment.ok_or_else(|| memory_fault(from))?;
        let slot = slots.get_mut(count).ok_or(QueueFault::TooLong)?;
        *slot = segment;
        count = count.wrapping_add(1);
        left = left.wrapping_sub(len);
        addr = addr.wrapping_add(u64::from(len));
        if left == 0 {
            return Ok((count, number));
        }
    }
}

/// Of a length that is known to be no larger than a `u32`.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "no larger than a u32")]
fn lower_half(len: u64) -> u32 {
    len as u32
}

#[cold]
fn memory_fault(from: Descriptor) -> QueueFault {
    QueueFault::Memory {
        addr: from.addr,
        len: u64::from(from.len),
    }
}

/// The table that `from` refers to (virtio 1.3, 2.7.5.3). The WRITE flag of the reference itself is to
/// be ignored.
#[inline]
fn open_table(
    map: &GuestMap,
    region: usize,
    from: Descriptor,
    negotiated: bool,
) -> Result<IndirectTable, QueueFault> {
    let fault = QueueFault::Indirect(from.len);
    if !negotiated || from.flags & F_NEXT != 0 || !from.len.is_multiple_of(DESCRIPTOR_LEN) {
        return Err(fault);
    }
    match u16::try_from(from.len / DESCRIPTOR_LEN) {
        Ok(count @ 1..=MAX_SIZE) => map.table(region, from.addr, count),
        _ => Err(fault),
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
