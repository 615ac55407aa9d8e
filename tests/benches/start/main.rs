//! How fast and how light `tdvmm` starts: the figures, each with its limit.
//!
//! ```text
//! start-bench [--runs N]     all figures; fails when a limit is broken (`cargo xtask bench start`)
//! start-bench --ratchet      those that do not depend on how busy the machine is (lane L2)
//! ```
//!
//! One vCPU, 128 MiB, a guest that writes a serial byte and switches itself off; the release build with its
//! usual wiring, serial port on standard output. The floor program (`floor.rs`) makes the KVM calls that
//! such a guest needs and none else. All run in turns, in changing order, so that the machine's other work meets
//! them alike (evenly where N is a multiple of six).
#![expect(clippy::print_stdout, reason = "prints its figures")]
#![expect(clippy::print_stderr, reason = "says which limit is broken")]

mod limits;
mod memory;
mod timing;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use tdvmm_tests::native::calls;
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;
use tdvmm_tests::native::needs::Need;
use tdvmm_tests::programs;
use timing::{Times, median_and_tenth};

/// Runs of each program.
const RUNS: usize = 300;

/// Who runs when. The kernel still clears up after one program when the next one starts, so each comes after each other
/// one equally often.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [1, 2, 0],
    [2, 0, 1],
    [0, 2, 1],
    [2, 1, 0],
    [1, 0, 2],
];

const FLOOR: (&str, &str) = ("tdvmm-tests", "start-floor");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["--ratchet"] => ratchet(),
        [] => bench(RUNS),
        ["--runs", runs] => runs
            .parse()
            .context("--runs wants a number")
            .and_then(bench),
        _ => Err(anyhow::anyhow!("usage: start-bench [--runs N | --ratchet]")),
    };
    match outcome {
        Ok(broken) if broken.is_empty() => ExitCode::SUCCESS,
        Ok(broken) => {
            broken
                .iter()
                .for_each(|line| eprintln!("limit broken: {line}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("start-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One figure with its limit; the answer is what to say if it is broken.
fn figure(name: &str, value: f64, limit: f64, unit: &str) -> Option<String> {
    let line = format!("{name}: {value:.2}{unit}, at most {limit:.2}{unit}");
    println!("{line}");
    (value > limit).then_some(line)
}

/// As [`figure`], for what is counted.
fn count(name: &str, value: u64, limit: u64, unit: &str) -> Option<String> {
    let line = format!("{name}: {value}{unit}, at most {limit}{unit}");
    println!("{line}");
    (value > limit).then_some(line)
}

fn needs() -> Result<()> {
    for need in [Need::Kvm, Need::Cc] {
        if let Some(reason) = need.missing() {
            bail!("{reason}");
        }
    }
    Ok(())
}

/// What is the same in every run on every machine.
fn ratchet() -> Result<Vec<String>> {
    needs()?;
    let folder = Folder::create()?;
    let tdvmm = programs::build(programs::TDVMM)?;
    let kernel = guest::assemble("start", &["END=1"], folder.path())?;
    fixed(&tdvmm, &kernel)
}

fn fixed(tdvmm: &Path, kernel: &Path) -> Result<Vec<String>> {
    // How far the main thread is when the vCPU's thread enters the guest is chance: the most counts.
    let mut calls = 0;
    for _ in 0..5 {
        calls = calls.max(calls::before_first_entry(command(tdvmm, kernel))?);
    }
    let size = std::fs::metadata(tdvmm)?.len();
    let broken = [
        count(
            "system calls before the first KVM_RUN",
            calls,
            limits::CALLS,
            "",
        ),
        count("size of the program", size, limits::PROGRAM_BYTES, " bytes"),
    ];
    Ok(broken.into_iter().flatten().collect())
}

fn bench(runs: usize) -> Result<Vec<String>> {
    needs()?;
    let folder = Folder::create()?;
    let tdvmm = programs::build(programs::TDVMM)?;
    let kernel = guest::assemble("start", &["END=1"], folder.path())?;
    let mut broken = fixed(&tdvmm, &kernel)?;

    let program = programs::build(FLOOR)?;
    let floor = || {
        let mut floor = Command::new(&program);
        floor.stdin(Stdio::null()).stderr(Stdio::null());
        floor
    };
    let image = folder.join("image");
    std::fs::write(&image, vec![0; 1 << 20])?;
    let console = folder.join("console");
    let with_devices = |kernel: &Path| {
        let mut command = command(&tdvmm, kernel);
        command
            .arg("--disk")
            .arg(format!("path={}", image.display()));
        command
            .arg("--console")
            .arg(format!("file={}", console.display()));
        command
    };
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for order in ORDERS.iter().cycle().take(runs) {
        for subject in order {
            let command = match subject {
                0 => command(&tdvmm, &kernel),
                1 => floor(),
                _ => with_devices(&kernel),
            };
            times
                .get_mut(*subject)
                .context("one of three subjects")?
                .push(Times::of(command)?);
        }
    }
    let [ours, least, devices] = times;
    type Part = fn(&Times) -> std::time::Duration;
    let parts: [(&str, Part); 2] = [
        ("exec to first guest byte", |t| t.first_byte),
        ("exec to exit", |t| t.exit),
    ];
    for (name, part) in parts {
        let (ours, our_tenth) = median_and_tenth(&ours, part);
        let (least, least_tenth) = median_and_tenth(&least, part);
        println!("{name}: {ours:.2} ms, floor {least:.2} ms (medians of {runs} runs)");
        println!(
            "{name}, quickest tenth: {our_tenth:.2} ms, floor {least_tenth:.2} ms, ratio {:.2}",
            our_tenth / least_tenth
        );
        let ratio = ours / least;
        broken.extend(figure(&format!("{name}, ratio"), ratio, limits::RATIO, ""));
    }

    let (with, _) = median_and_tenth(&devices, |t| t.first_byte);
    let (without, _) = median_and_tenth(&ours, |t| t.first_byte);
    println!("exec to first guest byte with a disk and a console: {with:.2} ms");
    let name = "exec to first guest byte, with a disk and a console to without";
    broken.extend(figure(name, with / without, limits::DEVICES_RATIO, ""));
    note_load()?;

    let idle = guest::assemble("start", &[], folder.path())?;
    let ours = memory::without_guest_ram(command(&tdvmm, &idle))?;
    let name = "Pss without guest RAM";
    broken.extend(figure(name, ours, limits::PSS_MIB, " MiB"));
    let with = memory::without_guest_ram(with_devices(&idle))?;
    let name = "Pss without guest RAM, with a disk and a console";
    broken.extend(figure(name, with, limits::DEVICES_PSS_MIB, " MiB"));
    Ok(broken)
}

/// On a busy machine the medians are times of the scheduler; the quickest tenth still says something.
fn note_load() -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let cpus = std::thread::available_parallelism()?;
    println!(
        "load of the machine: {load} on {cpus} CPUs; the limits are for one that has nothing else to do"
    );
    Ok(())
}

/// The machine of the bench.
fn command(tdvmm: &Path, kernel: &Path) -> Command {
    let mut command = Command::new(tdvmm);
    command.arg("--kernel").arg(kernel);
    command.args(["--memory", "size=128M"]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}
