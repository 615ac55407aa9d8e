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

#[derive(Clone, Copy, Debug)]
struct Region {
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

    /// The region that holds `addr`, and how far in.
    #[inline]
    fn find(&self, addr: u64) -> Option<(&Region, u64)> {
        // Two or three regions: a scan beats a search.
        self.regions.iter().find_map(|region| {
            let offset = addr.wrapping_sub(region.start);
            (offset < region.len).then_some((region, offset))
        })
    }

    /// Host address of `len` bytes that are shared, lie in one region and are aligned to `align`.
    pub fn host_area(&self, addr: u64, len: u64, align: usize) -> Result<*mut u8, QueueFault> {
        let fault = QueueFault::Memory { addr, len };
        let (region, offset) = self.find(addr).ok_or(fault)?;
        if region.len.wrapping_sub(offset) < len || !self.view.is_shared(addr, len) {
            return Err(fault);
        }
        let host = region.host_at(offset);
        if !host.is_multiple_of(align) {
            return Err(fault);
        }
        Ok(ptr::with_exposed_provenance_mut(host))
    }

    /// One segment for all `len` bytes, which must not be 0. The caller drops it before the map.
    pub fn segment(&self, addr: u64, len: u32) -> Result<Segment, QueueFault> {
        let host = self.host_area(addr, u64::from(len), 1)?;
        Ok(Segment {
            host: host.expose_provenance(),
            len,
            guest: addr,
        })
    }

    /// Appends the segments of `len` bytes from `addr`: one, or one per region that they touch.
    #[inline]
    pub fn push_segments(
        &self,
        into: &mut Vec<Segment>,
        addr: u64,
        len: u32,
    ) -> Result<(), QueueFault> {
        let fault = QueueFault::Memory {
            addr,
            len: u64::from(len),
        };
        if !self.view.is_shared(addr, u64::from(len)) {
            return Err(fault);
        }
        let (mut addr, mut left) = (addr, len);
        while left > 0 {
            let (region, offset) = self.find(addr).ok_or(fault)?;
            let here = region.len.wrapping_sub(offset);
            let len = u32::try_from(here).map_or(left, |here| here.min(left));
            into.push(Segment {
                host: region.host_at(offset),
                len,
                guest: addr,
            });
            left = left.wrapping_sub(len);
            addr = addr.wrapping_add(u64::from(len));
        }
        Ok(())
    }
}

impl Region {
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

    /// Descriptor `index` of the indirect table that this segment is.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        /// Indirect tables may stand at any address.
        #[repr(C, packed)]
        #[derive(Clone, Copy)]
        struct Unaligned(u128);

        let offset = usize::from(index).wrapping_mul(size_of::<Unaligned>());
        let end = offset.wrapping_add(size_of::<Unaligned>());
        if end > usize::try_from(self.len).ok()? {
            return None;
        }
        // SAFETY: the 16 bytes from `offset` end inside of the segment, as checked.
        let at = unsafe { self.host().add(offset) };
        // SAFETY: in bounds, mapped as in `slice`, and the type has alignment 1 and any bytes are a
        // value of it. The guest may write at the same time and then tears its own request.
        let Unaligned(words) = unsafe { at.cast::<Unaligned>().read_volatile() };
        let bytes = words.to_ne_bytes();
        let (addr, rest) = bytes.split_at(8);
        Some(Descriptor::from_words(
            u64::from_le_bytes(addr.try_into().ok()?),
            u64::from_le_bytes(rest.try_into().ok()?),
        ))
    }
}
