//! TDs of all shapes: vCPUs, sockets, memory, when memory is accepted, TSC frequency, and how many at once.
//!
//! The rows follow Intel's list for TD guests (intel/lkvs, BM/tdx-guest). A shape that the machine has no room for is
//! reported as ignored with what it lacks. On the testbed the small ones run, on a TDX host all that fit.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::exit_codes;
use tdvmm_tests::fixture::install::FIRMWARE_BLANK;
use tdvmm_tests::guest::{self, MARKER, REPORT_END, Report, Then};
use tdvmm_tests::harness::{Case, Context, Tier, Unmet};
use tdvmm_tests::l1::{Outcome, Program, RunId};

use super::emtdx::{self, INITRAMFS, KERNEL, TDX};
use super::guests::{self, Guest, TDVMM};
use super::{td_cases, td_launch};

/// One TD.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    cpus: u32,
    sockets: u32,
    memory_mib: u64,
    /// Added to the kernel's command line.
    words: &'static str,
    tsc_khz: Option<u32>,
}

const LAZY: &str = "accept_memory=lazy";
const EAGER: &str = "accept_memory=eager";

const fn shape(name: &'static str, cpus: u32, sockets: u32, memory_mib: u64) -> Shape {
    Shape {
        name,
        cpus,
        sockets,
        memory_mib,
        words: "",
        tsc_khz: None,
    }
}

const fn accepting(name: &'static str, memory_mib: u64, words: &'static str) -> Shape {
    Shape {
        words,
        ..shape(name, 2, 1, memory_mib)
    }
}

const fn ticking(name: &'static str, khz: u32) -> Shape {
    Shape {
        tsc_khz: Some(khz),
        ..shape(name, 1, 1, 1024)
    }
}

/// All shapes, each for the whole matrix only.
const SHAPES: [Shape; 22] = [
    shape("1cpu-1g", 1, 1, 1 << 10),
    shape("2cpu-2sockets-1g", 2, 2, 1 << 10),
    shape("4cpu-1g", 4, 1, 1 << 10),
    shape("8cpu-8sockets-1g", 8, 8, 1 << 10),
    shape("16cpu-2sockets-4g", 16, 2, 4 << 10),
    shape("32cpu-4sockets-4g", 32, 4, 4 << 10),
    shape("64cpu-8g", 64, 1, 8 << 10),
    shape("64cpu-8sockets-8g", 64, 8, 8 << 10),
    shape("128cpu-2sockets-16g", 128, 2, 16 << 10),
    shape("255cpu-16g", 255, 1, 16 << 10),
    shape("256cpu-2sockets-16g", 256, 2, 16 << 10),
    shape("288cpu-8sockets-32g", 288, 8, 32 << 10),
    shape("2cpu-16g", 2, 1, 16 << 10),
    shape("2cpu-32g", 2, 1, 32 << 10),
    shape("2cpu-64g", 2, 1, 64 << 10),
    shape("2cpu-96g", 2, 1, 96 << 10),
    accepting("lazy-1g", 1 << 10, LAZY),
    accepting("eager-1g", 1 << 10, EAGER),
    accepting("lazy-16g", 16 << 10, LAZY),
    accepting("eager-16g", 16 << 10, EAGER),
    ticking("tsc-1000mhz", 1_000_000),
    ticking("tsc-2500mhz", 2_500_000),
];

/// TDs, and ordinary VMs beside them.
const AT_ONCE: u32 = 4;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = SHAPES
        .into_iter()
        .map(|shape| {
            let name = format!("td-shape/{}", shape.name);
            case(name, Box::new(move |context| shape.boots(context)))
        })
        .collect();
    cases.push(case(
        "td-many-and-vms-at-once".to_owned(),
        Box::new(many_at_once),
    ));
    cases
}

fn case(name: String, run: tdvmm_tests::harness::CaseFn) -> Case {
    Case {
        name,
        tier: Tier::Full,
        machine: &TDX,
        prepare: |machine| {
            guests::add_initramfs(machine.packages(), machine)?;
            td_cases::with_firmware(machine)
        },
        deadline: Duration::from_secs(600),
        run,
    }
}

impl Shape {
    fn program(&self) -> Program {
        let line = format!("{} {}", guest::command_line(Then::PowerOff), self.words);
        let cores = self.cpus / self.sockets;
        let mut cpus = format!("boot={},topology={}:{cores}:1", self.cpus, self.sockets);
        if let Some(khz) = self.tsc_khz {
            cpus = format!("{cpus},tsc_khz={khz}");
        }
        Program::new(TDVMM)
            .args(["--platform", "tdx=on", "--firmware", FIRMWARE_BLANK])
            .args(["--kernel", KERNEL, "--initramfs", INITRAMFS])
            .args(["--cmdline", &line, "--cpus", &cpus])
            .args(["--memory", &format!("size={}M", self.memory_mib)])
            .args(["--serial", "tty"])
    }

    fn boots(&self, context: &mut Context<'_>) -> Result<()> {
        self.has_room(context)?;
        emtdx::hold(context)?;
        let run = context.l1.start(&self.program())?;
        let up = context.l1.wait_for(run, MARKER, context.left())?;
        context.l1.wait_for(run, REPORT_END, context.left())?;
        let report = Report::parse(&context.l1.output(run))?;
        expect_end(context, run, exit_codes::POWER_OFF)?;
        self.check(&report)?;
        context.note(format!("marker after {:.1} s", up.as_secs_f64()));
        Ok(())
    }

    /// A TD has at most as many vCPUs as the host has CPUs; the emulation allows 8.
    fn has_room(&self, context: &mut Context<'_>) -> Result<()> {
        let cpus = if context.l1.is_host() {
            context.l1.cpus
        } else {
            8
        };
        if self.cpus > cpus {
            return Err(Unmet::new(
                "tdx",
                format!("{} vCPUs need a larger host than {cpus}", self.cpus),
            )
            .into());
        }
        let free = free_mib(context)?;
        // What is not the guest's: page tables, tdvmm, the host's own needs.
        let needed = self.memory_mib + self.memory_mib / 16 + 256;
        if needed > free {
            return Err(Unmet::new(
                "tdx",
                format!("{needed} MiB of memory needed, {free} are free"),
            )
            .into());
        }
        Ok(())
    }

    fn check(&self, report: &Report) -> Result<()> {
        let seen = u32::try_from(report.cpus.len())?;
        ensure!(seen == self.cpus, "the guest sees {seen} CPUs");
        let mut sockets: Vec<u32> = report.cpus.iter().map(|cpu| cpu.package).collect();
        sockets.sort_unstable();
        sockets.dedup();
        ensure!(
            sockets.len() == usize::try_from(self.sockets)?,
            "the guest sees the sockets {sockets:?}"
        );
        let asked = self.memory_mib << 20;
        ensure!(
            report.map_bytes + (64 << 20) >= asked && report.map_bytes <= asked,
            "the guest's map has {} bytes, {asked} were asked for",
            report.map_bytes
        );
        Ok(())
    }
}

fn free_mib(context: &mut Context<'_>) -> Result<u64> {
    let text = String::from_utf8(context.l1.read("/proc/meminfo")?)?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(number.context("no MemAvailable")? >> 10)
}

fn expect_end(context: &mut Context<'_>, run: RunId, code: i32) -> Result<()> {
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(end.outcome == Outcome::Exited(code), "{:?}", end.outcome);
    Ok(())
}

/// Several TDs and several ordinary VMs, all of them up before the first one ends.
fn many_at_once(context: &mut Context<'_>) -> Result<()> {
    let count = if context.l1.is_host() { AT_ONCE } else { 2 };
    let mut tds = Vec::new();
    let mut vms = Vec::new();
    for _ in 0..count {
        tds.push(td_launch::start_waiting(context, 2)?);
        vms.push(
            context
                .l1
                .start(&Guest::small(Then::Echo).under_tdvmm("tty"))?,
        );
    }
    for vm in &vms {
        context.l1.wait_for(*vm, REPORT_END, context.left())?;
    }
    for td in tds {
        td_launch::end_waiting(context, td)?;
    }
    for vm in vms {
        context.l1.input(vm, b"bye\r")?;
        context.l1.wait_for(vm, "echo bye", context.left())?;
        expect_end(context, vm, exit_codes::POWER_OFF)?;
    }
    Ok(())
}
