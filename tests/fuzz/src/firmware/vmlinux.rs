//! ELF kernels that are nearly legal.

use arbitrary::{Result, Unstructured};

use super::{interesting, put};

/// Where the Payload section of [`crate::firmware::image`]'s TD-Shim layout starts.
const PAYLOAD: u64 = 0x86_1000;

/// A legal file that is no longer than it need be, with `len` bytes for each of the addresses.
#[must_use]
pub fn with_segments(addresses: &[u64], len: u64) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56 * addresses.len()];
    put_header(&mut elf, addresses.len() as u16);
    for (index, at) in addresses.iter().enumerate() {
        let fields = [0, 0, *at, len, len];
        put_segment(&mut elf, index, 1, fields);
    }
    elf
}

fn put_header(elf: &mut [u8], segments: u16) {
    put(elf, 0, b"\x7fELF\x02\x01");
    put(elf, 18, &62_u16.to_le_bytes());
    put(elf, 24, &(PAYLOAD + 0x80).to_le_bytes());
    put(elf, 32, &64_u64.to_le_bytes());
    put(elf, 54, &56_u16.to_le_bytes());
    put(elf, 56, &segments.to_le_bytes());
}

/// `fields` are the offset, the virtual and the physical address, and the bytes in the file and in memory.
fn put_segment(elf: &mut [u8], index: usize, kind: u32, fields: [u64; 5]) {
    let header = 64 + 56 * index;
    put(elf, header, &kind.to_le_bytes());
    for (field, value) in fields.into_iter().enumerate() {
        put(elf, header + 8 + 8 * field, &value.to_le_bytes());
    }
}

/// A file made by the recipe in `u`.
pub fn build(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut elf = vec![0x90; 0x1000];
    let size = elf.len() as u64;
    let segments = u.int_in_range(0..=4_u16)?;
    put_header(&mut elf, segments);
    for index in 0..usize::from(segments) {
        let at = PAYLOAD + (u64::from(u.arbitrary::<u8>()? & 0x1f) << 12);
        let mut fields = [0x400, 0, at, 0x400, 0x1000];
        if u.ratio(1, 3)? {
            let field = u.choose_index(fields.len())?;
            fields[field] = interesting(u, size)?;
        }
        put_segment(&mut elf, index, u.int_in_range(0..=2_u32)?, fields);
    }
    if u.ratio(1, 4)? {
        let at = *u.choose(&[0, 4, 18, 24, 32, 54, 56])?;
        let value = interesting(u, size)?.to_le_bytes();
        put(&mut elf, at, &value[..2]);
    }
    Ok(elf)
}
