//! Firmware images that are nearly legal.

use arbitrary::{Result, Unstructured};

use super::{interesting, put, store};

const PAGE: usize = 0x1000;
const FOUR_GIB: u64 = 1 << 32;
const FOOTER: [u8; 16] = [
    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
];
const TDX: [u8; 16] = [
    0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
];

#[derive(Clone, Copy)]
struct Row {
    data: u64,
    raw: u64,
    at: u64,
    len: u64,
    kind: u64,
    attributes: u64,
}

const fn row(kind: u64, (data, raw): (u64, u64), (at, len): (u64, u64), attributes: u64) -> Row {
    Row {
        data,
        raw,
        at,
        len,
        kind,
        attributes,
    }
}

/// The fields of the descriptor's header, and where it is said to be.
struct Descriptor {
    at: usize,
    from_end: u64,
    signature: u32,
    version: u32,
    length: Option<u32>,
    count: Option<u32>,
}

/// A file made by the recipe in `u`.
pub fn build(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let pages = usize::from(u.int_in_range(3..=20_u8)?);
    let mut file = vec![0x90; pages * PAGE];
    let size = file.len() as u64;
    let vars = usize::from(u.int_in_range(1..=2_u8)?) * PAGE;
    if u.ratio(3, 4)? {
        put(&mut file, 0, &store::legal(vars).bytes);
    }

    let mut rows = rows(u.int_in_range(0..=3)?, size, vars as u64);
    for _ in 0..u.int_in_range(0..=4)? {
        change_rows(u, &mut rows, size)?;
    }
    let at = file.len() - 0x400;
    let mut descriptor = Descriptor::legal(at);
    if u.ratio(1, 4)? {
        change_descriptor(u, &mut descriptor)?;
    }
    write_descriptor(&mut file, &descriptor, &rows);
    let lead = u.int_in_range(0..=7)?;
    if lead != 0 {
        let pointer = if u.ratio(1, 8)? {
            u.arbitrary()?
        } else {
            at as u32
        };
        let pointer = if lead >= 6 { pointer } else { 0 };
        let end = file.len();
        put(&mut file, end - 0x20, &pointer.to_le_bytes());
    }
    if (1..=6).contains(&lead) {
        write_table(u, &mut file, descriptor.from_end as u32)?;
    }
    cut(u, file, vars)
}

/// A legal image of OVMF's layout that starts with `vars`, which are whole pages.
#[must_use]
pub fn ovmf(vars: &[u8]) -> Vec<u8> {
    let mut file = vec![0x90; vars.len() + 3 * PAGE];
    put(&mut file, 0, vars);
    let size = file.len() as u64;
    let at = file.len() - 0x400;
    let rows = rows(0, size, vars.len() as u64);
    write_descriptor(&mut file, &Descriptor::legal(at), &rows);
    put(&mut file, size as usize - 0x20, &(at as u32).to_le_bytes());
    file
}

/// What an image of TD-Shim's layout has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// Places for a kernel and its command line.
    TakesKernel,
    /// Neither of them.
    NoPayload,
    /// No place for a command line.
    NoParameters,
    /// A payload in the file.
    OwnPayload,
    /// No variables.
    NoVariables,
}

/// A legal image of TD-Shim's layout that boots a kernel.
#[must_use]
pub fn td_shim(shim: Shim) -> Vec<u8> {
    let mut file = vec![0x90; 3 * PAGE];
    let size = file.len() as u64;
    let at = file.len() - 0x400;
    // BFV, CFV, TD_HOB, Payload, PayloadParam.
    let mut rows = rows(1, size, PAGE as u64);
    match shim {
        Shim::TakesKernel => {}
        Shim::NoPayload => rows.truncate(3),
        Shim::NoParameters => rows.truncate(4),
        Shim::OwnPayload => {
            rows[1].raw = 0x800;
            (rows[3].data, rows[3].raw) = (0x800, 0x800);
        }
        Shim::NoVariables => drop(rows.remove(1)),
    }
    write_descriptor(&mut file, &Descriptor::legal(at), &rows);
    put(&mut file, 3 * PAGE - 0x20, &(at as u32).to_le_bytes());
    file
}

/// What a store of variables may be put into: images with a place of its size, of another size and of none, and no image.
#[must_use]
pub fn with_places_for(variables: &[u8]) -> [Vec<u8>; 4] {
    [
        ovmf(&store::legal(variables.len()).bytes),
        ovmf(&store::legal(0x5000).bytes),
        td_shim(Shim::NoVariables),
        variables.to_vec(),
    ]
}

impl Descriptor {
    const fn legal(at: usize) -> Self {
        Self {
            at,
            from_end: 0x400,
            signature: u32::from_le_bytes(*b"TDVF"),
            version: 1,
            length: None,
            count: None,
        }
    }
}

/// Sections of OVMF, or of one of TD-Shim's layouts.
fn rows(layout: u8, size: u64, vars: u64) -> Vec<Row> {
    let start = FOUR_GIB - size;
    let mut rows = vec![
        row(0, (vars, size - vars), (start + vars, size - vars), 1),
        row(1, (0, vars), (start, vars), 0),
    ];
    match layout {
        0 => rows.extend([
            row(3, (0, 0), (0x81_0000, 0x1_0000), 0),
            row(2, (0, 0), (0x80_9000, 0x2000), 0),
        ]),
        1 => rows.extend([
            row(2, (0, 0), (0x80_0000, 0x2_0000), 0),
            row(5, (0, 0), (0x86_1000, 0x2_0000), 0),
            row(6, (0, 0), (0x86_0000, 0x1000), 0),
        ]),
        2 => rows.extend([
            row(2, (0, 0), (0x80_0000, 0x2_0000), 0),
            row(3, (0, 0), (0x82_0000, 0x1000), 0),
        ]),
        _ => {
            rows.remove(1);
            rows.extend([
                row(8, (0x40, 0x100), (0, 0), 0),
                row(7, (0x140, 0x28), (0, 0), 0),
                row(3, (0, 0), (0x80_0000, 0x1000), 0),
                row(5, (0x200, 0xd00), (0x86_1000, 0x2000), 1),
                row(4, (0, 0), (0, 0x80_0000), 2),
            ]);
        }
    }
    rows
}

fn change_rows(u: &mut Unstructured<'_>, rows: &mut Vec<Row>, size: u64) -> Result<()> {
    let index = u.choose_index(rows.len().max(1))?;
    match u.int_in_range(0..=9)? {
        0 if !rows.is_empty() => drop(rows.remove(index)),
        1 if !rows.is_empty() => rows.push(rows[index]),
        2 if rows.len() > 1 => rows.swap(0, index),
        3 => {
            let kind = u.int_in_range(0..=8)?;
            let page = u64::from(u.arbitrary::<u16>()?) << 12;
            rows.push(row(kind, (0, 0), (page, 0x1000), 0));
        }
        field if !rows.is_empty() => {
            let value = interesting(u, size)?;
            let row = &mut rows[index];
            match field {
                4 => row.data = value,
                5 => row.raw = value,
                6 => row.at = value,
                7 => row.len = value,
                8 => row.kind = value & 0xf,
                _ => row.attributes = value & 7,
            }
        }
        _ => {}
    }
    Ok(())
}

fn change_descriptor(u: &mut Unstructured<'_>, descriptor: &mut Descriptor) -> Result<()> {
    match u.int_in_range(0..=4)? {
        0 => descriptor.from_end = interesting(u, descriptor.at as u64)?,
        1 => descriptor.signature = u.arbitrary()?,
        2 => descriptor.version = u.arbitrary()?,
        3 => descriptor.length = Some(u.arbitrary()?),
        _ => {
            let count = u.int_in_range(0..=u32::MAX >> 5)?;
            descriptor.count = Some(count);
            descriptor.length = Some((count << 5).wrapping_add(16));
        }
    }
    Ok(())
}

fn write_descriptor(file: &mut [u8], descriptor: &Descriptor, rows: &[Row]) {
    let count = rows.len() as u32;
    let fields = [
        descriptor.signature,
        descriptor.length.unwrap_or(16 + 32 * count),
        descriptor.version,
        descriptor.count.unwrap_or(count),
    ];
    let mut bytes: Vec<u8> = fields.into_iter().flat_map(u32::to_le_bytes).collect();
    for row in rows {
        bytes.extend((row.data as u32).to_le_bytes());
        bytes.extend((row.raw as u32).to_le_bytes());
        bytes.extend(row.at.to_le_bytes());
        bytes.extend(row.len.to_le_bytes());
        bytes.extend((row.kind as u32).to_le_bytes());
        bytes.extend((row.attributes as u32).to_le_bytes());
    }
    put(file, descriptor.at, &bytes);
}

/// The GUID table with the TDX entry after up to three others.
fn write_table(u: &mut Unstructured<'_>, file: &mut [u8], from_end: u32) -> Result<()> {
    let footer = file.len() - 0x30;
    put(file, footer, &FOOTER);
    let mut end = footer - 2;
    for _ in 0..u.int_in_range(0..=3)? {
        let len = usize::from(u.int_in_range(0..=16_u8)?);
        write_entry(u, file, &mut end, &vec![1; len], [0x5a; 16])?;
    }
    write_entry(u, file, &mut end, &from_end.to_le_bytes(), TDX)?;
    let total = (footer + 16 - end) as u16;
    let total = if u.ratio(1, 12)? {
        u.arbitrary()?
    } else {
        total
    };
    put(file, footer - 2, &total.to_le_bytes());
    Ok(())
}

/// Gives a legal image without a GUID table the largest that there can be, and returns its number of
/// entries. The descriptor moves before it; the file has to have that room.
pub fn fill_guid_table(file: &mut [u8]) -> usize {
    const ENTRY: usize = 18;
    let footer = file.len() - 0x30;
    let entries = usize::from(u16::MAX) / ENTRY - 1;
    let from = file.len() - 0x400;
    let to = footer - 0x400 - entries * ENTRY;
    file.copy_within(from..footer - 2, to);
    let end = file.len();
    put(file, end - 0x20, &(to as u32).to_le_bytes());
    put(file, footer, &FOOTER);
    let total = entries * ENTRY + ENTRY;
    put(file, footer - 2, &(total as u16).to_le_bytes());
    for number in 1..=entries {
        let at = footer - 2 - number * ENTRY;
        put(file, at, &(ENTRY as u16).to_le_bytes());
        put(file, at + 2, &[0x5a; 16]);
    }
    entries
}

fn write_entry(
    u: &mut Unstructured<'_>,
    file: &mut [u8],
    end: &mut usize,
    data: &[u8],
    guid: [u8; 16],
) -> Result<()> {
    let len = data.len() + 18;
    put(file, *end - 16, &guid);
    put(file, *end - len, data);
    let claimed = if u.ratio(1, 16)? {
        u.arbitrary()?
    } else {
        len as u16
    };
    put(file, *end - 18, &claimed.to_le_bytes());
    *end -= len;
    Ok(())
}

/// The whole file mostly; else its code, its variables, or a part without the end.
fn cut(u: &mut Unstructured<'_>, mut file: Vec<u8>, vars: usize) -> Result<Vec<u8>> {
    match u.int_in_range(0..=15)? {
        0 => file.drain(..vars).for_each(drop),
        1 => file.truncate(vars),
        2 => file.truncate(usize::from(u.arbitrary::<u16>()?)),
        9 => file.truncate(file.len() - PAGE),
        _ => {}
    }
    Ok(file)
}
