//! The wire form of the blocks: a header of type, length and a reserved word, then fields, all
//! little endian; lengths are multiples of 8.

use alloc::vec::Vec;

use tdvmm_arch::Gpa;

use super::memory::Resource;
use super::{Extensions, HobError};
use crate::guid::Guid;
use crate::wire;

const HANDOFF: u16 = 1;
const RESOURCE: u16 = 3;
const GUID_EXTENSION: u16 = 4;
const END: u16 = 0xffff;

const HEADER_LEN: usize = 8;
const HANDOFF_LEN: usize = 56;
/// Bytes of the end block.
pub(super) const END_LEN: usize = HEADER_LEN;

const HANDOFF_VERSION: u32 = 9;
/// BOOT_WITH_FULL_CONFIGURATION.
const BOOT_MODE: u32 = 0;
/// Present, initialized, tested.
const RAM_ATTRIBUTES: u32 = 0x7;

/// TD-Shim: one ACPI table.
const ACPI_TABLE: Guid = Guid::new(
    0x6a0c_5870,
    0xd4ed,
    0x44f4,
    [0xa1, 0x35, 0xdd, 0x23, 0x8b, 0x6f, 0x0c, 0x8d],
);
/// TD-Shim: what the Payload section holds.
const PAYLOAD_INFO: Guid = Guid::new(
    0xb96f_a412,
    0x461f,
    0x4be3,
    [0x8c, 0x0d, 0xad, 0x80, 0x5a, 0x49, 0x7a, 0xc0],
);

pub(super) fn blocks(
    at: Gpa,
    memory: &[Resource],
    extensions: &Extensions<'_>,
) -> Result<Vec<u8>, HobError> {
    let mut rest = Vec::new();
    for resource in memory {
        let fields = [
            &Guid::ZERO.as_bytes()[..],
            &resource.kind.wire().to_le_bytes(),
            &RAM_ATTRIBUTES.to_le_bytes(),
            &resource.range.start().0.to_le_bytes(),
            &resource.range.len().to_le_bytes(),
        ];
        block(&mut rest, RESOURCE, &fields);
    }
    if let Some(payload) = &extensions.payload {
        let fields = [&PAYLOAD_INFO.as_bytes()[..], &payload.to_bytes()];
        block(&mut rest, GUID_EXTENSION, &fields);
    }
    for (index, table) in extensions.acpi_tables.iter().enumerate() {
        let len = table.len();
        block(&mut rest, GUID_EXTENSION, &[ACPI_TABLE.as_bytes(), table])
            .ok_or(HobError::Table { index, len })?;
    }
    block(&mut rest, END, &[]);

    let len = HANDOFF_LEN.saturating_add(rest.len());
    let end = at.0.saturating_add(wire::len_u64(len));
    let mut bytes = Vec::with_capacity(len);
    // The four addresses between describe free memory for more blocks. Firmware that makes some
    // moves the list first, so there is none here.
    let fields = [
        &HANDOFF_VERSION.to_le_bytes()[..],
        &BOOT_MODE.to_le_bytes(),
        &[0; 32],
        &end.to_le_bytes(),
    ];
    block(&mut bytes, HANDOFF, &fields);
    bytes.extend(rest);
    Ok(bytes)
}

/// Appends one block, padded with zeros; `None` where its length does not fit the field.
fn block(to: &mut Vec<u8>, kind: u16, fields: &[&[u8]]) -> Option<()> {
    let content: usize = fields.iter().map(|field| field.len()).sum();
    let len = content
        .checked_add(HEADER_LEN)?
        .checked_next_multiple_of(HEADER_LEN)?;
    let wire_len = u16::try_from(len).ok()?;
    let end = to.len().checked_add(len)?;
    to.extend(kind.to_le_bytes());
    to.extend(wire_len.to_le_bytes());
    to.extend([0; 4]);
    for field in fields {
        to.extend_from_slice(field);
    }
    to.resize(end, 0);
    Some(())
}
