//! A descriptor chain, walked once into a bounded list of segments.
//!
//! Each descriptor is read once; its range is then checked and resolved, and nothing of the ring is looked
//! at again for this request. The list is owned and used again for the next request, so it allocates only
//! until it has grown to the longest chain seen.

use std::ops::Range;

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
/// Bytes of the longest table.
const TABLE_MAX: u32 = 16 * MAX_SIZE as u32;

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
    total_len: u32,
    head: u16,
    /// Page-state generation under which the segments were checked.
    generation: u64,
    /// Number of the region where the last segment was: most likely the next one is there too.
    region: usize,
    /// Keeps the memory mapped that the segments lie in.
    view: DmaView,
}

/// A walk in progress. Passed by value where it leaves the loop, so that in the loop all of it can stay
/// in registers.
#[derive(Clone, Copy)]
struct Walk {
    /// The next descriptor.
    index: u16,
    /// Number of the region tried first.
    region: usize,
    count: usize,
    /// What `count` may grow to: one for each descriptor that there is. A chain that bites its tail
    /// comes to this end.
    limit: usize,
    readable: usize,
    total_len: u64,
}

/// Why the loop ended.
enum Stop {
    /// The last descriptor of the chain is done.
    End,
    /// There is no descriptor of the number in `index`.
    NoDescriptor,
    /// This one is not for the loop; nothing was done for it.
    At(Descriptor),
}

impl Chain {
    pub(super) fn new(view: &DmaView) -> Self {
        Chain {
            segments: std::iter::repeat_with(|| Segment::UNUSED)
                .take(USUAL_SEGMENTS)
                .collect(),
            count: 0,
            readable: 0,
            total_len: 0,
            head: 0,
            generation: 0,
            region: 0,
            view: view.clone(),
        }
    }

    /// An empty chain of the same queue.
    pub(super) fn another(&self) -> Self {
        Self::new(&self.view)
    }

    /// Under which page-state generation the segments were checked.
    #[inline]
    pub(super) fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
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

    /// Bytes of all readable segments; added up when asked for.
    #[inline]
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        let lens = self.readable().iter().map(Segment::len);
        lens.fold(0, u32::wrapping_add)
    }

    /// Bytes of all writable segments.
    #[inline]
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.total_len.wrapping_sub(self.readable_len())
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
        for range in self.no_longer_shared() {
            let (addr, len) = (range.start, range.end.wrapping_sub(range.start));
            self.view.discard_private(range);
            result = Err(QueueFault::Memory { addr, len });
        }
        result
    }

    /// The segments of which pages became private since they were checked.
    pub(super) fn no_longer_shared(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let segments = self.readable().iter().chain(self.writable());
        let is_old = self.view.generation() != self.generation;
        segments.filter_map(move |segment| {
            let (addr, len) = (segment.guest(), u64::from(segment.len()));
            let turned = is_old && !self.view.is_shared(addr, len);
            turned.then(|| addr..addr.saturating_add(len))
        })
    }

    /// Segments that there is room for, of the longest chain so far.
    pub(super) fn room(&self) -> usize {
        self.segments.len()
    }

    /// The memory of the segments.
    pub(super) fn view(&self) -> &DmaView {
        &self.view
    }

    /// Replaces the content by the chain of `head`. After an error it is some former chain's.
    #[inline]
    pub(super) fn walk(
        &mut self,
        ring: &Ring,
        map: &GuestMap,
        head: u16,
    ) -> Result<(), QueueFault> {
        self.head = head;
        // Where it refers to no table, `follow` reads it again. To hand this copy on costs 16 to 35 instructions
        // of each chain (benches/queue.rs), and nothing rests on the two being alike: this one is used to the end
        // or only to choose the way, and on each way everything that was read is checked.
        let first = ring.descriptor(head).ok_or(QueueFault::Descriptor(head))?;
        let mut walk = Walk {
            index: head,
            region: self.region,
            count: 0,
            limit: usize::from(ring.size()),
            readable: 0,
            total_len: 0,
        };
        let slots = &mut self.segments;
        if first.flags(F_INDIRECT) != 0 {
            // What Linux does: the whole chain is in a table of its own.
            walk.follow_table(slots, map, first, ring.indirect())?;
        } else if let Some(table) = walk.follow(slots, map, |index| ring.descriptor(index))? {
            walk = walk.follow_rest(slots, map, table, ring.indirect())?;
        }
        self.total_len = u32::try_from(walk.total_len).map_err(|_| QueueFault::TooLong)?;
        self.count = walk.count;
        self.readable = walk.readable;
        self.region = walk.region;
        if map.view().has_private() {
            return self.check_shared();
        }
        Ok(())
    }

    fn check_shared(&self) -> Result<(), QueueFault> {
        for segment in self.readable().iter().chain(self.writable()) {
            let (addr, len) = (segment.guest(), u64::from(segment.len()));
            if !self.view.is_shared(addr, len) {
                return Err(QueueFault::Memory { addr, len });
            }
        }
        Ok(())
    }
}

impl Walk {
    /// Follows the chain from `index` to its end, or to a reference to an indirect table.
    #[inline(always)]
    fn follow(
        &mut self,
        slots: &mut Vec<Segment>,
        map: &GuestMap,
        read: impl Fn(u16) -> Option<Descriptor>,
    ) -> Result<Option<Descriptor>, QueueFault> {
        loop {
            match self.run(slots, map, &read) {
                Stop::End => return Ok(None),
                Stop::NoDescriptor => return Err(QueueFault::Descriptor(self.index)),
                Stop::At(table) if table.flags(F_INDIRECT) != 0 => return Ok(Some(table)),
                Stop::At(odd) => {
                    *self = self.step(slots, map, odd)?;
                    if odd.flags(F_NEXT) == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Follows the table that `from` refers to, to the chain's end.
    #[inline(always)]
    fn follow_table(
        &mut self,
        slots: &mut Vec<Segment>,
        map: &GuestMap,
        from: Descriptor,
        negotiated: bool,
    ) -> Result<(), QueueFault> {
        let table = open_table(map, self.region, from, negotiated)?;
        self.index = 0;
        self.limit = self.count.wrapping_add(usize::from(table.count()));
        match self.follow(slots, map, |index| table.descriptor(index))? {
            None => Ok(()),
            Some(_) => Err(QueueFault::Indirect(from.len())),
        }
    }

    /// As [`Walk::follow_table`], for a table that is not the whole chain.
    #[cold]
    #[inline(never)]
    fn follow_rest(
        mut self,
        slots: &mut Vec<Segment>,
        map: &GuestMap,
        from: Descriptor,
        negotiated: bool,
    ) -> Result<Self, QueueFault> {
        self.follow_table(slots, map, from, negotiated)?;
        Ok(self)
    }

    /// Does what the loop left: an empty descriptor, another region, a longer list, or a fault.
    #[cold]
    #[inline(never)]
    fn step(
        mut self,
        slots: &mut Vec<Segment>,
        map: &GuestMap,
        from: Descriptor,
    ) -> Result<Self, QueueFault> {
        let readable = from.flags(F_WRITE) == 0;
        if self.count >= self.limit {
            return Err(QueueFault::TooLong);
        }
        self.index = from.next();
        // It uses up a descriptor; each segment that is pushed gives a place back.
        self.limit = self.limit.wrapping_sub(1);
        if from.len() == 0 {
            return Ok(self);
        }
        if readable && self.readable != self.count {
            return Err(QueueFault::Order);
        }
        let (mut addr, mut left) = (from.addr(), from.len());
        while left > 0 {
            let region = map.region_of(addr).ok_or_else(|| memory_fault(from))?;
            let len = map.region(region).holds(addr, left);
            let segment = map.region(region).segment(addr, len);
            let segment = segment.ok_or_else(|| memory_fault(from))?;
            if self.count == slots.len() {
                if self.count >= usize::from(MAX_SIZE) {
                    return Err(QueueFault::TooLong);
                }
                slots.resize_with(self.count.saturating_mul(2), || Segment::UNUSED);
            }
            let slot = slots.get_mut(self.count).ok_or(QueueFault::TooLong)?;
            *slot = segment;
            self.count = self.count.wrapping_add(1);
            self.limit = self.limit.wrapping_add(1);
            self.region = region;
            left = left.wrapping_sub(len);
            addr = addr.wrapping_add(u64::from(len));
        }
        self.total_len = self.total_len.wrapping_add(u64::from(from.len()));
        if readable {
            self.readable = self.count;
        }
        Ok(self)
    }

    /// The loop for the usual descriptors: not empty, in the same region as the one before, and with
    /// room in the list. There is no call in it.
    #[inline(always)]
    fn run(
        &mut self,
        slots: &mut [Segment],
        map: &GuestMap,
        read: impl Fn(u16) -> Option<Descriptor>,
    ) -> Stop {
        let region = map.region(self.region);
        let limit = self.limit.min(slots.len());
        let slots = slots.get_mut(..limit).unwrap_or_default();
        loop {
            let Some(descriptor) = read(self.index) else {
                return Stop::NoDescriptor;
            };
            let len = descriptor.len();
            if descriptor.flags(F_INDIRECT) != 0 || len == 0 {
                return Stop::At(descriptor);
            }
            let readable = descriptor.flags(F_WRITE) == 0;
            if readable && self.readable != self.count {
                return Stop::At(descriptor);
            }
            let Some(segment) = region.segment(descriptor.addr(), len) else {
                return Stop::At(descriptor);
            };
            let Some(slot) = slots.get_mut(self.count) else {
                return Stop::At(descriptor);
            };
            *slot = segment;
            self.count = self.count.wrapping_add(1);
            // Cannot overflow: at most twice MAX_SIZE descriptors of 32-bit lengths.
            self.total_len = self.total_len.wrapping_add(u64::from(len));
            if readable {
                self.readable = self.count;
            }
            if descriptor.flags(F_NEXT) == 0 {
                return Stop::End;
            }
            self.index = descriptor.next();
        }
    }
}

#[cold]
fn memory_fault(from: Descriptor) -> QueueFault {
    QueueFault::Memory {
        addr: from.addr(),
        len: u64::from(from.len()),
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
    let len = from.len();
    let possible =
        (DESCRIPTOR_LEN..=TABLE_MAX).contains(&len) && len.is_multiple_of(DESCRIPTOR_LEN);
    if !negotiated || from.flags(F_NEXT) != 0 || !possible {
        return Err(QueueFault::Indirect(len));
    }
    let count = u16::try_from(len / DESCRIPTOR_LEN).unwrap_or(MAX_SIZE);
    map.table(region, from.addr(), count)
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
