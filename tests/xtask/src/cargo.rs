//! cargo as a child process, and what it knows of the workspace.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The top folder of the repository.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The cargo that started us, in the top folder.
pub fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(arguments);
    command
}

/// The program of `tdvmm-tests` that boots machines by hand.
pub fn testbed(task: &str) -> Command {
    cargo([
        "run",
        "--quiet",
        "--package",
        "tdvmm-tests",
        "--bin",
        "testbed",
        "--",
        task,
    ])
}

/// The path that the testbed prints for `task`, unless somebody has set `name` already. None where the package cannot be
/// had: the tests say so.
pub fn from_testbed(name: &str, task: &str) -> Option<String> {
    if env::var_os(name).is_some() {
        return None;
    }
    let output = testbed(task).stderr(Stdio::inherit()).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim().to_owned())
}

/// How a part ends that cannot run here: as a failure if `TDVMM_REQUIRE` has `need` in its list.
pub fn ignored(need: &str) -> ExitCode {
    let required = env::var("TDVMM_REQUIRE").unwrap_or_default();
    if required.split(',').any(|name| name.trim() == need) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs a command that prints for itself; its failure is ours.
pub fn run(mut command: Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `cargo metadata`; with or without the packages that are not ours.
pub fn metadata(all: bool) -> Result<Value> {
    let mut command = cargo(["metadata", "--format-version", "1", "--locked"]);
    if !all {
        command.arg("--no-deps");
    }
    let output = command.output().context("cannot run cargo metadata")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata failed: {errors}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A list in the metadata.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// A text in the metadata.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
