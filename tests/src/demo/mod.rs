//! `cargo xtask demo`: an unmodified Debian kernel boots under `tdvmm`, on any machine: as a TD ([`td`]), or as an
//! ordinary VM ([`ordinary`]).
//!
//! Natively where the machine can, otherwise in the testbed. It says what it does as it goes.
#![expect(clippy::print_stdout, reason = "shows what it does")]

mod ordinary;
mod td;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::guest::{REPORT_END, Report};
use crate::l1::{L1, Outcome, RunId};

pub use ordinary::demo as ordinary;
pub use td::demo as td;

/// How long a guest in the testbed may take; a busy machine is several times slower than an idle one.
const TESTBED_WAIT: Duration = Duration::from_secs(300);
/// Without a word for this long, the demo says how long it has waited.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);

fn step(text: &str) {
    println!("demo: {text}");
}

/// What the guest said about itself.
fn show_guest(report: &Report, time: Duration) {
    println!();
    println!("  guest kernel   {}", report.release);
    println!(
        "  processors     {} (online {})",
        report.cpus.len(),
        report.online
    );
    println!("  memory         {} MiB", report.memory_kib >> 10);
    println!("  reported       after {:.1} s", time.as_secs_f64());
}

/// Says every now and then that it still waits, and for what.
struct Patience {
    begin: Instant,
    said: Instant,
    limit: Duration,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        let begin = Instant::now();
        Self {
            begin,
            said: begin,
            limit,
        }
    }

    /// Called with the console so far; fails when the limit is reached.
    fn go_on(&mut self, console: &str) -> Result<()> {
        let waited = self.begin.elapsed().as_secs();
        ensure!(
            self.begin.elapsed() < self.limit,
            "the guest did not end within {waited} s"
        );
        if self.said.elapsed() >= PATIENCE {
            self.said = Instant::now();
            // Firmware draws with escape sequences, which say nothing here.
            let is_text = |line: &&str| !line.trim().is_empty() && !line.contains('\x1b');
            let last = console.lines().rev().find(is_text);
            step(&match last {
                Some(line) => format!("  {waited} s: {}", line.trim()),
                None => format!("  {waited} s: the guest starts"),
            });
        }
        Ok(())
    }
}

/// Runs `tdvmm` on this machine until it ends; gives what its guest wrote to `console`, and how long that took.
fn run_here(mut command: Command, console: &Path, limit: Duration) -> Result<(String, Duration)> {
    // Of this run, and not of the last.
    File::create(console)?;
    let mut patience = Patience::new(limit);
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let read = || Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(console)?).into_owned());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Err(error) = patience.go_on(&read()?) {
            child.kill()?;
            child.wait()?;
            bail!(error);
        }
        thread::sleep(LOOK);
    };
    ensure!(status.success(), "tdvmm ended with {status}");
    Ok((read()?, patience.begin.elapsed()))
}

/// Waits for the end of `tdvmm` in the testbed; gives its output, and when the guest had reported.
fn run_in_testbed(l1: &mut L1, run: RunId) -> Result<(String, Duration)> {
    let mut patience = Patience::new(TESTBED_WAIT);
    while !l1.has_ended(run) {
        patience.go_on(&l1.output(run))?;
        l1.poll(LOOK)?;
    }
    let end = l1.wait_end(run, LOOK)?;
    let output = l1.output(run);
    ensure!(
        end.outcome == Outcome::Exited(0),
        "tdvmm ended with {:?}:\n{output}",
        end.outcome
    );
    let reported = l1.wait_for(run, REPORT_END, LOOK)?;
    Ok((output, reported))
}
