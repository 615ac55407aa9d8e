//! A guest that touches everything with everything: the VMM stays, stays small and stays quiet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;
use tdvmm_tests::native::vm::Vm;

use crate::lab::{Case, Lab};

/// The guest makes about a million exits, and the machine may have other work.
const PATIENCE: Duration = Duration::from_secs(300);

/// Memory that it may gain between its first words and its last: what is mapped late, such as code and
/// a few pages that the guest touches. A byte kept for every exit would be far more.
const GROWTH_KIB: u64 = 512;

/// Standard error: bursts of each place that warns.
const LOG_BYTES: usize = 16 << 10;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::guest(
        "random_access_everywhere_harms_nothing",
        hostile,
    )]
}

fn hostile(lab: &Lab) -> Result<()> {
    let folder = Folder::create()?;
    let kernel = guest::assemble("hostile", &[], folder.path())?;
    let vm = Vm::new(lab.checked_tdvmm()?, folder)?.machine(&kernel);
    let mut running = vm.args(["--cpus", "boot=2"]).patience(PATIENCE).start()?;
    running.wait_for_serial("hostile\n")?;
    let memory = format!("/proc/{}/smaps_rollup", running.id());
    let first = resident(&memory)?.context("it has ended too early")?;
    let mut most = first;
    // Every look that finds the process alive counts; the last one is a moment before its end.
    let end = running.wait_watching(|_| {
        if let Some(now) = resident(&memory)? {
            most = most.max(now);
        }
        Ok(())
    })?;
    let text = String::from_utf8_lossy(&end.serial);
    ensure!(
        text.ends_with("\nsurvived\n"),
        "no last words: {text:?}\n{}",
        end.stderr
    );
    end.expect(0, "the guest switched itself off")?;
    ensure!(
        most <= first + GROWTH_KIB,
        "memory grew from {first} to {most} KiB"
    );
    ensure!(
        end.stderr.len() <= LOG_BYTES,
        "{} bytes of log:\n{}",
        end.stderr.len(),
        end.stderr
    );
    Ok(())
}

/// Resident memory in KiB, `None` for a process that has ended. This file is exact, where that of /proc/PID/status leaves
/// out what some kernels count for each CPU by itself.
fn resident(memory: &str) -> Result<Option<u64>> {
    let text = match std::fs::read_to_string(memory) {
        Ok(text) => text,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| memory.to_owned()),
    };
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let Some(line) = line else { return Ok(None) };
    let number = line.trim().trim_end_matches(" kB");
    Ok(Some(number.parse().context("Rss")?))
}
