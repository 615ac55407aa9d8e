//! Finds the TDX descriptor in a file and reads its header.
//!
//! ```text
//!   ... | descriptor | ... | entry n | .. | entry 1 | table length u16 | footer GUID | 32 bytes | end
//!             ^                 each entry: data, length u16, GUID            ^ end - 0x30
//!             `--- by the TDX entry (offset from the end) or by the pointer at end - 0x20 (from the start)
//! ```
//!
//! Source: EDK2 `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm` for the table, TD-Shim `td-layout`
//! for the pointer. The pointer's place holds code in some images, so it counts only where it leads
//! to the descriptor's signature.

use alloc::vec::Vec;

use serde::Serialize;

use super::MAX_SECTIONS;
use super::error::{DescriptorError, ParseError};
use super::section::{ENTRY_LEN, Entry};
use crate::guid::Guid;
use crate::wire;

const FOOTER: Guid = Guid::new(
    0x96b5_82de,
    0x1fb2,
    0x45f7,
    [0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d],
);
const TDX_METADATA: Guid = Guid::new(
    0xe47a_6535,
    0x984a,
    0x4798,
    [0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2],
);

const FOOTER_FROM_END: usize = 0x30;
const POINTER_FROM_END: usize = 0x20;
const GUID_LEN: usize = 16;
/// A length field and a GUID: the least an entry has, and what the table's own header has.
const ENTRY_HEADER: usize = 18;
const HEADER_LEN: usize = 16;
const SIGNATURE: u32 = u32::from_le_bytes(*b"TDVF");

/// One entry of the GUID table, by its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GuidEntry {
    /// What the entry is.
    pub guid: Guid,
    /// File offset of its data.
    pub offset: usize,
    /// Bytes of data.
    pub len: usize,
}

/// How the descriptor was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// By the TDX entry of the GUID table.
    GuidTable,
    /// By the legacy pointer.
    Pointer,
}

/// The table of GUIDs at the end of the file, last entry of the file first; empty where there is
/// none.
pub(super) fn guid_table(file: &[u8]) -> Result<Vec<GuidEntry>, ParseError> {
    let Some(footer) = file.len().checked_sub(FOOTER_FROM_END) else {
        return Ok(Vec::new());
    };
    if wire::array(file, footer) != Some(*FOOTER.as_bytes()) {
        return Ok(Vec::new());
    }
    let at = footer.saturating_sub(2);
    let len = wire::u16_at(file, at).unwrap_or(0);
    let bad_table = ParseError::GuidTable { at, len };
    // The length counts the footer's own GUID and length field too.
    let rest = usize::from(len)
        .checked_sub(ENTRY_HEADER)
        .ok_or(bad_table)?;
    let start = at.checked_sub(rest).ok_or(bad_table)?;

    let mut entries = Vec::new();
    let mut end = at;
    while end > start {
        let entry = read_entry(file, start, end)?;
        end = entry.offset;
        entries.push(entry);
    }
    Ok(entries)
}

/// The entry that ends at `end` of a table that starts at `start`.
fn read_entry(file: &[u8], start: usize, end: usize) -> Result<GuidEntry, ParseError> {
    let header = end.saturating_sub(ENTRY_HEADER);
    let len = wire::u16_at(file, header).unwrap_or(0);
    let bad_entry = ParseError::GuidEntry { end, len };
    let offset = end
        .checked_sub(usize::from(len))
        .filter(|offset| *offset >= start)
        .ok_or(bad_entry)?;
    let data = usize::from(len)
        .checked_sub(ENTRY_HEADER)
        .ok_or(bad_entry)?;
    let guid = wire::array(file, end.saturating_sub(GUID_LEN)).ok_or(bad_entry)?;
    Ok(GuidEntry {
        guid: Guid::from_bytes(guid),
        offset,
        len: data,
    })
}

/// The descriptor's file offset, and what led there.
pub(super) fn descriptor(file: &[u8], table: &[GuidEntry]) -> Result<(u64, FoundBy), ParseError> {
    let from_end = table
        .iter()
        .find(|entry| entry.guid == TDX_METADATA && entry.len == 4)
        .and_then(|entry| wire::u32_at(file, entry.offset));
    if let Some(from_end) = from_end {
        // An offset beyond the start of the file saturates to one beyond its end.
        let at = file.len().checked_sub(from_end as usize);
        let at = at.map_or(u64::MAX, wire::len_u64);
        return Ok((at, FoundBy::GuidTable));
    }
    legacy_pointer(file)
        .map(|at| (u64::from(at), FoundBy::Pointer))
        .ok_or_else(|| no_metadata(file))
}

/// The legacy pointer, where it leads to a descriptor.
pub(super) fn legacy_pointer(file: &[u8]) -> Option<u32> {
    let pointer = wire::u32_at(file, file.len().checked_sub(POINTER_FROM_END)?)?;
    let signature = wire::u32_at(file, pointer as usize)?;
    (signature == SIGNATURE).then_some(pointer)
}

fn no_metadata(file: &[u8]) -> ParseError {
    // Whole images start with such a volume too, so it has to be all there is.
    let volume = wire::u64_at(file, 32);
    if super::family::is_variable_store(file) && volume == Some(wire::len_u64(file.len())) {
        return ParseError::VariablesOnly;
    }
    let pointer_at = file.len().saturating_sub(POINTER_FROM_END);
    let pointer = wire::u32_at(file, pointer_at).unwrap_or(0);
    ParseError::NoMetadata {
        pointer_at,
        pointer,
    }
}

/// The section entries of the descriptor at `at`.
pub(super) fn entries(file: &[u8], at: u64) -> Result<Vec<Entry>, DescriptorError> {
    let outside = DescriptorError::OutOfFile { file: file.len() };
    let from = usize::try_from(at).map_err(|_| outside)?;
    let bytes = file.get(from..).ok_or(outside)?;
    let header = |offset| wire::u32_at(bytes, offset).ok_or(outside);

    let signature = header(0)?;
    if signature != SIGNATURE {
        return Err(DescriptorError::Signature(signature));
    }
    let version = header(8)?;
    if version != 1 {
        return Err(DescriptorError::Version(version));
    }
    let (length, sections) = (header(4)?, header(12)?);
    let expected = u64::from(sections)
        .saturating_mul(wire::len_u64(ENTRY_LEN))
        .saturating_add(wire::len_u64(HEADER_LEN));
    if sections == 0 || u64::from(length) != expected {
        return Err(DescriptorError::Length { length, sections });
    }
    if sections > MAX_SECTIONS {
        return Err(DescriptorError::TooManySections(sections));
    }
    let body = bytes.get(HEADER_LEN..length as usize).ok_or(outside)?;
    body.chunks_exact(ENTRY_LEN)
        .map(|entry| Entry::read(entry).ok_or(outside))
        .collect()
}
