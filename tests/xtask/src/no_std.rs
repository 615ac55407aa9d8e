//! `firmware` and what it uses for a target without an operating system, so that whoever verifies a
//! TD can run the code that predicts its measurement anywhere.
//!
//! The attribute `no_std` alone does not say that: a dependency with its default features may bring
//! std back, and only a target that lacks it notices.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, ignored, run, workspace};

const TARGET: &str = "x86_64-unknown-none";
const PACKAGE: &str = "tdvmm-firmware";

/// Runs the check where the target's library is installed. It is no part of a toolchain, and not every machine can fetch
/// it, so that its lack is said, and a fault only where `TDVMM_REQUIRE` has `no-std`.
pub fn check() -> Result<ExitCode> {
    if has_library()? {
        let words = ["check", "--quiet", "--package", PACKAGE, "--target", TARGET];
        return run(cargo(words));
    }
    println!("NOT run: there is no library for {TARGET} (rustup target add {TARGET})");
    Ok(ignored("no-std"))
}

/// Whether the compiler has libraries for the target. It names their folder for any target it knows.
fn has_library() -> Result<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", TARGET]);
    let output = command.current_dir(workspace()).output();
    let output = output.context("cannot run rustc")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "rustc failed: {errors}");
    let folder = String::from_utf8_lossy(&output.stdout);
    Ok(Path::new(folder.trim()).is_dir())
}
