//! Where an ELF kernel goes in guest memory, read before anything is created.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use tdvmm_arch::addr::{Gpa, GpaRange};

/// Length of an entry of the program header table. ELF-64: `Elf64_Phdr`.
const ENTRY_LEN: usize = 56;
/// `p_type` of what is loaded.
const PT_LOAD: u32 = 1;

/// The program header table of the ELF file that starts with `head`.
///
/// # Errors
///
/// If the file cannot be read, or ends before the table does.
pub fn program_headers(head: &[u8], file: &File) -> io::Result<Vec<u8>> {
    // e_phoff, e_phentsize and e_phnum.
    let (offset, entry, count) = (
        number(head, 32, 8),
        number(head, 54, 2),
        number(head, 56, 2),
    );
    if entry != ENTRY_LEN as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its program headers have {entry} bytes each, not {ENTRY_LEN}"),
        ));
    }
    #[expect(clippy::cast_possible_truncation, reason = "a 16-bit field")]
    let mut table = vec![0; count as usize * ENTRY_LEN];
    file.read_exact_at(&mut table, offset)?;
    Ok(table)
}

/// The memory from the lowest to the highest segment of a program header table. The loader puts segments at
/// their physical addresses.
///
/// # Errors
///
/// If nothing is loaded, or a segment wraps around.
pub fn extent(table: &[u8]) -> Result<GpaRange, &'static str> {
    let mut extent: Option<(u64, u64)> = None;
    for header in table.chunks_exact(ENTRY_LEN) {
        let (at, in_file, in_memory) = (
            number(header, 24, 8),
            number(header, 32, 8),
            number(header, 40, 8),
        );
        // A segment of no bytes is nowhere.
        let len = in_file.max(in_memory);
        if number(header, 0, 4) != u64::from(PT_LOAD) || len == 0 {
            continue;
        }
        let end = at
            .checked_add(len)
            .ok_or("is an ELF file with a segment that wraps around")?;
        let (low, high) = extent.unwrap_or((at, end));
        extent = Some((low.min(at), high.max(end)));
    }
    extent
        .and_then(|(low, high)| GpaRange::new(Gpa(low), Gpa(high)))
        .ok_or("is an ELF file with nothing to load")
}

/// A little-endian number; what is beyond the end counts as 0.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32, at: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY_LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        for (place, value) in [(24, at), (32, in_file), (40, in_memory)] {
            bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn extent_spans_what_is_loaded_and_nothing_else() {
        let table = [
            header(PT_LOAD, 0x20_0000, 0x1000, 0x3000),
            header(4, 0, 0x40, 0x40),
            header(PT_LOAD, 0x10_0000, 0x800, 0x800),
            header(PT_LOAD, 0x8000_0000, 0, 0),
        ];
        assert_eq!(
            extent(&table.concat()),
            Ok(GpaRange::constant(0x10_0000, 0x10_3000))
        );
    }

    #[test]
    fn file_without_a_place_is_refused() {
        assert!(extent(&[]).is_err());
        assert!(extent(&header(PT_LOAD, u64::MAX, 2, 2)).is_err());
    }

    #[test]
    fn table_of_another_shape_is_an_error() {
        let file = File::open("/dev/null").unwrap();
        let mut head = vec![0; 64];
        assert!(
            program_headers(&head, &file)
                .unwrap_err()
                .to_string()
                .contains("0 bytes")
        );
        head[54] = 56;
        head[56] = 1;
        // The file ends before its table.
        assert!(program_headers(&head, &file).is_err());
    }
}
