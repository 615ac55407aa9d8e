//! Images made of a section table: every TD-Shim layout in use, OVMF's, and one whose measured
//! section comes after unmeasured ones.

use std::sync::OnceLock;

/// One row of the section table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub kind: u32,
    pub data_offset: u32,
    pub raw_size: u32,
    pub address: u64,
    pub memory_size: u64,
    pub attributes: u32,
}

pub const fn row(
    kind: u32,
    (data_offset, raw_size): (u32, u32),
    (address, memory_size): (u64, u64),
    attributes: u32,
) -> Row {
    Row {
        kind,
        data_offset,
        raw_size,
        address,
        memory_size,
        attributes,
    }
}

/// How the image leads to its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    Table,
    Pointer,
    Both,
    Neither,
}

/// An image of `len` bytes of noise with a descriptor that holds `rows`.
pub fn image(len: usize, lead: Lead, rows: &[Row]) -> Vec<u8> {
    let mut file = noise(len);
    let at = len - 0x1000;
    file[at..at + 4].copy_from_slice(b"TDVF");
    put32(&mut file, at + 4, 16 + 32 * rows.len() as u32);
    put32(&mut file, at + 8, 1);
    put32(&mut file, at + 12, rows.len() as u32);
    for (index, row) in rows.iter().enumerate() {
        let at = at + 16 + 32 * index;
        put32(&mut file, at, row.data_offset);
        put32(&mut file, at + 4, row.raw_size);
        file[at + 8..at + 16].copy_from_slice(&row.address.to_le_bytes());
        file[at + 16..at + 24].copy_from_slice(&row.memory_size.to_le_bytes());
        put32(&mut file, at + 24, row.kind);
        put32(&mut file, at + 28, row.attributes);
    }
    put32(&mut file, len - 0x20, 0);
    if matches!(lead, Lead::Pointer | Lead::Both) {
        put32(&mut file, len - 0x20, at as u32);
    }
    if matches!(lead, Lead::Table | Lead::Both) {
        guid_table(&mut file, at);
    }
    file
}

/// A table of two entries: one that nobody knows, and the one for the descriptor at `at`.
fn guid_table(file: &mut [u8], at: usize) {
    const UNKNOWN: [u8; 16] = [0x5a; 16];
    let footer = file.len() - 0x30;
    file[footer..footer + 16].copy_from_slice(&FOOTER);
    let table = footer - 2;
    file[table..footer].copy_from_slice(&(18 + 24 + 22_u16).to_le_bytes());
    entry(file, table, &[1, 2, 3, 4, 5, 6], UNKNOWN);
    let from_end = (file.len() - at) as u32;
    entry(file, table - 24, &from_end.to_le_bytes(), TDX);
}

fn entry(file: &mut [u8], end: usize, data: &[u8], guid: [u8; 16]) {
    let len = data.len() + 18;
    file[end - 16..end].copy_from_slice(&guid);
    file[end - 18..end - 16].copy_from_slice(&(len as u16).to_le_bytes());
    file[end - len..end - 18].copy_from_slice(data);
}

/// 96b582de-1fb2-45f7-baea-a366c55a082d and e47a6535-984a-4798-865e-4685a7bf8ec2 as stored.
pub const FOOTER: [u8; 16] = [
    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
];
pub const TDX: [u8; 16] = [
    0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
];

pub fn put32(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The first `len` bytes of noise that is made once.
fn noise(len: usize) -> Vec<u8> {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let make = || {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..2 << 20).flat_map(|_| next().to_le_bytes()).collect()
    };
    NOISE.get_or_init(make)[..len].to_vec()
}

const TEMP_MEM: [Row; 3] = [
    row(3, (0, 0), (0xff04_1000, 0x20000), 0),
    row(3, (0, 0), (0xff06_1000, 0x20000), 0),
    row(3, (0, 0), (0xff04_0000, 0x1000), 0),
];
const SHIM_CFV: Row = row(1, (0, 0x40000), (0xff00_0000, 0x40000), 0);
const SHIM_HOB: Row = row(2, (0, 0), (0x80_0000, 0x20000), 0);
const SHIM_BFV: Row = row(0, (0xca_e000, 0x35_2000), (0xffca_e000, 0x35_2000), 1);
const SHIM_PARAM: Row = row(6, (0, 0), (0x86_0000, 0x1000), 0);

/// TD-Shim that boots a kernel from the VMM.
pub fn shim_boot_kernel() -> Vec<Row> {
    let mut rows = vec![SHIM_BFV, SHIM_CFV];
    rows.extend(TEMP_MEM);
    rows.extend([
        SHIM_HOB,
        row(5, (0, 0), (0x86_1000, 0x200_0000), 0),
        SHIM_PARAM,
    ]);
    rows
}

/// TD-Shim with an executable inside the boot firmware volume.
pub fn shim_elf_in_bfv() -> Vec<Row> {
    let mut rows = vec![
        row(0, (0x8_1000, 0xf7_f000), (0xff08_1000, 0xf7_f000), 1),
        SHIM_CFV,
    ];
    rows.extend(TEMP_MEM);
    rows.push(SHIM_HOB);
    rows
}

/// TD-Shim with an executable in a section of its own, measured or not.
pub fn shim_payload_section(attributes: u32) -> Vec<Row> {
    let mut rows = vec![SHIM_BFV, SHIM_CFV];
    rows.extend(TEMP_MEM);
    rows.extend([
        SHIM_HOB,
        row(5, (0x8_1000, 0x12_3456), (0x86_1000, 0x20_0000), attributes),
    ]);
    rows
}

/// A service TD: its memory is declared, TD_INFO and TD_PARAMS are not loaded, and a measured
/// Payload comes after unmeasured memory.
pub fn shim_custom() -> Vec<Row> {
    let mut rows = vec![
        SHIM_BFV,
        row(8, (0x4_0000, 0x1000), (0, 0), 0),
        row(7, (0x4_1000, 0x28), (0, 0), 0),
    ];
    rows.extend(TEMP_MEM);
    rows.extend([
        row(5, (0x8_1000, 0x8_0800), (0x86_1000, 0x9_0000), 1),
        row(4, (0, 0), (0, 0x80_0000), 2),
    ]);
    rows
}

/// The sections of OVMF, for an image of 4 MiB.
pub fn ovmf() -> Vec<Row> {
    vec![
        row(0, (0x8_4000, 0x37_c000), (0xffc8_4000, 0x37_c000), 1),
        row(1, (0, 0x8_4000), (0xffc0_0000, 0x8_4000), 0),
        row(3, (0, 0), (0x81_0000, 0x10000), 0),
        row(3, (0, 0), (0x80_b000, 0x2000), 0),
        row(2, (0, 0), (0x80_9000, 0x2000), 0),
        row(3, (0, 0), (0x80_0000, 0x6000), 0),
    ]
}
