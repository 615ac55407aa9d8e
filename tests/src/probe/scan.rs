//! Looks for a token of a TD's memory (`tests/guests/td/memory.c`) in all memory that another process can see: its
//! mappings, its memfds, and its guest_memfds where they can be mapped or read at all.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::sys::Mapping;

/// Read at once. A token may cross the border between two pieces, so they overlap.
const PIECE: usize = 1 << 20;
/// So much of a token is enough to know it.
const TOKEN: usize = 16;

/// What was looked at, and where the token was.
#[derive(Debug, Default)]
pub struct Scan {
    /// Mappings that could be read.
    pub mappings: u32,
    /// Bytes of them.
    pub bytes: u64,
    /// Files without a name that could be read.
    pub memfds: u32,
    /// guest_memfds that there are.
    pub guest_memfds: u32,
    /// Of those, that could be mapped or read.
    pub open_guest_memfds: u32,
    /// Places of the token.
    pub found: Vec<String>,
}

/// Scans the one process whose program is called `name` for the token of `seed`.
///
/// # Errors
/// There is not one such process, or it cannot be looked at.
pub fn scan(name: &str, seed: u64) -> Result<Scan> {
    let pid = process(name)?;
    let token = token(seed);
    let mut scan = Scan::default();
    mappings(pid, &token, &mut scan)?;
    files(pid, &token, &mut scan)?;
    ensure!(scan.mappings > 0, "no mapping of {name} can be read");
    Ok(scan)
}

/// The start of the token, as `memory.c` makes it: splitmix64.
fn token(seed: u64) -> [u8; TOKEN] {
    let word = |number: u64| {
        let mut z = seed.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let mut token = [0; TOKEN];
    token[..8].copy_from_slice(&word(0).to_le_bytes());
    token[8..].copy_from_slice(&word(1).to_le_bytes());
    token
}

fn process(name: &str) -> Result<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        // A process may end while it is looked at.
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if let Some(pid) = pid.filter(|_| comm.trim_end() == name) {
            found.push(pid);
        }
    }
    match found[..] {
        [pid] => Ok(pid),
        _ => bail!("{} processes are called {name}", found.len()),
    }
}

fn mappings(pid: i32, token: &[u8], scan: &mut Scan) -> Result<()> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let range = line.split(' ').next().unwrap_or_default();
        let (start, end) = range.split_once('-').context("a line of maps")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        // Device memory and the kernel's own pages cannot be read, by nobody.
        let Ok(places) = search(&memory, start, end, token) else {
            continue;
        };
        scan.mappings += 1;
        scan.bytes += end - start;
        let what = line.split_whitespace().nth(5).unwrap_or("anonymous");
        let places = places.iter().map(|at| format!("{at:#x} ({what})"));
        scan.found.extend(places);
    }
    Ok(())
}

fn files(pid: i32, token: &[u8], scan: &mut Scan) -> Result<()> {
    let process = Pid::from_raw(pid).context("a process id")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let target = fs::read_link(&path)?.to_string_lossy().into_owned();
        let is_guest = ["guest_memfd", "kvm-gmem"]
            .iter()
            .any(|name| target.contains(name));
        if !is_guest && !target.starts_with("/memfd:") {
            continue;
        }
        let number = number(&path).context("the number of a descriptor")?;
        let file = File::from(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?);
        let places = read_or_map(file, token);
        let place = |at: &u64| format!("{target} at {at:#x}");
        if let Ok(places) = &places {
            scan.found.extend(places.iter().map(place));
        }
        match (is_guest, places.is_ok()) {
            (true, open) => {
                scan.guest_memfds += 1;
                scan.open_guest_memfds += u32::from(open);
            }
            (false, open) => scan.memfds += u32::from(open),
        }
    }
    Ok(())
}

fn number(path: &Path) -> Option<i32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// Searches a file by reading it, or through a mapping; an error where neither is possible.
fn read_or_map(file: File, token: &[u8]) -> io::Result<Vec<u64>> {
    let len = file.metadata()?.len();
    if let Ok(places) = search(&file, 0, len, token) {
        return Ok(places);
    }
    let file: OwnedFd = file.into();
    let size = usize::try_from(len).map_err(io::Error::other)?;
    let mapping = Mapping::try_of_file(file.as_fd(), size)
        .map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
    let mut piece = vec![0; PIECE];
    let mut places = Vec::new();
    for start in (0..size).step_by(PIECE - TOKEN) {
        let len = PIECE.min(size - start);
        for (at, byte) in piece.iter_mut().take(len).enumerate() {
            *byte = u8::try_from(mapping.get(start + at, 1)).unwrap_or(0);
        }
        places.extend(find(&piece[..len], token).map(|at| (start + at) as u64));
    }
    Ok(places)
}

/// Offsets of the token in a part of a file. An error when its first byte cannot be read.
fn search(file: &File, start: u64, end: u64, token: &[u8]) -> io::Result<Vec<u64>> {
    let mut piece = vec![0; PIECE];
    let mut places = Vec::new();
    let mut at = start;
    while at < end {
        let room = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let read = match file.read_at(&mut piece[..room], at) {
            Ok(read) => read,
            Err(error) if at == start => return Err(error),
            // A hole in the middle.
            Err(_) => break,
        };
        if read == 0 {
            break;
        }
        places.extend(find(&piece[..read], token).map(|offset| at + offset as u64));
        let step = if read > TOKEN && at + (read as u64) < end {
            read - TOKEN + 1
        } else {
            read
        };
        at += step as u64;
    }
    Ok(places)
}

fn find<'a>(bytes: &'a [u8], token: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = token.first().copied().unwrap_or_default();
    let starts = bytes
        .iter()
        .enumerate()
        .filter(move |(_, byte)| **byte == first);
    starts
        .map(|(at, _)| at)
        .filter(move |at| bytes.get(*at..*at + token.len()) == Some(token))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Figures of the reference implementation of splitmix64, from state 0.
    #[test]
    fn token_is_splitmix64() {
        let token = token(0);
        assert_eq!(token[..8], 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
        assert_eq!(token[8..], 0x6e78_9e6a_a1b9_65f4_u64.to_le_bytes());
    }

    #[test]
    fn token_is_found_across_the_border_of_two_pieces() {
        let token = token(7);
        for at in [
            0,
            5,
            PIECE - 1,
            PIECE - TOKEN,
            2 * PIECE - 8,
            3 * PIECE - TOKEN,
        ] {
            let mut bytes = vec![token[0]; 3 * PIECE];
            bytes[at..at + TOKEN].copy_from_slice(&token);
            let mut file = tempfile();
            file.write_all(&bytes).unwrap();
            let places = search(&file, 0, bytes.len() as u64, &token).unwrap();
            assert_eq!(places, [at as u64]);
        }
    }

    #[test]
    fn own_memory_is_looked_at() {
        let token = token(0x1234_5678);
        let mut scan = Scan::default();
        let pid = i32::try_from(std::process::id()).unwrap();
        mappings(pid, &token, &mut scan).unwrap();
        assert!(!scan.found.is_empty(), "{scan:?}");
    }

    fn tempfile() -> File {
        use rustix::fs::{MemfdFlags, memfd_create};
        File::from(memfd_create("scan-test", MemfdFlags::CLOEXEC).unwrap())
    }
}
