//! ELF kernels that are nearly legal.

use arbitrary::{Result, Unstructured};

use super::{interesting, put};

/// Where the Payload section of [`crate::firmware::image`]'s TD-Shim layout starts.
const PAYLOAD: u64 = 0x86_1000;

/// A file made by the recipe in `u`.
pub fn build(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut elf = vec![0x90; 0x1000];
    let size = elf.len() as u64;
    put(&mut elf, 0, b"\x7fELF\x02\x01");
    put(&mut elf, 18, &62_u16.to_le_bytes());
    put(&mut elf, 24, &(PAYLOAD + 0x80).to_le_bytes());
    put(&mut elf, 32, &64_u64.to_le_bytes());
    put(&mut elf, 54, &56_u16.to_le_bytes());
    let segments = u.int_in_range(0..=4_u16)?;
    put(&mut elf, 56, &segments.to_le_bytes());
    for index in 0..usize::from(segments) {
        let at = PAYLOAD + (u64::from(u.arbitrary::<u8>()? & 0x1f) << 12);
        let mut fields = [0x400, 0, at, 0x400, 0x1000];
        if u.ratio(1, 3)? {
            let field = u.choose_index(fields.len())?;
            fields[field] = interesting(u, size)?;
        }
        let header = 64 + 56 * index;
        put(&mut elf, header, &u.int_in_range(0..=2_u32)?.to_le_bytes());
        for (field, value) in fields.into_iter().enumerate() {
            put(&mut elf, header + 8 + 8 * field, &value.to_le_bytes());
        }
    }
    if u.ratio(1, 4)? {
        let at = *u.choose(&[0, 4, 18, 24, 32, 54, 56])?;
        let value = interesting(u, size)?.to_le_bytes();
        put(&mut elf, at, &value[..2]);
    }
    Ok(elf)
}
