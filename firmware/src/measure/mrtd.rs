//! The MRTD computation, streaming: one page frame is all that is ever copied.

use sha2::{Digest as _, Sha384};
use tdvmm_arch::GpaRange;
use tdvmm_arch::addr::PAGE_SIZE;
use thiserror::Error;

use super::{Digest, Measure, Region};
use crate::wire;

const PAGE: usize = 4096;
const _: () = assert!(wire::len_u64(PAGE) == PAGE_SIZE);
const CHUNK: usize = 256;
const CHUNKS: usize = PAGE / CHUNK;
/// What the module hashes for a page added, and before each chunk extended.
const HEADER: usize = 128;
const EXTEND: usize = HEADER + CHUNK;
const GPA_AT: usize = 16;

/// In which order the pages of a region are added and extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each page is extended right after it was added: upstream KVM.
    PerPage,
    /// All pages of a region are added, then all are extended: kernels before upstream support.
    TwoPass,
}

/// A region that cannot be added to a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RegionShapeError {
    /// Not whole pages.
    #[error("region {0} is not page aligned")]
    Unaligned(GpaRange),
    /// More bytes than memory.
    #[error("region {range} has contents of {len:#x} bytes")]
    TooLong {
        /// The memory.
        range: GpaRange,
        /// Bytes of contents.
        len: usize,
    },
}

impl Region<'_> {
    pub(super) fn check_shape(&self) -> Result<(), RegionShapeError> {
        let range = self.range;
        if !range.is_aligned(PAGE_SIZE) {
            return Err(RegionShapeError::Unaligned(range));
        }
        let len = self.bytes.len();
        if wire::len_u64(len) > range.len() {
            return Err(RegionShapeError::TooLong { range, len });
        }
        Ok(())
    }

    /// Address and contents of each page in ascending order.
    fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let starts = (self.range.start().0..self.range.end().0).step_by(PAGE);
        let contents = self.bytes.chunks(PAGE).chain(core::iter::repeat(&[][..]));
        starts.zip(contents)
    }
}

/// The MRTD of `regions`, added in their order.
pub fn mrtd<'a>(
    order: Order,
    regions: impl IntoIterator<Item = &'a Region<'a>>,
) -> Result<Digest, RegionShapeError> {
    let mut builder = MrtdBuilder::new(order);
    for region in regions {
        builder.add_region(region)?;
    }
    Ok(builder.finish())
}

/// Computes MRTD region by region.
#[derive(Clone)]
pub struct MrtdBuilder {
    order: Order,
    hash: Sha384,
    frame: PageFrame,
}

impl core::fmt::Debug for MrtdBuilder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MrtdBuilder")
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl MrtdBuilder {
    /// The state of a TD to which nothing was added.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            order,
            hash: Sha384::new(),
            frame: PageFrame::new(),
        }
    }

    /// Adds a region as the module would be told to.
    pub fn add_region(&mut self, region: &Region<'_>) -> Result<(), RegionShapeError> {
        region.check_shape()?;
        let per_page = self.order == Order::PerPage && region.measure == Measure::Yes;
        if per_page {
            for (gpa, bytes) in region.pages() {
                self.frame.fill(gpa, bytes);
                self.hash.update(self.frame.whole());
            }
            return Ok(());
        }
        for (gpa, _) in region.pages() {
            self.hash.update(page_add(gpa));
        }
        if region.measure == Measure::Yes {
            for (gpa, bytes) in region.pages() {
                self.frame.fill(gpa, bytes);
                self.hash.update(self.frame.extends());
            }
        }
        Ok(())
    }

    /// The measurement of what was added.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest::from_bytes(self.hash.finalize().into())
    }
}

/// `TDH.MEM.PAGE.ADD`: the name, and the address at byte 16.
fn page_add(gpa: u64) -> [u8; HEADER] {
    header(b"MEM.PAGE.ADD", gpa)
}

fn header(name: &[u8], gpa: u64) -> [u8; HEADER] {
    let mut block = [0; HEADER];
    // Cannot fail: both fields lie in the block.
    let _: Option<()> = wire::put(&mut block, 0, name);
    let _: Option<()> = wire::put(&mut block, GPA_AT, &gpa.to_le_bytes());
    block
}

/// All that is hashed for one measured page. One call of the hash for it, as short calls cost more
/// than the copy of the page does.
#[derive(Clone)]
struct PageFrame {
    bytes: [u8; HEADER + CHUNKS * EXTEND],
}

impl PageFrame {
    fn new() -> Self {
        let mut frame = Self {
            bytes: [0; HEADER + CHUNKS * EXTEND],
        };
        let (add, extends) = frame.split();
        add.copy_from_slice(&page_add(0));
        for (head, _) in extends {
            head.copy_from_slice(&header(b"MR.EXTEND", 0));
        }
        frame
    }

    /// The block of the page added, and of each chunk its block and its data.
    fn split(&mut self) -> (&mut [u8], impl Iterator<Item = (&mut [u8], &mut [u8])>) {
        let (add, extends) = self.bytes.split_at_mut(HEADER);
        let chunks = extends.chunks_exact_mut(EXTEND);
        (add, chunks.map(|chunk| chunk.split_at_mut(HEADER)))
    }

    /// `bytes` is at most a page; zeros follow.
    fn fill(&mut self, gpa: u64, bytes: &[u8]) {
        let mut rest = bytes;
        let (add, extends) = self.split();
        let _: Option<()> = wire::put(add, GPA_AT, &gpa.to_le_bytes());
        let chunk_starts = (gpa..).step_by(CHUNK);
        for ((head, data), chunk_gpa) in extends.zip(chunk_starts) {
            let _: Option<()> = wire::put(head, GPA_AT, &chunk_gpa.to_le_bytes());
            let (now, later) = rest.split_at(rest.len().min(CHUNK));
            let (content, zeros) = data.split_at_mut(now.len());
            content.copy_from_slice(now);
            zeros.fill(0);
            rest = later;
        }
    }

    fn whole(&self) -> &[u8] {
        &self.bytes
    }

    fn extends(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }
}
