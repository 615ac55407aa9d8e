//! What we read of a qcow2 image ourselves, before the library has it (QEMU: docs/interop/qcow2.rst).
//!
//! The library looks for a free cluster by going through the refcount table. A table of which each entry names
//! the same full block, or which is as large as its 32-bit size allows, keeps it busy for hours with the first
//! write: such an image is refused when it is opened.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::image::Format;
use super::open::read_start;

/// Bytes of the header that all versions have.
const LEN: usize = 72;
/// The largest refcount table, in bytes: enough for images of some hundred TiB.
const MAX_TABLE: u64 = 32 << 20;
/// The bits of an entry that are an offset; the others are reserved.
const OFFSET: u64 = !0x1ff;
/// Sizes of clusters that there are, as powers of two: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Numbers of an image's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    version: u32,
    cluster_bits: u32,
    table_offset: u64,
    table_clusters: u32,
}

impl Header {
    /// Reads and checks the numbers.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut start = [0; LEN];
        let len = read_start(file, &mut start)?;
        if Format::of(&start) != Some(Format::Qcow2) || len < LEN {
            return Err(io::Error::other("it does not begin as one"));
        }
        let header = Header {
            version: u32_at(&start, 4),
            cluster_bits: u32_at(&start, 20),
            table_offset: u64::from(u32_at(&start, 48)) << 32 | u64::from(u32_at(&start, 52)),
            table_clusters: u32_at(&start, 56),
        };
        if !CLUSTER_BITS.contains(&header.cluster_bits) {
            let bits = header.cluster_bits;
            let problem = format!("its clusters are of 2^{bits} bytes; 2^9 to 2^21 there are");
            return Err(io::Error::other(problem));
        }
        Ok(header)
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u32 {
        1 << self.cluster_bits
    }

    /// Refuses a refcount table that no image needs. The work is bounded by [`MAX_TABLE`].
    pub fn check_refcounts(&self, mut file: &File) -> io::Result<()> {
        let wrong = |problem: String| {
            Err(io::Error::other(format!(
                "{problem}: `qemu-img check -r all` may repair it"
            )))
        };
        let cluster = u64::from(self.cluster());
        // Also for block devices, where the metadata say 0.
        let end = file.seek(SeekFrom::End(0))?;
        let len = u64::from(self.table_clusters).saturating_mul(cluster);
        if len > MAX_TABLE {
            return wrong(format!(
                "its refcount table has {len} bytes, at most {MAX_TABLE} are taken"
            ));
        }
        if self
            .table_offset
            .checked_add(len)
            .is_none_or(|table_end| table_end > end)
        {
            return wrong("its refcount table is not in the file".to_owned());
        }
        let mut table = vec![0; usize::try_from(len).unwrap_or_default()];
        file.read_exact_at(&mut table, self.table_offset)?;
        let mut blocks: Vec<u64> = table
            .as_chunks::<8>()
            .0
            .iter()
            .map(|entry| u64::from_be_bytes(*entry) & OFFSET)
            .filter(|block| *block != 0)
            .collect();
        drop(table);
        blocks.sort_unstable();
        if let Some(block) = blocks.last().filter(|block| **block >= end) {
            return wrong(format!(
                "its refcount table names a block at {block:#x}, behind the end of the file"
            ));
        }
        let again = blocks.windows(2).find(|pair| pair.first() == pair.last());
        if let Some(block) = again.and_then(|pair| pair.first()) {
            return wrong(format!(
                "its refcount table names the block at {block:#x} twice"
            ));
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_be_bytes(*field))
}
