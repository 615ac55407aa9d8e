//! What must not creep: system calls before the guest runs, and the size of the program.

use std::process::Command;

use anyhow::{Context, Result, bail};
use tdvmm_tests::native::needs::Need;

use crate::lab::{Case, Lab};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::needing(
        "start_up_has_no_more_calls_and_bytes_than_before",
        &[Need::Kvm, Need::Cc],
        ratchet,
    )]
}

/// The bench knows the limits; it says which one is broken.
fn ratchet(_: &Lab) -> Result<()> {
    let bench = Command::new(env!("CARGO_BIN_EXE_start-bench"))
        .arg("--ratchet")
        .output()
        .context("cannot run the bench")?;
    if !bench.status.success() {
        bail!(
            "{}{}",
            String::from_utf8_lossy(&bench.stdout),
            String::from_utf8_lossy(&bench.stderr)
        );
    }
    Ok(())
}
