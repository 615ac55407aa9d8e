//! The test lanes: each is one or more runs of `cargo test`, whose output is shown and counted.
//!
//! | lane | what |
//! |---|---|
//! | L0 | unit tests and documentation tests of all crates |
//! | L1 | integration tests of the crates (fakes, golden files, corpus replays) |
//! | L2 | target `l2` of `tdvmm-tests`: hand-written guests on `/dev/kvm` |
//! | L3 | target `l3` of `tdvmm-tests`: real kernels in the testbed |
//! | L4 | the TD cases of target `l3` on a host that has TDX |

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::cargo::{cargo, from_testbed, list, metadata, run, text};
use crate::names;
use crate::output::Counts;

/// A lane of the test plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Lane {
    /// Unit tests
    L0,
    /// Integration tests with fakes
    L1,
    /// Hand-written guests
    L2,
    /// Real kernels in the testbed
    L3,
    /// TDs on this host's own TDX
    #[value(alias = "tdx")]
    L4,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Empty: all.
    pub lanes: Vec<Lane>,
    /// Part of a test's name.
    pub case: Option<String>,
    /// The whole matrix.
    pub full: bool,
    /// Logs of what passes, too.
    pub keep_logs: bool,
}

/// One of the lists of a lane.
type Lines = fn(&Counts) -> &Vec<String>;

#[derive(Debug)]
struct LaneResult {
    lane: Lane,
    counts: Counts,
    time: Duration,
}

impl Lane {
    const ALL: [Self; 5] = [Self::L0, Self::L1, Self::L2, Self::L3, Self::L4];

    /// The runs of `cargo test` of this lane, without what selects tests.
    fn commands(self, targets: &[String]) -> Vec<Vec<String>> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let has = |name: &str| targets.iter().any(|t| t == name);
        match self {
            Self::L0 => vec![
                words("--workspace --lib --bins"),
                words("--workspace --doc"),
            ],
            Self::L1 => {
                let own = targets.iter().filter(|t| !is_lane_target(t));
                let own: Vec<String> = own.flat_map(|t| ["--test".to_owned(), t.clone()]).collect();
                if own.is_empty() {
                    vec![]
                } else {
                    vec![[words("--workspace"), own].concat()]
                }
            }
            Self::L2 if has("l2") => vec![words("--package tdvmm-tests --test l2")],
            Self::L3 | Self::L4 if has("l3") => vec![words("--package tdvmm-tests --test l3")],
            Self::L2 | Self::L3 | Self::L4 => vec![],
        }
    }

    /// The variables that name to this lane's tests what they need of packages, and the task of the testbed that
    /// prints the path: the kernel's headers for crate `tdx`, Debian's firmware for TDs for crate `firmware`.
    fn wants_of_testbed(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::L1 => &[
                ("TDVMM_KERNEL_HEADERS", "headers"),
                ("TDVMM_OVMF_TDX", "firmware"),
            ],
            Self::L0 | Self::L2 | Self::L3 | Self::L4 => &[],
        }
    }
}

fn is_lane_target(name: &str) -> bool {
    matches!(name, "l2" | "l3")
}

/// Runs the lanes and prints the summary.
pub fn test(selection: &Selection) -> Result<ExitCode> {
    let begin = Instant::now();
    let targets = test_targets()?;
    let mut results = Vec::new();
    for lane in Lane::ALL {
        if selection.lanes.is_empty() || selection.lanes.contains(&lane) {
            results.push(run_lane(lane, selection, &targets)?);
        }
    }
    let tier = if selection.full {
        "full"
    } else {
        "representative"
    };
    println!("{}", summary(&results, tier, begin.elapsed()));
    if let Some(case) = &selection.case {
        let none = results.iter().all(|r| r.counts.is_empty());
        let lanes: Vec<Lane> = results.iter().map(|r| r.lane).collect();
        ensure!(!none, names::unknown(case, &all_names(&lanes, &targets)?));
    }
    let failed = results.iter().any(|r| r.counts.failed > 0);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Runs one case of lane L3 many times.
pub fn soak(case: &str, count: u32, keep_logs: bool) -> Result<ExitCode> {
    let known = all_names(&[Lane::L3], &test_targets()?)?;
    ensure!(
        known.iter().any(|name| name == case),
        names::unknown(case, &known)
    );
    let begin = Instant::now();
    let mut command = cargo([
        "test",
        "--quiet",
        "--package",
        "tdvmm-tests",
        "--test",
        "l3",
        "--",
    ]);
    command.args([case, "--exact", "--count", &count.to_string()]);
    if keep_logs {
        command.arg("--keep-logs");
    }
    let code = run(command)?;
    println!("soak of {case}: {:.0} s", begin.elapsed().as_secs_f64());
    Ok(code)
}

/// Names of all integration test targets.
fn test_targets() -> Result<Vec<String>> {
    let metadata = metadata(false)?;
    let mut names: Vec<String> = list(&metadata, "packages")
        .iter()
        .flat_map(|package| list(package, "targets"))
        .filter(|target| list(target, "kind").iter().any(|k| k == "test"))
        .map(|target| text(target, "name").to_owned())
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Names of all tests of some lanes, of whatever tier.
fn all_names(lanes: &[Lane], targets: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for lane in lanes {
        for words in lane.commands(targets) {
            let mut command = cargo(["test", "--quiet"]);
            command.args(words).args(["--", "--list"]);
            command.args((*lane == Lane::L4).then_some("--on-host"));
            let output = command.stderr(Stdio::inherit()).output();
            let output = output.context("cannot run cargo test")?;
            ensure!(output.status.success(), "cannot list the tests");
            let text = String::from_utf8_lossy(&output.stdout);
            names.extend(names::listed(&text).map(str::to_owned));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn run_lane(lane: Lane, selection: &Selection, targets: &[String]) -> Result<LaneResult> {
    println!("\n== lane {lane:?}");
    let begin = Instant::now();
    let mut counts = Counts::default();
    let wanted = lane.wants_of_testbed().iter();
    let found: Vec<_> = wanted
        .filter_map(|(name, task)| Some((*name, from_testbed(name, task)?)))
        .collect();
    for words in lane.commands(targets) {
        let mut command = cargo(["test", "--no-fail-fast"]);
        command.envs(found.iter().map(|(name, path)| (*name, path)));
        command.args(words).arg("--").args(&selection.case);
        if lane == Lane::L4 {
            command.arg("--on-host");
        }
        if matches!(lane, Lane::L3 | Lane::L4) {
            // Whether any lane has such a case is seen when all have run.
            command.arg("--allow-none");
            command.args(selection.full.then_some("--full"));
            command.args(selection.keep_logs.then_some("--keep-logs"));
        }
        run_counted(command, &mut counts)?;
    }
    Ok(LaneResult {
        lane,
        counts,
        time: begin.elapsed(),
    })
}

/// Shows and counts the output of one run. A run that fails without a failed test (it did not
/// build, it crashed) counts as one failure.
fn run_counted(mut command: Command, counts: &mut Counts) -> Result<()> {
    let failed_before = counts.failed;
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let output = child.stdout.take().context("cargo's output is a pipe")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.take(&line);
    }
    if !child.wait()?.success() && counts.failed == failed_before {
        counts.failed += 1;
        counts
            .failures
            .push(format!("{command:?} did not run to its end"));
    }
    Ok(())
}

fn summary(results: &[LaneResult], tier: &str, time: Duration) -> String {
    let mut text = format!(
        "\n== summary ({tier} tier, {:.0} s)\n\n",
        time.as_secs_f64()
    );
    text.push_str("lane   passed   failed  ignored   time\n");
    for LaneResult { lane, counts, time } in results {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{lane:?}   {:8} {:8} {:8} {:5.0} s",
            counts.passed,
            counts.failed,
            counts.ignored,
            time.as_secs_f64()
        );
    }
    let sections: [(&str, Lines); 4] = [
        ("measured", |c| &c.notes),
        ("note", |c| &c.testbed),
        ("ignored", |c| &c.reasons),
        ("FAILED", |c| &c.failures),
    ];
    for (title, lines) in sections {
        for LaneResult { lane, counts, .. } in results {
            for line in lines(counts) {
                let _ = writeln!(text, "{title}: {lane:?} {line}");
            }
        }
    }
    let sum = |f: fn(&Counts) -> u32| results.iter().map(|r| f(&r.counts)).sum::<u32>();
    let (passed, failed, ignored) = (sum(|c| c.passed), sum(|c| c.failed), sum(|c| c.ignored));
    let _ = write!(
        text,
        "\n{passed} passed, {failed} failed, {ignored} skipped"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_ends_with_the_plain_totals() {
        let counts = |passed, failed, ignored| Counts {
            passed,
            failed,
            ignored,
            testbed: vec!["a package was replaced".to_owned()],
            ..Counts::default()
        };
        let time = Duration::from_secs(1);
        let results = [
            LaneResult {
                lane: Lane::L0,
                counts: counts(3, 0, 1),
                time,
            },
            LaneResult {
                lane: Lane::L3,
                counts: counts(2, 1, 0),
                time,
            },
        ];
        let text = summary(&results, "full", time);
        assert_eq!(text.lines().last(), Some("5 passed, 1 failed, 1 skipped"));
        assert!(text.contains("\nnote: L3 a package was replaced\n"));
    }

    #[test]
    fn what_lane_l1_wants_of_packages_is_a_task_of_the_testbed() {
        let testbed = include_str!("../../src/bin/testbed.rs");
        let wants = Lane::L1.wants_of_testbed();
        assert!(wants.contains(&("TDVMM_OVMF_TDX", "firmware")));
        for (name, task) in wants {
            assert!(testbed.contains(&format!("[\"{task}\"] =>")), "{name}");
        }
    }

    #[test]
    fn lane_targets_are_kept_out_of_lane_l1() {
        let targets = ["golden", "l2", "l3"].map(str::to_owned);
        let commands = Lane::L1.commands(&targets);
        assert_eq!(commands, [["--workspace", "--test", "golden"]]);
        assert!(Lane::L1.commands(&targets[1..]).is_empty());
        assert!(Lane::L2.commands(&targets[..1]).is_empty());
    }
}
