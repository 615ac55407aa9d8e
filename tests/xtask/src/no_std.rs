//! `firmware` and what it uses for a target without an operating system, so that whoever verifies a
//! TD can run the code that predicts its measurement anywhere.
//!
//! The attribute `no_std` alone does not say that: a dependency with its default features may bring
//! std back, and only a target that lacks it notices.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, run, workspace};

const TARGET: &str = "x86_64-unknown-none";
const PACKAGE: &str = "tdvmm-firmware";

/// What to do about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Its library is there.
    Run,
    /// It is not, though rustup could have it: `rust-toolchain.toml` names it.
    Missing,
    /// It is not, and comes from nobody here.
    NotRun,
}

/// Runs the check where the target's library is installed.
pub fn check() -> Result<ExitCode> {
    // Set by rustup for all that it starts.
    let by_rustup = env::var_os("RUSTUP_TOOLCHAIN").is_some();
    Ok(match judge(has_library()?, by_rustup) {
        Verdict::Run => {
            let words = ["check", "--quiet", "--package", PACKAGE, "--target", TARGET];
            run(cargo(words))?
        }
        Verdict::Missing => {
            println!("no library for {TARGET}: rustup target add {TARGET}");
            ExitCode::FAILURE
        }
        Verdict::NotRun => {
            println!("NOT run: the toolchain has no library for {TARGET}, and is not rustup's");
            ExitCode::SUCCESS
        }
    })
}

const fn judge(has_library: bool, by_rustup: bool) -> Verdict {
    match (has_library, by_rustup) {
        (true, _) => Verdict::Run,
        (false, true) => Verdict::Missing,
        (false, false) => Verdict::NotRun,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_library_is_a_fault_only_where_rustup_could_have_it() {
        assert_eq!(judge(true, true), Verdict::Run);
        assert_eq!(judge(true, false), Verdict::Run);
        assert_eq!(judge(false, true), Verdict::Missing);
        assert_eq!(judge(false, false), Verdict::NotRun);
    }
}
