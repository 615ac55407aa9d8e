//! Bytes that are told apart by seed and place, and made faster than a disk takes them.
//!
//! A test in a guest writes them to a file or a disk and reads them back; any lost, stale or moved block
//! shows up as a difference at a known place.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes that are made, written and compared at once.
pub const PIECE: usize = 1 << 20;

/// The piece of number `index`.
pub fn piece(seed: u64, index: u64) -> Vec<u8> {
    // xorshift64, from a start that is never 0.
    let mut state = (seed << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(PIECE);
    while bytes.len() < PIECE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Writes `pieces` of them from the start of `path`, which is created if it is not there, and waits until
/// they are on the disk.
pub fn fill(path: &str, pieces: u64, seed: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    for index in 0..pieces {
        file.write_all(&piece(seed, index))?;
    }
    file.sync_all()
}

/// Reads `pieces` of them from the start of `path`.
///
/// # Errors
/// One cannot be read or is another.
pub fn check(path: &str, pieces: u64, seed: u64) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(0))?;
    let mut seen = vec![0; PIECE];
    for index in 0..pieces {
        file.read_exact(&mut seen)?;
        let expected = piece(seed, index);
        // As a whole first: byte by byte takes seconds in an emulated guest.
        if seen != expected {
            let same = seen.iter().zip(&expected).take_while(|(a, b)| a == b);
            let at = same.count();
            let problem = format!("{path}: piece {index} differs from byte {at} on");
            return Err(io::Error::other(problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_other_seeds_and_places_differ() {
        assert_eq!(piece(1, 2), piece(1, 2));
        assert_ne!(piece(1, 2), piece(1, 3));
        assert_ne!(piece(1, 2), piece(2, 2));
        assert_eq!(piece(0, 0).len(), PIECE);
    }

    #[test]
    fn changed_byte_is_found() {
        let path = std::env::temp_dir().join(format!("tdvmm-pattern-{}", std::process::id()));
        let name = path.to_str().unwrap();
        fill(name, 2, 7).unwrap();
        check(name, 2, 7).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[PIECE + 5] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = check(name, 2, 7).unwrap_err().to_string();
        assert!(error.ends_with("piece 1 differs from byte 5 on"), "{error}");
        std::fs::remove_file(path).unwrap();
    }
}
