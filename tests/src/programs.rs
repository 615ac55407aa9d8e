//! The programs under test and the two init programs, built in release form when a run needs them.
//!
//! cargo decides whether there is anything to do, so a run never tests an old binary.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Package and binary of the VMM.
pub const TDVMM: (&str, &str) = ("tdvmm", "tdvmm");
/// Package and binary of the first process of an L1.
pub const L1_AGENT: (&str, &str) = ("tdvmm-tests", "tdvmm-l1-agent");
/// Package and binary of the first process of a guest.
pub const GUEST_INIT: (&str, &str) = ("tdvmm-tests", "tdvmm-guest-init");
/// Package and binary of the program that probes KVM's TDX ABI in L1.
pub const TDX_PROBE: (&str, &str) = ("tdvmm-tests", "tdvmm-tdx-probe");

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The top folder of the repository.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The folder that build results go to.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Builds a program in release form and gives its path.
pub fn build(program: (&str, &str)) -> Result<PathBuf> {
    build_as(program, "release")
}

/// Builds a program with overflow checks and debug assertions and gives its path.
pub fn build_checked(program: (&str, &str)) -> Result<PathBuf> {
    build_as(program, "dev")
}

fn build_as((package, binary): (&str, &str), profile: &str) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "--locked", "--profile", profile])
        .args(["--package", package, "--bin", binary])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot build {binary}");
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir().join(TARGET).join(folder).join(binary))
}
