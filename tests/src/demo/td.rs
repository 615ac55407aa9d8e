//! A TD: on the host's own TDX where `tdvmm check` finds nothing wrong, otherwise on emulated TDX in the testbed.
//! The command is the same in both.
#![expect(clippy::print_stdout, reason = "shows what it does")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tdvmm_tdx::transcript::CallRecord;

use super::{run_here, run_in_testbed, show_guest, step};
use crate::debian::Packages;
use crate::fixture::install::{FIRMWARE_BLANK, blank_firmware};
use crate::fixture::{Fixture, witness};
use crate::guest::td::ANNOUNCEMENTS;
use crate::guest::{self, Report, Then};
use crate::harness::L1_KERNEL;
use crate::l1::{Machine, Program};
use crate::{kernel, programs};

/// A TD on hardware takes some seconds; accepting its memory depends on the host.
const NATIVE_WAIT: Duration = Duration::from_secs(120);

/// Sets up what is needed, launches a TD with two vCPUs, and compares what it should measure with what it does.
///
/// # Errors
/// Something cannot be had, the TD does not boot, or its MRTD is another than the computed one.
pub fn demo(packages: &Packages) -> Result<()> {
    step("building tdvmm");
    let tdvmm = programs::build(programs::TDVMM)?;
    step("fetching a Debian kernel and firmware for TDs");
    let folder = programs::target_dir().join("testbed/demo");
    fs::create_dir_all(&folder)?;
    let firmware = folder.join("OVMF.fd");
    fs::write(&firmware, blank_firmware(packages)?)?;
    let mrtd = computed(&tdvmm, &firmware)?;
    step(&format!("computed beforehand: MRTD {mrtd}"));

    let missing = missing_for_tdx(&tdvmm)?;
    let Some(missing) = missing else {
        step("this host can launch TDs");
        return natively(packages, &tdvmm, &firmware, &mrtd);
    };
    step(&format!("not on this host: {missing}"));
    step(
        "using emulated TDX, which has no security: an emulated machine with KVM, in it tdvmm, in it the TD",
    );
    in_testbed(packages, &tdvmm, &mrtd)
}

/// What `tdvmm inspect` says that a TD with this firmware measures.
fn computed(tdvmm: &Path, firmware: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Inspected {
        mrtd: String,
    }
    let mut command = Command::new(tdvmm);
    let output = command
        .arg("inspect")
        .arg("--json")
        .arg(firmware)
        .output()?;
    ensure!(
        output.status.success(),
        "tdvmm inspect ended with {}",
        output.status
    );
    let inspected: Inspected = serde_json::from_slice(&output.stdout)?;
    Ok(inspected.mrtd)
}

/// The first condition for TDX that this host does not meet.
fn missing_for_tdx(tdvmm: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        what: String,
    }
    let output = Command::new(tdvmm)
        .args(["check", "--json"])
        .stderr(Stdio::null())
        .output()?;
    let lines: Vec<Line> =
        serde_json::from_slice(&output.stdout).context("the output of tdvmm check")?;
    Ok(lines
        .into_iter()
        .find(|line| line.level == "fail")
        .map(|line| line.what))
}

/// Where the parts of the TD are, on the machine that `tdvmm` runs on.
struct Files<'a> {
    firmware: &'a str,
    kernel: &'a str,
    initramfs: &'a str,
    transcript: &'a str,
    serial: &'a str,
}

impl Files<'_> {
    fn words(&self, mrtd: &str) -> Vec<String> {
        let (line, expect) = (guest::command_line(Then::PowerOff), format!("mrtd={mrtd}"));
        let words = [
            ["--firmware", self.firmware],
            ["--kernel", self.kernel],
            ["--initramfs", self.initramfs],
            ["--cmdline", &line],
            ["--platform", "tdx=on"],
            ["--cpus", "boot=2"],
            ["--memory", "size=512M"],
            ["--serial", self.serial],
            ["--expect", &expect],
            ["--transcript", self.transcript],
        ];
        words.concat().into_iter().map(str::to_owned).collect()
    }
}

fn natively(packages: &Packages, tdvmm: &Path, firmware: &Path, mrtd: &str) -> Result<()> {
    let folder = firmware.parent().context("the firmware is in a folder")?;
    let initramfs = folder.join("td-initramfs.cpio");
    fs::write(&initramfs, guest::td_initramfs(packages, L1_KERNEL, None)?)?;
    let (console, transcript) = (folder.join("console.log"), folder.join("transcript.json"));
    let kernel = kernel::image(&packages.kernel_parts(L1_KERNEL, &["image"])?)?;
    let files = Files {
        firmware: &firmware.to_string_lossy(),
        kernel: &kernel.to_string_lossy(),
        initramfs: &initramfs.to_string_lossy(),
        transcript: &transcript.to_string_lossy(),
        serial: &format!("file={}", console.display()),
    };
    let mut command = Command::new(tdvmm);
    command.args(files.words(mrtd));
    step(&format!("running {command:?}"));
    let (output, time) = run_here(command, &console, NATIVE_WAIT)?;
    show_launch(&fs::read(&transcript)?)?;
    show_td(&Report::parse(&output)?, time, mrtd, None)
}

fn in_testbed(packages: &Packages, tdvmm: &Path, mrtd: &str) -> Result<()> {
    step("making sure of the emulation's modules (about a minute when nothing is cached)");
    let fixture = Fixture::open(packages, L1_KERNEL)?;
    let mut machine = Machine::new(packages, L1_KERNEL)?;
    fixture.install(packages, &mut machine)?;
    machine.archive().copy("/bin/tdvmm", 0o755, tdvmm)?;
    machine.archive().file(
        "/guest/initramfs",
        0o644,
        guest::td_initramfs(packages, L1_KERNEL, None)?,
    );
    machine.add_kernel(L1_KERNEL, "/guest/kernel")?;
    let mut l1 = machine.boot()?;
    step(&format!(
        "the emulated machine is up after {:.1} s",
        l1.boot_time.as_secs_f64()
    ));

    let files = Files {
        firmware: FIRMWARE_BLANK,
        kernel: "/guest/kernel",
        initramfs: "/guest/initramfs",
        transcript: "/transcript.json",
        serial: "tty",
    };
    let words = files.words(mrtd);
    step(&format!("running tdvmm {}", words.join(" ")));
    let run = l1.start(&Program::new("/bin/tdvmm").args(words))?;
    let (output, time) = run_in_testbed(&mut l1, run)?;
    show_launch(&l1.read(files.transcript)?)?;
    let ended = witness::take_ended(&mut l1)?;
    let witnessed = ended.first().context("the emulation saw no TD end")?;
    show_td(&Report::parse(&output)?, time, mrtd, Some(&witnessed.mrtd))?;
    l1.power_off()
}

/// The launch, a line for each call.
fn show_launch(transcript: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Launch {
        calls: Vec<CallRecord>,
    }
    let launch: Launch = serde_json::from_slice(transcript).context("the transcript")?;
    println!("\n  the launch:");
    for call in &launch.calls {
        let about = call.region.as_ref().map_or_else(
            || {
                call.vcpu
                    .map_or_else(String::new, |vcpu| format!("vCPU {vcpu}"))
            },
            |region| {
                let measured = if region.measured {
                    "measured"
                } else {
                    "not measured"
                };
                format!("{} pages at {}, {measured}", region.pages, region.gpa)
            },
        );
        let milliseconds = Duration::from_micros(call.took_us).as_secs_f64() * 1e3;
        println!("    {:24} {milliseconds:9.3} ms  {about}", call.call);
    }
    Ok(())
}

/// What the guest says, and whether it is what was computed.
fn show_td(report: &Report, time: Duration, mrtd: &str, witnessed: Option<&str>) -> Result<()> {
    show_guest(report, time);
    for line in &report.announcements {
        println!("  its kernel     {line}");
    }
    let told = report.td_value("mrtd").unwrap_or("nothing");
    println!("  MRTD computed  {mrtd}");
    println!("  by the guest   {told}");
    if let Some(witnessed) = witnessed {
        println!("  by the host    {witnessed}");
    }
    println!();
    ensure!(
        report.announcements == ANNOUNCEMENTS,
        "the guest's kernel does not know that it is a TD"
    );
    ensure!(
        told == mrtd && witnessed.is_none_or(|w| w == mrtd),
        "the MRTD is another than the computed one"
    );
    step("a TD booted to user space, and measures what was computed");
    Ok(())
}
