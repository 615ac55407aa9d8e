//! The fuzz targets, each for a bounded time from the committed corpus.
//!
//! Inputs that reach something new go to `target/fuzz`, not into the corpus: what is committed there is chosen by a
//! person. `cargo fuzz` is put below `target` where the machine has none, and runs on the pinned toolchain
//! (`RUSTC_BOOTSTRAP`), since sanitizers are not stable yet.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, ignored, workspace};

/// The version that is installed where there is none.
const VERSION: &str = "=0.13.2";
const FOLDER: &str = "tests/fuzz";
/// The most that one input may make the target allocate; well above the largest input and its parse.
const MEMORY_MIB: u32 = 1024;
/// An input that takes longer is a hang.
const INPUT_SECONDS: u32 = 10;
/// As many at a time as the smallest machine that this runs on has cores.
const AT_ONCE: usize = 2;

/// Runs the named targets, or all, for `seconds` each.
pub fn fuzz(wanted: &[String], seconds: u32) -> Result<ExitCode> {
    let known = targets()?;
    for name in wanted {
        ensure!(
            known.contains(name),
            "no target {name}; there are {}",
            known.join(", ")
        );
    }
    let chosen = if wanted.is_empty() { &known } else { wanted };
    if let Err(error) = install() {
        println!("{} fuzz targets ignored: {error:#}", chosen.len());
        return Ok(ignored("fuzz"));
    }
    build()?;
    let mut failed = Vec::new();
    for group in chosen.chunks(AT_ONCE) {
        // Started together, then waited for.
        let running: Vec<_> = group
            .iter()
            .map(|n| Ok((n, start(n, seconds)?, Instant::now())))
            .collect::<Result<_>>()?;
        for (name, child, begin) in running {
            let output = child
                .wait_with_output()
                .context("cannot wait for a fuzz target")?;
            let text = String::from_utf8_lossy(&output.stderr);
            let verdict = if output.status.success() {
                "ok"
            } else {
                "FAILED"
            };
            println!(
                "fuzz {name} ... {verdict} ({:.0} s)",
                begin.elapsed().as_secs_f64()
            );
            println!("    {}", last_figures(&text));
            if !output.status.success() {
                println!("{text}");
                failed.push(name.as_str());
            }
        }
    }
    ensure!(
        failed.is_empty(),
        "fuzz targets failed: {}; their inputs are in {FOLDER}/artifacts",
        failed.join(", ")
    );
    Ok(ExitCode::SUCCESS)
}

/// The targets are the files of `fuzz_targets`.
fn targets() -> Result<Vec<String>> {
    let folder = workspace().join(FOLDER).join("fuzz_targets");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        if let Some(name) = entry?.path().file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Makes sure that `cargo fuzz` can be run, and what its targets are linked with is there.
fn install() -> Result<()> {
    let quiet = |mut command: Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let mut compiler = Command::new(env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    compiler.arg("--version");
    ensure!(
        quiet(compiler),
        "no C++ compiler, which libFuzzer is built with; install g++ or set CXX"
    );
    if quiet(cargo_fuzz(&["--version"])) {
        return Ok(());
    }
    println!("installing cargo-fuzz {VERSION} into {}", tools().display());
    let mut command = cargo([
        "install",
        "--quiet",
        "--locked",
        "cargo-fuzz",
        "--version",
        VERSION,
        "--root",
    ]);
    // Not in the workspace, whose settings (a static target) are for its own programs.
    command.arg(tools()).current_dir("/");
    let status = command.status().context("cannot run cargo install")?;
    ensure!(status.success(), "cargo-fuzz {VERSION} cannot be installed");
    Ok(())
}

fn tools() -> PathBuf {
    workspace().join("target/tools")
}

fn build() -> Result<()> {
    let status = cargo_fuzz(&["build", "--fuzz-dir", FOLDER])
        .status()
        .context("cannot run cargo fuzz")?;
    ensure!(status.success(), "the fuzz targets do not build");
    Ok(())
}

fn start(target: &str, seconds: u32) -> Result<Child> {
    let found = workspace().join("target/fuzz").join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut command = cargo_fuzz(&["run", "--fuzz-dir", FOLDER, target]);
    // The first folder takes what is found.
    command
        .arg(found)
        .arg(workspace().join(FOLDER).join("corpus").join(target));
    command
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    command
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg("-print_final_stats=1");
    command.stderr(Stdio::piped()).stdout(Stdio::null());
    command.spawn().context("cannot start cargo fuzz")
}

fn cargo_fuzz(arguments: &[&str]) -> Command {
    let mut command = cargo(["fuzz"]);
    command.args(arguments).env("RUSTC_BOOTSTRAP", "1");
    let mut path = vec![tools().join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    if let Ok(path) = env::join_paths(path) {
        command.env("PATH", path);
    }
    command
}

/// libFuzzer's figures at its end, on one line.
fn last_figures(text: &str) -> String {
    let coverage = text
        .lines()
        .rev()
        .find(|line| line.contains(" cov: "))
        .unwrap_or_default();
    let executed = text
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let memory = text
        .lines()
        .find_map(|line| line.strip_prefix("stat::peak_rss_mb:"));
    let word = |found: Option<&str>| found.unwrap_or("?").trim().to_owned();
    let coverage = coverage
        .split(" cov: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    format!(
        "{} inputs, {} places reached, {} MiB at most",
        word(executed),
        word(coverage),
        word(memory)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_the_fuzzer_prints() {
        let text = "#7\tNEW    cov: 12 ft: 9 corp: 1/1b\n#9\tDONE   cov: 31 ft: 40 corp: 2/3b lim: 4\n\
                    stat::number_of_executed_units: 90\nstat::peak_rss_mb:              44\n";
        assert_eq!(
            last_figures(text),
            "90 inputs, 31 places reached, 44 MiB at most"
        );
        assert_eq!(
            last_figures(""),
            "? inputs, ? places reached, ? MiB at most"
        );
    }

    #[test]
    fn every_target_has_a_committed_corpus() {
        let names = targets().unwrap();
        assert!(!names.is_empty());
        for name in names {
            let corpus = workspace().join(FOLDER).join("corpus").join(&name);
            assert!(fs::read_dir(&corpus).unwrap().next().is_some(), "{name}");
        }
    }
}
