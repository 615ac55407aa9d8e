//! ACPI tables: hardware-reduced, constant but for the number of vCPUs, nothing per instance.
//!
//! ```text
//! RSDP -> XSDT -> FADT -> DSDT
//!              -> MADT
//!              -> MCFG
//! ```
//!
//! [`build`] links the tables for a place in guest memory (direct boot). [`AcpiTables::unlinked`] gives the
//! same tables with offsets in the place of addresses and without checksums: a firmware that fetches them
//! through fw_cfg places, links and sums them itself, told by a script made of [`AcpiTables::relocations`]
//! and [`TableSpan::checksum_offset`]. Section numbers are those of the ACPI specification 6.5.

mod aml;
mod dsdt;
mod fadt;
mod madt;
mod mcfg;
mod sdt;

use alloc::vec::Vec;

use serde::Serialize;

use crate::{Gpa, GpaRange};
use sdt::Sdt;

/// Bytes of the RSDP.
pub const RSDP_SIZE: usize = 36;

/// Bytes of the RSDP that its first checksum covers.
pub const RSDP_V1_SIZE: usize = 20;

/// Where the checksum of the first 20 bytes of the RSDP lies.
pub const RSDP_CHECKSUM: usize = 8;

/// Where the RSDP holds the address of the XSDT, eight bytes.
pub const RSDP_XSDT: usize = 24;

/// Where the checksum of all of the RSDP lies.
pub const RSDP_EXTENDED_CHECKSUM: usize = 32;

/// Each table starts at a multiple of this.
pub const TABLE_ALIGNMENT: usize = 64;

/// From a table's start to its checksum.
const CHECKSUM: usize = 9;

/// What the tables depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AcpiInput {
    /// Number of vCPUs; APIC ids are 0 to one less.
    pub vcpus: u32,
    /// Address of a mailbox through which the operating system starts further processors, for firmware that
    /// parks them there (5.2.12.19). Without it they are started by INIT and SIPI.
    pub wakeup_mailbox: Option<Gpa>,
}

impl AcpiInput {
    /// The tables of a machine with `vcpus` vCPUs.
    #[must_use]
    pub const fn new(vcpus: u32) -> Self {
        Self {
            vcpus,
            wakeup_mailbox: None,
        }
    }
}

/// A table's place in the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TableSpan {
    /// The signature.
    pub signature: [u8; 4],
    /// Where it starts.
    pub offset: usize,
    /// How many bytes it has.
    pub len: usize,
}

impl TableSpan {
    /// Where in the blob the table's checksum lies.
    #[must_use]
    pub const fn checksum_offset(&self) -> usize {
        self.offset + CHECKSUM
    }
}

/// A pointer from one table to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Relocation {
    /// Where the table that holds the pointer starts in the blob.
    pub table_offset: usize,
    /// Where the pointer lies in the blob.
    pub pointer_offset: usize,
    /// Bytes of the pointer.
    pub size: u8,
    /// Where the table that it points to starts in the blob.
    pub target_offset: usize,
}

/// All tables, linked for a place in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// The root pointer.
    pub rsdp: [u8; RSDP_SIZE],
    /// Where the RSDP goes.
    pub rsdp_at: Gpa,
    /// All other tables.
    pub blob: Vec<u8>,
    /// Where the blob goes: [`TABLE_ALIGNMENT`] bytes past the RSDP.
    pub blob_at: Gpa,
    /// The tables in the blob, ascending; the XSDT is the last.
    pub tables: Vec<TableSpan>,
    /// The pointers in the blob. The RSDP's pointer to the XSDT, at [`RSDP_XSDT`], is not among them.
    pub relocations: Vec<Relocation>,
}

impl AcpiTables {
    /// The addresses from the RSDP to the end of the blob.
    #[must_use]
    pub fn range(&self) -> GpaRange {
        let len = self.blob_at.0 - self.rsdp_at.0 + self.blob.len() as u64;
        GpaRange::from_len(self.rsdp_at, len).unwrap_or_default()
    }

    /// Where in the blob the XSDT starts.
    #[must_use]
    pub fn xsdt_offset(&self) -> usize {
        self.tables.last().map_or(0, |table| table.offset)
    }

    /// RSDP and blob as a firmware's table loader wants them: pointers hold the offset of their target in the
    /// blob, checksums are zero. They do not depend on where [`build`] was told to place the tables.
    #[must_use]
    pub fn unlinked(&self) -> ([u8; RSDP_SIZE], Vec<u8>) {
        let mut blob = self.blob.clone();
        for table in &self.tables {
            blob[table.checksum_offset()] = 0;
        }
        for pointer in &self.relocations {
            put_u64(
                &mut blob,
                pointer.pointer_offset,
                pointer.target_offset as u64,
            );
        }
        let mut rsdp = self.rsdp;
        put_u64(&mut rsdp, RSDP_XSDT, self.xsdt_offset() as u64);
        rsdp[RSDP_CHECKSUM] = 0;
        rsdp[RSDP_EXTENDED_CHECKSUM] = 0;
        (rsdp, blob)
    }
}

/// Builds all tables and links them for the RSDP at `at`, a multiple of 16, with the blob
/// [`TABLE_ALIGNMENT`] bytes further on.
#[must_use]
pub fn build(input: &AcpiInput, at: Gpa) -> AcpiTables {
    let blob_at = Gpa(at.0.wrapping_add(TABLE_ALIGNMENT as u64));
    let mut builder = Builder::default();
    let dsdt = builder.add(dsdt::table());
    let fadt = builder.add(fadt::table());
    builder.point(fadt, fadt::X_DSDT, dsdt);
    let roots = [
        fadt,
        builder.add(madt::table(input)),
        builder.add(mcfg::table()),
    ];

    let mut xsdt = Sdt::new(*b"XSDT", 1);
    for _ in roots {
        xsdt.u64(0);
    }
    let xsdt = builder.add(xsdt);
    for (number, root) in roots.into_iter().enumerate() {
        builder.point(xsdt, sdt::HEADER_SIZE + 8 * number, root);
    }
    builder.link(at, blob_at, xsdt)
}

/// Collects tables, then the pointers between them.
#[derive(Debug, Default)]
struct Builder {
    blob: Vec<u8>,
    tables: Vec<TableSpan>,
    relocations: Vec<Relocation>,
}

impl Builder {
    fn add(&mut self, table: Sdt) -> TableSpan {
        self.blob
            .resize(self.blob.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        let (signature, bytes) = table.finish();
        let span = TableSpan {
            signature,
            offset: self.blob.len(),
            len: bytes.len(),
        };
        self.blob.extend_from_slice(&bytes);
        self.tables.push(span);
        span
    }

    /// Notes that the eight bytes at `field` of `from` are to hold the address of `to`.
    fn point(&mut self, from: TableSpan, field: usize, to: TableSpan) {
        self.relocations.push(Relocation {
            table_offset: from.offset,
            pointer_offset: from.offset + field,
            size: 8,
            target_offset: to.offset,
        });
    }

    fn link(mut self, rsdp_at: Gpa, blob_at: Gpa, xsdt: TableSpan) -> AcpiTables {
        let address = |offset: usize| blob_at.0.wrapping_add(offset as u64);
        for pointer in &self.relocations {
            put_u64(
                &mut self.blob,
                pointer.pointer_offset,
                address(pointer.target_offset),
            );
        }
        for table in &self.tables {
            let bytes = &mut self.blob[table.offset..table.offset + table.len];
            bytes[CHECKSUM] = checksum(bytes);
        }
        AcpiTables {
            rsdp: rsdp(address(xsdt.offset)),
            rsdp_at,
            blob: self.blob,
            blob_at,
            tables: self.tables,
            relocations: self.relocations,
        }
    }
}

/// The root pointer, revision 2 (5.2.5.3). It names no RSDT.
fn rsdp(xsdt: u64) -> [u8; RSDP_SIZE] {
    let mut bytes = [0; RSDP_SIZE];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(&sdt::OEM_ID);
    bytes[15] = 2;
    bytes[20] = 36;
    put_u64(&mut bytes, RSDP_XSDT, xsdt);
    bytes[RSDP_CHECKSUM] = checksum(&bytes[..RSDP_V1_SIZE]);
    bytes[RSDP_EXTENDED_CHECKSUM] = checksum(&bytes);
    bytes
}

/// The byte that makes the sum of `bytes` zero, where its own place still holds zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests;
