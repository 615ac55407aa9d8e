//! ACPI tables for a firmware that places them itself: two files, and a script that says where
//! pointers and checksums are.
//!
//! In the files a pointer holds the offset of its target, and checksums are 0. The script allocates
//! the files, adds the addresses of the allocations to the pointers, then computes the checksums.
//! Source: QEMU `hw/acpi/bios-linker-loader.c`, EDK2 `OvmfPkg/AcpiPlatformDxe/QemuLoader.h`.

use alloc::vec::Vec;

use tdvmm_arch::acpi::AcpiTables;

use super::{FwCfgContents, FwCfgError, blob, size};
use crate::wire;

const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";
const LOADER: &str = "etc/table-loader";

/// Bytes of a command of the script, whatever it uses of them.
const COMMAND: usize = 128;
/// Bytes of a file's name in a command.
const NAME: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

/// Where checksums and the address of the XSDT stand. ACPI 6.5, 5.2.5.3 and 5.2.6.
const RSDP_CHECKSUM: usize = 8;
const RSDP_FIRST_LEN: usize = 20;
const RSDP_XSDT: usize = 24;
const RSDP_EXTENDED_CHECKSUM: usize = 32;
const RSDP_LEN: usize = 36;
const TABLE_CHECKSUM: usize = 9;
const TABLE_HEADER: usize = 36;

/// One table in the tables' bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiTable {
    /// Offset of its header.
    pub offset: usize,
    /// Its bytes.
    pub len: usize,
}

/// A field that holds the address of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiPointer {
    /// Offset of the field.
    pub at: usize,
    /// Bytes of the field: 4 or 8.
    pub size: u8,
    /// Offset of what it points to.
    pub target: usize,
}

/// ACPI tables laid out back to back, with what has to change when they move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiFiles {
    /// The root pointer; its address of the XSDT is ignored.
    pub rsdp: [u8; RSDP_LEN],
    /// All other tables.
    pub tables: Vec<u8>,
    /// Offset of the XSDT.
    pub xsdt: usize,
    /// Every table that has a checksum.
    pub spans: Vec<AcpiTable>,
    /// Every pointer between tables.
    pub pointers: Vec<AcpiPointer>,
}

impl From<&AcpiTables> for AcpiFiles {
    fn from(built: &AcpiTables) -> Self {
        let (rsdp, tables) = built.unlinked();
        let spans = built.tables.iter().map(|table| AcpiTable {
            offset: table.offset,
            len: table.len,
        });
        let pointers = built.relocations.iter().map(|pointer| AcpiPointer {
            at: pointer.pointer_offset,
            size: pointer.size,
            target: pointer.target_offset,
        });
        Self {
            rsdp,
            tables,
            xsdt: built.xsdt_offset(),
            spans: spans.collect(),
            pointers: pointers.collect(),
        }
    }
}

/// Adds the two files and the script.
pub(super) fn add(to: &mut FwCfgContents, acpi: &AcpiFiles) -> Result<(), FwCfgError> {
    size("ACPI tables", &acpi.tables)?;
    let mut rsdp = acpi.rsdp.to_vec();
    let mut tables = acpi.tables.clone();
    let mut script = Script::default();
    script.allocate(RSDP, 16, ZONE_FSEG);
    script.allocate(TABLES, 64, ZONE_HIGH);

    let xsdt = AcpiPointer {
        at: RSDP_XSDT,
        size: 8,
        target: acpi.xsdt,
    };
    within("XSDT", acpi.xsdt, TABLE_HEADER, tables.len())?;
    point(&mut rsdp, &xsdt)?;
    script.add_pointer((RSDP, TABLES), &xsdt);
    for pointer in &acpi.pointers {
        within("target of a pointer", pointer.target, 1, tables.len())?;
        point(&mut tables, pointer)?;
        script.add_pointer((TABLES, TABLES), pointer);
    }
    for table in &acpi.spans {
        let header = table.len.max(TABLE_HEADER);
        within("table", table.offset, header, tables.len())?;
        let at = table.offset.saturating_add(TABLE_CHECKSUM);
        let _: Option<()> = wire::put(&mut tables, at, &[0]);
        script.add_checksum(TABLES, at, *table);
    }
    for (at, len) in [
        (RSDP_CHECKSUM, RSDP_FIRST_LEN),
        (RSDP_EXTENDED_CHECKSUM, RSDP_LEN),
    ] {
        let _: Option<()> = wire::put(&mut rsdp, at, &[0]);
        script.add_checksum(RSDP, at, AcpiTable { offset: 0, len });
    }
    to.push_file(RSDP, blob(rsdp));
    to.push_file(TABLES, blob(tables));
    to.push_file(LOADER, blob(script.bytes));
    Ok(())
}

fn within(what: &'static str, at: usize, need: usize, len: usize) -> Result<(), FwCfgError> {
    match at.checked_add(need) {
        Some(end) if end <= len => Ok(()),
        _ => Err(FwCfgError::Acpi { what, at, len }),
    }
}

/// Writes the offset of the target into the field.
fn point(file: &mut [u8], pointer: &AcpiPointer) -> Result<(), FwCfgError> {
    let (at, len) = (pointer.at, file.len());
    let target = wire::len_u64(pointer.target).to_le_bytes();
    let field = match pointer.size {
        4 | 8 => target.get(..usize::from(pointer.size)),
        _ => None,
    };
    field
        .and_then(|field| wire::put(file, at, field))
        .ok_or(FwCfgError::Acpi {
            what: "pointer of 4 or 8 bytes",
            at,
            len,
        })
}

#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
}

impl Script {
    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.command(ALLOCATE, &[file], &align.to_le_bytes(), &[zone]);
    }

    fn add_pointer(&mut self, (holder, target): (&str, &str), pointer: &AcpiPointer) {
        let at = offset(pointer.at);
        self.command(ADD_POINTER, &[holder, target], &at, &[pointer.size]);
    }

    fn add_checksum(&mut self, file: &str, at: usize, of: AcpiTable) {
        let [start, len] = [offset(of.offset), offset(of.len)];
        let range: Vec<u8> = start.into_iter().chain(len).collect();
        self.command(ADD_CHECKSUM, &[file], &offset(at), &range);
    }

    fn command(&mut self, code: u32, files: &[&str], first: &[u8], second: &[u8]) {
        let mut command = code.to_le_bytes().to_vec();
        for file in files {
            let padded = file.bytes().chain(core::iter::repeat(0));
            command.extend(padded.take(NAME));
        }
        command.extend(first.iter().chain(second));
        command.resize(COMMAND, 0);
        self.bytes.extend(command);
    }
}

/// Offsets lie in a file whose size has 32 bits, as was checked before.
fn offset(at: usize) -> [u8; 4] {
    u32::try_from(at).unwrap_or(u32::MAX).to_le_bytes()
}
