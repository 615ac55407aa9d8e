//! What became of the cases, told as `cargo test` tells it.

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;

use super::{Case, Options};

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: Vec<String>,
    pub(super) ignored: u32,
    pub(super) filtered: usize,
}

/// Cases whose needs are not met: ignored with the reason, failed if the needs were required.
pub(super) fn ignore_all(cases: &[&Case], need: &str, reason: &str, tally: &mut Tally) {
    for case in cases {
        if required(need) {
            tally.fail(case, &anyhow!("{reason}"), Duration::ZERO, None);
        } else {
            tally.ignore(case, reason);
        }
    }
}

/// Whether `TDVMM_REQUIRE` makes the lack of `need` a failure.
pub fn required(need: &str) -> bool {
    env::var("TDVMM_REQUIRE").is_ok_and(|list| list.split(',').any(|n| n.trim() == need))
}

impl Tally {
    pub(super) fn pass(&mut self, case: &Case, time: Duration, notes: &[String]) {
        println!("test {} ... ok ({:.1} s)", case.name, time.as_secs_f64());
        notes.iter().for_each(|note| println!("    note: {note}"));
        self.passed += 1;
    }

    pub(super) fn ignore(&mut self, case: &Case, reason: &str) {
        println!("test {} ... ignored, {reason}", case.name);
        self.ignored += 1;
    }

    pub(super) fn fail(
        &mut self,
        case: &Case,
        error: &anyhow::Error,
        time: Duration,
        log: Option<&Path>,
    ) {
        println!(
            "test {} ... FAILED ({:.1} s)",
            case.name,
            time.as_secs_f64()
        );
        println!("    {error:#}");
        if let Some(log) = log {
            println!("    log: {}", log.display());
        }
        self.failed.push(case.name.clone());
    }

    pub(super) fn print(&self, options: &Options, time: Duration) {
        if !self.failed.is_empty() {
            println!("\nfailures:");
            self.failed.iter().for_each(|name| println!("    {name}"));
        }
        // `cargo xtask test` takes them into its summary.
        crate::notes()
            .iter()
            .for_each(|note| println!("testbed note: {note}"));
        if let Some(count) = options.count {
            println!(
                "\n{} failures out of {count} runs of each case",
                self.failed.len()
            );
        }
        let verdict = if self.failed.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; \
             {} filtered out; finished in {:.2}s\n",
            self.passed,
            self.failed.len(),
            self.ignored,
            self.filtered,
            time.as_secs_f64()
        );
    }
}
