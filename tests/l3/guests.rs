//! How a guest is started in L1, and what it must then say.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::guest::{self, MARKER, REPORT_END, Report, Then};
use tdvmm_tests::harness::{Context, L1_KERNEL, MachineKind};
use tdvmm_tests::l1::{Machine, Program, RunId};
use tdvmm_tests::qemu;

/// The L1 of ordinary VMs: stock modules; room for the widest guest and one CPU more.
pub const PLAIN: MachineKind = MachineKind {
    name: "plain",
    build: |packages| {
        let mut machine = Machine::new(packages, L1_KERNEL)?;
        machine.cpus = 3;
        machine.memory_mib = 4096;
        let initramfs = guest::initramfs(packages)?;
        machine.archive().file(INITRAMFS, 0o644, initramfs);
        machine.add_kernel("7.2", "/guest/7.2")?;
        Ok(machine)
    },
};

const INITRAMFS: &str = "/guest/initramfs";

/// A guest to boot.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Series of its kernel.
    pub kernel: &'static str,
    /// vCPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// What it does at the end.
    pub then: Then,
}

impl Guest {
    /// The QEMU command that boots it, serial console on the standard streams.
    pub fn under_qemu(&self) -> Program {
        let cpus = self.cpus.to_string();
        let memory = self.memory_mib.to_string();
        Program::new(qemu::PATH_IN_L1)
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
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

    /// Waits for the report and checks what every guest must see: its kernel, CPUs and memory.
    pub fn check(&self, context: &mut Context<'_>, run: RunId) -> Result<(Report, Duration)> {
        let up = context.l1.wait_for(run, MARKER, context.left())?;
        context.l1.wait_for(run, REPORT_END, context.left())?;
        let report = Report::parse(&context.l1.output(run))?;
        ensure!(
            report.release.starts_with(self.kernel),
            "guest runs {}",
            report.release
        );
        self.check_cpus(&report)?;
        self.check_memory(&report)?;
        check_interrupts(&report)?;
        let unexpected = guest::unexpected(&report.warnings);
        ensure!(
            unexpected.is_empty(),
            "guest kernel warns:\n    {}",
            unexpected.join("\n    ")
        );
        Ok((report, up))
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
            let alone = number.to_string();
            ensure!(
                (
                    cpu.number,
                    cpu.apic_id,
                    cpu.package,
                    cpu.core,
                    cpu.siblings == alone
                ) == (number, number, 0, number, true),
                "CPU {number} is {cpu:?}"
            );
        }
        Ok(())
    }

    /// The memory map has what was asked for but for the first megabyte's holes; most of it is
    /// usable.
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

fn check_interrupts(report: &Report) -> Result<()> {
    for label in ["ERR", "MIS", "SPU", "MCE"] {
        if let Some(count) = report.interrupt_count(label) {
            ensure!(
                count == 0,
                "guest counts {count} interrupts of kind {label}"
            );
        }
    }
    let ticks = report
        .interrupt_count("LOC")
        .context("no line for the local timer")?;
    ensure!(ticks > 0, "no timer interrupt came");
    Ok(())
}
