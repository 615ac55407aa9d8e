//! The programs under test and the two init programs, built in release form when a run needs them.
//!
//! cargo decides whether there is anything to do, so a run never tests an old binary. It is asked once in a process: an
//! answer takes it half a second, and a run wants the same programs again for each machine and each guest.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// Package and binary of the VMM.
pub const TDVMM: (&str, &str) = ("tdvmm", "tdvmm");
/// Package and binary of the first process of an L1.
pub const L1_AGENT: (&str, &str) = ("tdvmm-tests", "tdvmm-l1-agent");
/// Package and binary of the first process of a guest.
pub const GUEST_INIT: (&str, &str) = ("tdvmm-tests", "tdvmm-guest-init");
/// Package and binary of the program that probes KVM's TDX ABI in L1.
pub const TDX_PROBE: (&str, &str) = ("tdvmm-tests", "tdvmm-tdx-probe");

/// What runs in L1 and its guests beside the VMM: any of them is built together with the others.
const TOGETHER: [(&str, &str); 3] = [L1_AGENT, GUEST_INIT, TDX_PROBE];

/// Profiles, packages and names of the programs that this process has built.
type Built = BTreeSet<(&'static str, String, String)>;

static BUILT: Mutex<Built> = Mutex::new(Built::new());

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

fn build_as(program: (&str, &str), profile: &'static str) -> Result<PathBuf> {
    // Held while cargo works: who wants the same program meanwhile waits for it here, not in another cargo.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    build_once(&mut built, program, profile, run_cargo)?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir().join(TARGET).join(folder).join(program.1))
}

fn build_once(
    built: &mut Built,
    program: (&str, &str),
    profile: &'static str,
    cargo: impl FnOnce(&str, &[&str], &str) -> Result<()>,
) -> Result<()> {
    let key = |(package, binary): (&str, &str)| (profile, package.to_owned(), binary.to_owned());
    if built.contains(&key(program)) {
        return Ok(());
    }
    // Of one package: with several, cargo would build each with the features that any of them wants.
    let programs = if TOGETHER.contains(&program) {
        TOGETHER.to_vec()
    } else {
        vec![program]
    };
    let binaries: Vec<&str> = programs.iter().map(|(_, binary)| *binary).collect();
    cargo(program.0, &binaries, profile)?;
    built.extend(programs.into_iter().map(key));
    Ok(())
}

fn run_cargo(package: &str, binaries: &[&str], profile: &str) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "--locked", "--profile", profile])
        .args(["--package", package])
        .args(binaries.iter().flat_map(|binary| ["--bin", binary]))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot build {}", binaries.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn program_is_built_once_and_again_only_after_a_failure() {
        let mut built = Built::new();
        let mut calls = Vec::new();
        let failed = build_once(&mut built, TDVMM, "release", |_, _, _| {
            bail!("does not compile")
        });
        assert!(failed.is_err());
        let wanted = [TDVMM, GUEST_INIT, L1_AGENT, TDVMM, TDX_PROBE, GUEST_INIT];
        for program in wanted {
            build_once(&mut built, program, "release", |package, binaries, _| {
                calls.push(format!("{package}: {}", binaries.join(" ")));
                Ok(())
            })
            .unwrap();
        }
        let together = "tdvmm-tests: tdvmm-l1-agent tdvmm-guest-init tdvmm-tdx-probe";
        assert_eq!(calls, ["tdvmm: tdvmm", together]);
    }

    #[test]
    fn program_of_another_profile_is_another_one() {
        let mut built = Built::new();
        let mut profiles = Vec::new();
        for profile in ["release", "dev", "release"] {
            build_once(&mut built, TDVMM, profile, |_, _, profile| {
                profiles.push(profile.to_owned());
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(profiles, ["release", "dev"]);
    }

    #[test]
    fn programs_built_together_are_of_one_package() {
        assert!(
            TOGETHER
                .iter()
                .all(|(package, _)| *package == TOGETHER[0].0)
        );
    }
}
