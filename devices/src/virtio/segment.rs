//! Pieces of guest memory by host address, checked once, and volatile copies from and to them.
//!
//! [`GuestMap`] answers "where is this guest range, and may the host use it" with a few compares: the RAM
//! regions are copied out of the [`DmaView`] at activation and never change. A [`Segment`] is only made
//! here, is neither `Clone` nor `Copy`, and lives in a [`super::chain::Chain`], which keeps the memory
//! mapped. The guest may write the bytes at any time, so they are only copied volatile or handed to the
//! kernel, never borrowed.
#![expect(
    unsafe_code,
    reason = "copies from and to host addresses of guest memory"
)]

use std::ptr;

use vm_memory::volatile_memory::VolatileSlice;

use super::queue::QueueFault;
use super::ring::Descriptor;
use crate::dma::DmaView;

/// Where guest memory is in this process.
#[derive(Debug)]
pub(super) struct GuestMap {
    regions: Box<[Region]>,
    view: DmaView,
}

/// A part of guest memory that is mapped in one piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    start: u64,
    len: u64,
    /// Host address of `start`; an exposed address, not a pointer, so that the map is `Send`.
    host: usize,
}

/// A piece of a chain: `len` bytes, 1 at least, in one host mapping.
#[derive(Debug)]
pub struct Segment {
    host: usize,
    len: u32,
    guest: u64,
}

impl GuestMap {
    pub fn new(view: &DmaView) -> Self {
        let regions = view.host_regions().map(|region| Region {
            start: region.start,
            len: region.len,
            host: region.host.expose_provenance(),
        });
        GuestMap {
            regions: regions.collect(),
            view: view.clone(),
        }
    }

    #[inline]
    pub fn view(&self) -> &DmaView {
        &self.view
    }

    /// Host address of `len` bytes that are shared, lie in one region and are aligned to `align`.
    pub fn host_area(&self, addr: u64, len: u64, align: usize) -> Result<*mut u8, QueueFault> {
        let fault = QueueFault::Memory { addr, len };
        let region = self.region(self.region_of(addr).ok_or(fault)?);
        let offset = addr.wrapping_sub(region.start);
        if region.len.wrapping_sub(offset) < len || !self.view.is_shared(addr, len) {
            return Err(fault);
        }
        let host = region.host_at(offset);
        if !host.is_multiple_of(align) {
            return Err(fault);
        }
        Ok(ptr::with_exposed_provenance_mut(host))
    }

    /// The region that holds the last segment, most likely the one that holds the next.
    #[inline]
    pub fn region(&self, index: usize) -> &Region {
        self.regions.get(index).unwrap_or(&Region::EMPTY)
    }

    /// Which region holds `addr`.
    #[cold]
    pub fn region_of(&self, addr: u64) -> Option<usize> {
        self.regions
            .iter()
            .position(|region| addr.wrapping_sub(region.start) < region.len)
    }

    /// An indirect table of `count` descriptors, which is shared and in one region. The caller drops it
    /// before the map.
    #[inline]
    pub fn table(&self, hint: usize, addr: u64, count: u16) -> Result<IndirectTable, QueueFault> {
        let len = u32::from(count).wrapping_mul(16);
        if self.view.is_shared(addr, u64::from(len))
            && let Some(segment) = self.region(hint).segment(addr, len)
        {
            return Ok(IndirectTable {
                host: segment.host,
                count,
            });
        }
        let host = self.host_area(addr, u64::from(len), 1)?;
        Ok(IndirectTable {
            host: host.expose_provenance(),
            count,
        })
    }
}

impl Region {
    const EMPTY: Region = Region {
        start: 0,
        len: 0,
        host: 0,
    };

    /// The segment of `len` bytes (not 0) from `addr`, or `None` if not all of them are here.
    #[inline]
    pub fn segment(&self, addr: u64, len: u32) -> Option<Segment> {
        let offset = addr.wrapping_sub(self.start);
        // At the region's end 0 bytes are left, fewer than any `len`.
        if self.len.checked_sub(offset)? < u64::from(len) {
            return None;
        }
        Some(Segment {
            host: self.host_at(offset),
            len,
            guest: addr,
        })
    }

    /// How many of `len` bytes from `addr` are here; 0 if `addr` is not.
    pub fn holds(&self, addr: u64, len: u32) -> u32 {
        let here = self.len.saturating_sub(addr.wrapping_sub(self.start));
        u32::try_from(here).map_or(len, |here| here.min(len))
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "below the length of a mapping, a usize"
    )]
    fn host_at(&self, offset: u64) -> usize {
        self.host.wrapping_add(offset as usize)
    }
}

impl Segment {
    /// Fills places of a list that are not in use.
    pub(super) const UNUSED: Segment = Segment {
        host: 0,
        len: 0,
        guest: 0,
    };

    /// Bytes; never 0.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Never; a segment has a byte at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// First guest physical address.
    #[must_use]
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Where the bytes are in this process, for a system call that reads or writes them.
    #[inline]
    #[must_use]
    pub fn host(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.host)
    }

    fn slice(&self) -> VolatileSlice<'_> {
        let len = usize::try_from(self.len).expect("usize has 64 bits");
        // SAFETY: `GuestMap` made this segment of `len` bytes inside of one mapping of guest memory,
        // which lives as long as the chain that owns the segment and so as long as `&self`; the bytes
        // are only accessed volatile.
        unsafe { VolatileSlice::new(self.host(), len) }
    }

    /// Copies from `offset` on into `to`; how many bytes there were.
    pub(super) fn read(&self, offset: usize, to: &mut [u8]) -> usize {
        self.slice()
            .offset(offset)
            .map_or(0, |from| from.copy_to(to))
    }

    /// Copies `from` to `offset` and on; how many bytes had room.
    pub(super) fn write(&self, offset: usize, from: &[u8]) -> usize {
        self.slice().offset(offset).map_or(0, |to| {
            let len = from.len().min(to.len());
            to.copy_from(from.get(..len).unwrap_or_default());
            len
        })
    }
}

/// An indirect descriptor table (virtio 1.3, 2.7.5.3): a segment, of which whole descriptors are read.
/// It may stand at any address.
#[derive(Debug)]
pub(super) struct IndirectTable {
    host: usize,
    /// Descriptors.
    count: u16,
}

/// A word at any address. Volatile reads of it are one load on x86-64.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned(u64);

impl IndirectTable {
    #[inline]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Descriptor `index`, or `None` if there is none.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.count {
            return None;
        }
        let first = ptr::with_exposed_provenance::<Unaligned>(self.host);
        // SAFETY: the table was made of a segment of `16 * count` bytes and `index < count`.
        let first = unsafe { first.add(usize::from(index).wrapping_mul(2)) };
        // SAFETY: the second word of the same descriptor.
        let second = unsafe { first.add(1) };
        // SAFETY: in bounds by the above and mapped, as the map that the table comes from lives; the
        // type has alignment 1 and any bytes are a value of it. A guest that writes at the same time
        // tears its own request.
        let Unaligned(addr) = unsafe { first.read_volatile() };
        // SAFETY: as for `addr`.
        let Unaligned(rest) = unsafe { second.read_volatile() };
        Some(Descriptor::from_words(
            u64::from_le(addr),
            u64::from_le(rest),
        ))
    }
}
