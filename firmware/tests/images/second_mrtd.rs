//! MRTD computed a second way: straight from the section table in the file, by writing the whole
//! stream of bytes down and hashing it at the end.

use sha2::{Digest, Sha384};

use crate::synthetic::Row;

pub const UPSTREAM: bool = false;
pub const TWO_PASS: bool = true;

/// MRTD of an image whose table is `rows`. `payload` is what the VMM puts into a Payload section
/// without data.
pub fn expected(file: &[u8], rows: &[Row], payload: &[u8], two_pass: bool) -> String {
    let mut stream = Vec::new();
    for row in rows {
        // BFV, CFV, TD_HOB, TempMem, Payload, PayloadParam are added; the others are not.
        if [4, 7, 8].contains(&row.kind) {
            continue;
        }
        let mut memory = vec![0; row.memory_size as usize];
        let data = match (row.kind, row.raw_size) {
            (5, 0) => payload,
            _ => &file[row.data_offset as usize..][..row.raw_size as usize],
        };
        memory[..data.len()].copy_from_slice(data);

        let mut later = Vec::new();
        for page in 0..memory.len() / 4096 {
            let gpa = row.address + page as u64 * 4096;
            stream.extend(operation("MEM.PAGE.ADD", gpa));
            if row.attributes & 1 == 0 {
                continue;
            }
            let extends = if two_pass { &mut later } else { &mut stream };
            for chunk in 0..16 {
                let at = page * 4096 + chunk * 256;
                extends.extend(operation("MR.EXTEND", row.address + at as u64));
                extends.extend(&memory[at..at + 256]);
            }
        }
        stream.extend(later);
    }
    let digest = Sha384::digest(&stream);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn operation(name: &str, gpa: u64) -> Vec<u8> {
    let mut block = name.as_bytes().to_vec();
    block.resize(16, 0);
    block.extend(gpa.to_le_bytes());
    block.resize(128, 0);
    block
}
