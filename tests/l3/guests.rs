//! How a guest is started in L1, and what it must then say.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::debian::{Packages, Role};
use tdvmm_tests::fixture::Fixture;
use tdvmm_tests::guest::{self, INTERRUPTS, MARKER, REPORT_END, Report, Then};
use tdvmm_tests::harness::{Context, L1_KERNEL, MachineKind};
use tdvmm_tests::l1::{Machine, Outcome, Program, RunId};
use tdvmm_tests::{programs, qemu};

/// The L1 of ordinary VMs, with the modules of the emulated TDX: stock ones deliver an interrupt twice now and then under
/// QEMU's TCG.
pub static PLAIN: MachineKind = MachineKind {
    name: "plain",
    build: |packages| {
        let mut machine = Machine::new(packages, L1_KERNEL)?;
        Fixture::open(packages, L1_KERNEL)?.install_modules(&mut machine);
        add_initramfs(packages, &mut machine)?;
        // Room for a guest with high memory; what no guest touches costs nothing.
        machine.memory_mib = 8192;
        Ok(machine)
    },
};

/// Adds the initramfs of ordinary VMs.
pub fn add_initramfs(packages: &Packages, machine: &mut Machine<'_>) -> Result<()> {
    let initramfs = guest::initramfs(packages)?;
    machine.archive().file(INITRAMFS, 0o644, initramfs);
    Ok(())
}

const INITRAMFS: &str = "/guest/initramfs";
/// The interrupts that every guest must have taken; the others of [`INTERRUPTS`] are errors.
const TIMER: &str = "LOC";
/// The main kernel in L1; the old one is beside it.
pub const KERNEL: &str = "/guest/main";
/// The program under test in L1.
pub const TDVMM: &str = "/bin/tdvmm";

/// Adds `tdvmm` and the main kernel.
pub fn with_tdvmm(machine: &mut Machine<'_>) -> Result<()> {
    let program = programs::build(programs::TDVMM)?;
    machine.archive().copy(TDVMM, 0o755, &program)?;
    machine.add_kernel(Role::Main, KERNEL)
}

/// Adds `tdvmm` and both kernels.
pub fn with_tdvmm_and_old_kernel(machine: &mut Machine<'_>) -> Result<()> {
    with_tdvmm(machine)?;
    machine.add_kernel(Role::Old, "/guest/old")
}

/// Adds `tdvmm` and QEMU.
pub fn with_both(machine: &mut Machine<'_>) -> Result<()> {
    with_tdvmm(machine)?;
    machine.add_qemu()
}

/// A guest to boot.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its kernel.
    pub kernel: Role,
    /// vCPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// What it does at the end.
    pub then: Then,
}

impl Guest {
    /// A guest with the main kernel, one vCPU and 512 MiB.
    pub const fn small(then: Then) -> Self {
        Self {
            kernel: Role::Main,
            cpus: 1,
            memory_mib: 512,
            then,
        }
    }

    /// The `tdvmm` command that boots it; `serial` is the option's value.
    pub fn under_tdvmm(&self, serial: &str) -> Program {
        self.under_tdvmm_with(serial, &guest::command_line(self.then))
    }

    /// The same with another kernel command line.
    pub fn under_tdvmm_with(&self, serial: &str, command_line: &str) -> Program {
        Program::new(TDVMM)
            .args(["--kernel", &self.kernel_path(), "--initramfs", INITRAMFS])
            .args(["--cmdline", command_line])
            .args(["--cpus", &format!("boot={}", self.cpus)])
            .args(["--memory", &format!("size={}M", self.memory_mib)])
            .args(["--serial", serial])
    }

    /// The QEMU command that boots it, serial console on the standard streams.
    pub fn under_qemu(&self) -> Program {
        let cpus = self.cpus.to_string();
        let memory = self.memory_mib.to_string();
        Program::new(qemu::PATH_IN_L1)
            .args(qemu::BARE)
            .args([
                "-machine",
                "q35,kernel-irqchip=split",
                "-accel",
                "kvm",
                "-cpu",
                "host",
            ])
            .args(["-smp", &cpus, "-m", &memory, "-serial", "stdio"])
            .args(["-kernel", &self.kernel_path(), "-initrd", INITRAMFS])
            .args(["-append", &guest::command_line(self.then)])
    }

    fn kernel_path(&self) -> String {
        format!("/guest/{}", self.kernel)
    }

    /// Waits for the report on the output of `run` and checks what every guest must see: its kernel,
    /// CPUs and memory. Gives the time from the VMM's start to the marker, too.
    pub fn check(&self, context: &mut Context<'_>, run: RunId) -> Result<(Report, Duration)> {
        let up = context.l1.wait_for(run, MARKER, context.left())?;
        context.l1.wait_for(run, REPORT_END, context.left())?;
        let report = self.check_report(&context.l1.output(run))?;
        Ok((report, up))
    }

    /// The same on a console that was read already.
    pub fn check_report(&self, console: &str) -> Result<Report> {
        let report = Report::parse(console)?;
        ensure!(
            report.release.starts_with(self.kernel.series()),
            "guest runs {}",
            report.release
        );
        self.check_cpus(&report)?;
        self.check_memory(&report)?;
        check_interrupts(&report)?;
        Ok(report)
    }

    /// One socket, one thread for each core, APIC ids from 0 on.
    fn check_cpus(&self, report: &Report) -> Result<()> {
        let count = u32::try_from(report.cpus.len())?;
        ensure!(
            count == self.cpus,
            "guest sees {count} CPUs, not {}",
            self.cpus
        );
        let last = self.cpus - 1;
        let online = if last == 0 {
            "0".to_owned()
        } else {
            format!("0-{last}")
        };
        ensure!(report.online == online, "online CPUs are {}", report.online);
        for (number, cpu) in (0..).zip(&report.cpus) {
            let alone = cpu.siblings == number.to_string();
            let ids = (cpu.number, cpu.apic_id, cpu.package, cpu.core);
            ensure!(
                ids == (number, number, 0, number) && alone,
                "CPU {number} is {cpu:?}"
            );
        }
        Ok(())
    }

    /// The memory map has what was asked for but for the holes below 1 MiB and what firmware keeps;
    /// most of it is usable.
    fn check_memory(&self, report: &Report) -> Result<()> {
        let asked = self.memory_mib << 20;
        let map = report.map_bytes;
        ensure!(
            map <= asked && map + (2 << 20) >= asked,
            "memory map has {map} bytes, {asked} were asked for"
        );
        // The kernel's image, its page structures and the initramfs.
        let taken = asked / 32 + (128 << 20);
        let managed = report.memory_kib << 10;
        ensure!(
            managed + taken >= asked,
            "guest manages {managed} of {asked} bytes"
        );
        Ok(())
    }
}

/// The guest's kernel has nothing to say against us.
pub fn check_warnings(report: &Report) -> Result<()> {
    let unexpected = guest::unexpected(&report.warnings);
    ensure!(
        unexpected.is_empty(),
        "guest kernel warns:\n    {}",
        unexpected.join("\n    ")
    );
    Ok(())
}

fn check_interrupts(report: &Report) -> Result<()> {
    for label in INTERRUPTS.into_iter().filter(|label| *label != TIMER) {
        if let Some(count) = report.interrupt_count(label) {
            ensure!(
                count == 0,
                "guest counts {count} interrupts of kind {label}"
            );
        }
    }
    let ticks = report
        .interrupt_count(TIMER)
        .context("no line for the local timer")?;
    ensure!(ticks > 0, "no timer interrupt came");
    Ok(())
}

/// Runs a VMM until its guest has reported and switched itself off. Gives the time from the start to the marker, too.
pub fn boot(context: &mut Context<'_>, program: &Program) -> Result<(Report, Duration)> {
    let run = context.l1.start(program)?;
    let up = context.l1.wait_for(run, MARKER, context.left())?;
    context.l1.wait_for(run, REPORT_END, context.left())?;
    let report = Report::parse(&context.l1.output(run))?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(0),
        "the VMM ended with {:?}",
        end.outcome
    );
    Ok((report, up))
}
