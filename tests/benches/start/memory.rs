//! Memory of a process beside its guest's.

use std::fs;
use std::io::Read;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The guest's memory is the one mapping of this size.
const GUEST_KIB: u64 = 128 << 10;

/// Pss in MiB of all mappings but the guest's memory, once the guest has written its byte and halts.
pub fn without_guest_ram(mut command: Command) -> Result<f64> {
    let (mut bytes, stdout) = std::io::pipe()?;
    command.stdout(stdout);
    let mut child = command.spawn()?;
    drop(command);
    let measured = bytes
        .read_exact(&mut [0])
        .context("the guest writes nothing")
        .and_then(|()| Ok(fs::read_to_string(format!("/proc/{}/smaps", child.id()))?))
        .and_then(|maps| pss(&maps));
    child.kill()?;
    child.wait()?;
    measured
}

fn pss(maps: &str) -> Result<f64> {
    let (mut sum, mut guest, mut is_guest) = (0, 0, false);
    for line in maps.lines() {
        if let Some(size) = kib(line, "Size:") {
            is_guest = size == GUEST_KIB;
            guest += u32::from(is_guest);
        } else if let Some(pss) = kib(line, "Pss:")
            && !is_guest
        {
            sum += pss;
        }
    }
    ensure!(
        guest == 1,
        "{guest} mappings have the size of the guest's memory"
    );
    Ok(f64::from(u32::try_from(sum)?) / 1024.0)
}

fn kib(line: &str, name: &str) -> Option<u64> {
    let number = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_left_out() {
        let maps = "0-1 r\nSize:  8 kB\nPss:  6 kB\nPss_Dirty: 99 kB\n\
                    1-2 rw\nSize: 131072 kB\nPss: 4000 kB\n2-3 rw\nSize: 4 kB\nPss: 1018 kB\n";
        assert!((pss(maps).unwrap() - 1.0).abs() < 1e-9);
        assert!(pss("0-1 r\nSize: 8 kB\nPss: 6 kB\n").is_err());
    }
}
