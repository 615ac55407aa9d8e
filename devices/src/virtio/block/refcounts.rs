//! What is checked of a qcow2 image's refcounts before the image is written (QEMU: docs/interop/qcow2.rst).
//!
//! The library looks for a free cluster by going through the refcount table. A table of which each entry names
//! the same full block, or which is as large as its 32-bit size allows, keeps it busy for hours with the first
//! write: such an image is refused when it is opened.
//!
//! The library also names a new table in the file at once, and writes with the next flush only that the table's cluster
//! is taken. Where its process is killed in between, the cluster counts as free, and would be handed out again for what
//! the guest writes. So an image is refused until it is repaired in which that is the case of any table, or of the
//! header. The data clusters themselves are not looked at: the library writes their refcounts before it names them. But
//! it has nothing wait for the disk in between; what a loss of power leaves is for `qemu-img check` to judge.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::header::Header;
use super::open::read_from;

/// The largest refcount table, and L1 table, in bytes: enough for images of some hundred TiB. The work of the checks is
/// bounded by them: one read for each entry at most.
const MAX_TABLE: u64 = 32 << 20;
/// The bits of an entry of the refcount table that are an offset; the others are reserved.
const BLOCK_OFFSET: u64 = !0x1ff;
/// And those of an entry of the L1 table.
const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bytes that are read at once, as a power of two.
const WINDOW_BITS: u32 = 12;
const WINDOW: usize = 1 << WINDOW_BITS;

/// Refuses an image that would keep the library busy, or that the library would do harm to.
pub(super) fn check(header: &Header, file: &File, path: &Path) -> io::Result<()> {
    let image = Image { header, file, path };
    let blocks = image.blocks()?;
    image.check_tables(&blocks)
}

struct Image<'a> {
    header: &'a Header,
    file: &'a File,
    /// For the messages.
    path: &'a Path,
}

impl Image<'_> {
    fn wrong<T>(&self, problem: &str) -> io::Result<T> {
        let remedy = format!("`qemu-img check -r all {:?}` may repair it", self.path);
        Err(io::Error::other(format!("{problem}: {remedy}")))
    }

    /// Where the refcount blocks are in the file, in the order of the clusters that they are for; 0 where there is none.
    /// Refuses a refcount table that no image needs.
    fn blocks(&self) -> io::Result<Vec<u64>> {
        let Header {
            table_offset,
            table_clusters,
            ..
        } = *self.header;
        let mut file = self.file;
        // Also for block devices, where the metadata say 0.
        let end = file.seek(SeekFrom::End(0))?;
        let len = u64::from(table_clusters).saturating_mul(self.cluster());
        if len > MAX_TABLE {
            return self.wrong(&format!(
                "its refcount table has {len} bytes, at most {MAX_TABLE} are taken"
            ));
        }
        if table_offset
            .checked_add(len)
            .is_none_or(|table_end| table_end > end)
        {
            return self.wrong("its refcount table is not in the file");
        }
        let mut table = vec![0; usize::try_from(len).unwrap_or_default()];
        file.read_exact_at(&mut table, table_offset)?;
        let blocks: Vec<u64> = offsets(&table, BLOCK_OFFSET).collect();
        drop(table);
        let sorted = in_order(blocks.iter().copied());
        if let Some(block) = sorted.last().filter(|block| **block >= end) {
            return self.wrong(&format!(
                "its refcount table names a block at {block:#x}, behind the end of the file"
            ));
        }
        let again = sorted.windows(2).find(|pair| pair.first() == pair.last());
        if let Some(block) = again.and_then(|pair| pair.first()) {
            return self.wrong(&format!(
                "its refcount table names the block at {block:#x} twice"
            ));
        }
        Ok(blocks)
    }

    /// Refuses an image of which a table, or the header, is where the library would put something else.
    fn check_tables(&self, blocks: &[u64]) -> io::Result<()> {
        let header = self.header;
        let l1_len = u64::from(header.l1_entries).saturating_mul(8);
        if l1_len > MAX_TABLE {
            return self.wrong(&format!(
                "its L1 table has {l1_len} bytes, at most {MAX_TABLE} are taken"
            ));
        }
        let table_len = u64::from(header.table_clusters).saturating_mul(self.cluster());
        let mut refcounts = Refcounts::new(self.file, header, blocks);
        let mut check = |what, offsets: &mut dyn Iterator<Item = u64>| {
            for offset in offsets {
                if refcounts.is_free(offset)? {
                    return self.wrong(&format!(
                        "{what} at {offset:#x} is in a cluster that counts as free, as after a process that was \
                         killed while it wrote"
                    ));
                }
            }
            Ok(())
        };
        check("its header", &mut iter::once(0))?;
        check(
            "its refcount table",
            &mut self.clusters(header.table_offset, table_len),
        )?;
        check(
            "a refcount block",
            &mut in_order(blocks.iter().copied()).into_iter(),
        )?;
        check("its L1 table", &mut self.clusters(header.l1_offset, l1_len))?;
        check("an L2 table", &mut self.l2_tables(l1_len)?.into_iter())
    }

    /// Where the L2 tables are, in order.
    fn l2_tables(&self, l1_len: u64) -> io::Result<Vec<u64>> {
        let mut l1 = vec![0; usize::try_from(l1_len).unwrap_or_default()];
        // What is behind the end of the file reads as zeros for the library, too.
        read_from(self.file, self.header.l1_offset, &mut l1)?;
        Ok(in_order(offsets(&l1, L2_OFFSET)))
    }

    fn cluster(&self) -> u64 {
        u64::from(self.header.cluster())
    }

    /// The clusters of `len` bytes from `offset` on.
    fn clusters(&self, offset: u64, len: u64) -> impl Iterator<Item = u64> + use<> {
        let end = offset.saturating_add(len);
        let cluster = usize::try_from(self.cluster()).unwrap_or(usize::MAX);
        (offset..end).step_by(cluster)
    }
}

/// The offsets that a table names, 0 where it names none.
fn offsets(table: &[u8], bits: u64) -> impl Iterator<Item = u64> {
    let entries = table.as_chunks::<8>().0.iter();
    entries.map(move |entry| u64::from_be_bytes(*entry) & bits)
}

/// Those that are not 0, in the order in which they are read best.
fn in_order(offsets: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut offsets: Vec<u64> = offsets.filter(|offset| *offset != 0).collect();
    offsets.sort_unstable();
    offsets
}

/// Looks refcounts up.
struct Refcounts<'a> {
    file: &'a File,
    blocks: &'a [u64],
    cluster_bits: u32,
    order: u32,
    /// Bytes of the file, and where they begin.
    window: [u8; WINDOW],
    start: Option<u64>,
}

impl<'a> Refcounts<'a> {
    fn new(file: &'a File, header: &Header, blocks: &'a [u64]) -> Self {
        Refcounts {
            file,
            blocks,
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            window: [0; WINDOW],
            start: None,
        }
    }

    /// Whether the refcount of the cluster at `offset` is 0.
    fn is_free(&mut self, offset: u64) -> io::Result<bool> {
        let cluster = offset >> self.cluster_bits;
        // A block is a cluster of refcounts of 2^order bits.
        let block_bits = self.cluster_bits.wrapping_add(3).wrapping_sub(self.order);
        let block = usize::try_from(cluster >> block_bits).ok();
        let block = block.and_then(|number| self.blocks.get(number));
        let Some(block) = block.filter(|block| **block != 0) else {
            return Ok(true);
        };
        let bit = (cluster & !(u64::MAX << block_bits)) << self.order;
        let at = block.wrapping_add(bit >> 3);
        let start = at >> WINDOW_BITS << WINDOW_BITS;
        if self.start != Some(start) {
            self.start = None;
            self.window.fill(0);
            read_from(self.file, start, &mut self.window)?;
            self.start = Some(start);
        }
        let inside = usize::try_from(at.wrapping_sub(start)).unwrap_or(WINDOW);
        let bytes = self.window.get(inside..).unwrap_or_default();
        Ok(match self.order {
            // Several in a byte, from its lowest bit on.
            0..3 => {
                let ones = !(u8::MAX << (1u32 << self.order));
                let byte = bytes.first().copied().unwrap_or_default();
                (byte >> (bit & 7)) & ones == 0
            }
            _ => bytes
                .iter()
                .take(1 << self.order.wrapping_sub(3))
                .all(|byte| *byte == 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_are_found() {
        const CLUSTER: u64 = 512;
        for order in 0..=6 {
            let file = tempfile::tempfile().unwrap();
            let header = Header {
                refcount_order: order,
                cluster_bits: 9,
                ..Header::default()
            };
            // The second block, of which the cluster of this number has a count of 1.
            let (per_block, number) = ((CLUSTER * 8) >> order, 21);
            let bit = number << order;
            let (at, byte) = match order {
                0..3 => (bit / 8, 1 << (bit % 8)),
                // The last byte of a number in big-endian order.
                _ => (bit / 8 + (1 << (order - 3)) - 1, 1),
            };
            file.write_all_at(&[byte], 3 * CLUSTER + at).unwrap();
            let blocks = [2 * CLUSTER, 3 * CLUSTER, 0];
            let mut refcounts = Refcounts::new(&file, &header, &blocks);
            for cluster in 0..4 * per_block {
                let free = refcounts.is_free(cluster * CLUSTER).unwrap();
                assert_eq!(free, cluster != per_block + number, "{order} {cluster}");
            }
        }
    }
}
