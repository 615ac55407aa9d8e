//! What must hold in every commit, beside the tests.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::{cargo, run};
use crate::{Part, edges, no_std, unsafe_list};

/// Runs one part or all; goes on after a failure, so that one run tells everything.
pub fn check(only: Option<Part>) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for part in [
        Part::Fmt,
        Part::Edges,
        Part::Unsafe,
        Part::NoStd,
        Part::Clippy,
    ] {
        if only.is_some_and(|o| o != part) {
            continue;
        }
        println!("== check {part:?}");
        let result = match part {
            Part::Fmt => run(cargo(["fmt", "--all", "--check"])),
            Part::Clippy => clippy(),
            Part::Edges => edges::edges(),
            Part::Unsafe => unsafe_list::check(),
            Part::NoStd => no_std::check(),
        }?;
        if result != ExitCode::SUCCESS {
            println!("check {part:?}: FAILED");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// `--all-targets` leaves out the targets that do not run by themselves, which are the lanes.
fn clippy() -> Result<ExitCode> {
    for targets in [
        "--workspace --all-targets",
        "--package tdvmm-tests --test l2 --test l3",
    ] {
        let words = format!("clippy --quiet {targets} -- -D warnings");
        let code = run(cargo(words.split(' ')))?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}
