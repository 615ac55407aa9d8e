//! The numbers of a qcow2 image's header that we look at ourselves (QEMU: docs/interop/qcow2.rst).

use std::fs::File;
use std::io;

use super::image::Format;
use super::open::read_from;

/// Bytes of the header that all versions have.
const LEN: usize = 72;
/// And those up to the last number of version 3.
const LEN_3: usize = 104;
/// What version 2 has, without saying so: refcounts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;
/// Sizes of clusters that there are, as powers of two: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// And of refcounts: 1 bit to 64.
const MAX_REFCOUNT_ORDER: u32 = 6;

/// Numbers of an image's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub l1_offset: u64,
    pub l1_entries: u32,
    /// Of the refcount table.
    pub table_offset: u64,
    pub table_clusters: u32,
    /// Bits of a refcount, as a power of two.
    pub refcount_order: u32,
}

impl Header {
    /// Reads and checks the numbers.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut start = [0; LEN_3];
        let len = read_from(file, 0, &mut start)?;
        if Format::of(&start) != Some(Format::Qcow2) || len < LEN {
            return Err(io::Error::other("it does not begin as one"));
        }
        let version = u32_at(&start, 4);
        let header = Header {
            version,
            cluster_bits: u32_at(&start, 20),
            l1_entries: u32_at(&start, 36),
            l1_offset: u64_at(&start, 40),
            table_offset: u64_at(&start, 48),
            table_clusters: u32_at(&start, 56),
            refcount_order: match version {
                2 => REFCOUNT_ORDER,
                _ => u32_at(&start, 96),
            },
        };
        if !CLUSTER_BITS.contains(&header.cluster_bits) {
            let bits = header.cluster_bits;
            let problem = format!("its clusters are of 2^{bits} bytes; 2^9 to 2^21 there are");
            return Err(io::Error::other(problem));
        }
        if header.refcount_order > MAX_REFCOUNT_ORDER {
            let order = header.refcount_order;
            let problem = format!("its refcounts are of 2^{order} bits; 2^0 to 2^6 there are");
            return Err(io::Error::other(problem));
        }
        Ok(header)
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u32 {
        1 << self.cluster_bits
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_be_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u64::from_be_bytes(*field))
}
