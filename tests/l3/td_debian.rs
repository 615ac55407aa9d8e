//! Debian's kernels as TDs under `tdvmm`: another kernel, restarts, much memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::debian::Role;
use tdvmm_tests::exit_codes;
use tdvmm_tests::fixture::install::FIRMWARE_BLANK;
use tdvmm_tests::guest::{self, MARKER, REPORT_END, Report, Then, td};
use tdvmm_tests::harness::{Case, Context, MachineKind, Tier};
use tdvmm_tests::l1::{Machine, Outcome, Program};

use super::emtdx::{self, INITRAMFS, KERNEL, TDX, TDX_BIG};
use super::guests::{self, TDVMM};

/// The kernel before the one that all other TDs run, and what it is given.
const OLD_KERNEL: &str = "/tdx/kernel-old";
const OLD_INITRAMFS: &str = "/tdx/initramfs-old";
/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let full = Tier::Full;
    let old_name = format!("td-{}-2cpu", Role::Old.series());
    vec![
        case(&old_name, full, &TDX, with_old_kernel, |context| {
            let td = Td {
                kernel: OLD_KERNEL,
                initramfs: OLD_INITRAMFS,
                cpus: 2,
                ..Td::SMALL
            };
            let report = td.boots(context)?;
            let is_old = report.release.starts_with(Role::Old.series());
            ensure!(is_old, "{}", report.release);
            Ok(())
        }),
        case("td-reset", full, &TDX, guests::with_tdvmm, |context| {
            restarts(context, Then::Reboot)
        }),
        case(
            "td-panic-restarts",
            full,
            &TDX,
            guests::with_tdvmm,
            |context| restarts(context, Then::Panic),
        ),
        case("td-6g", full, &TDX_BIG, guests::with_tdvmm, |context| {
            let td = Td {
                memory_mib: 6144,
                cpus: 2,
                ..Td::SMALL
            };
            let report = td.boots(context)?;
            ensure!(report.map_bytes > 5 << 30, "RAM of {}", report.map_bytes);
            Ok(())
        }),
    ]
}

/// One case; a TD with much to do takes its time.
pub fn case(
    name: &str,
    tier: Tier,
    machine: &'static MachineKind,
    prepare: fn(&mut Machine<'_>) -> Result<()>,
    run: fn(&mut Context<'_>) -> Result<()>,
) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine,
        prepare,
        deadline: Duration::from_secs(480),
        run: Box::new(run),
    }
}

fn with_old_kernel(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    machine.add_kernel(Role::Old, OLD_KERNEL)?;
    let packages = machine.packages();
    let initramfs = guest::td_initramfs(packages, Role::Old, None)?;
    machine.archive().file(OLD_INITRAMFS, 0o644, initramfs);
    Ok(())
}

/// A TD with one of Debian's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Td {
    /// Image of the firmware.
    pub firmware: &'static str,
    /// Variable store in the place of the firmware's own.
    pub vars: Option<&'static str>,
    /// Boot loader in front of the kernel.
    pub shim: Option<&'static str>,
    /// Kernel.
    pub kernel: &'static str,
    /// Its initramfs.
    pub initramfs: &'static str,
    /// vCPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// What the guest does at the end.
    pub then: Then,
}

impl Td {
    /// One vCPU and 512 MiB, and the newer kernel.
    pub const SMALL: Self = Self {
        firmware: FIRMWARE_BLANK,
        vars: None,
        shim: None,
        kernel: KERNEL,
        initramfs: INITRAMFS,
        cpus: 1,
        memory_mib: 512,
        then: Then::PowerOff,
    };

    /// The `tdvmm` command that boots it.
    pub fn program(&self) -> Program {
        let files = [("--firmware-vars", self.vars), ("--shim", self.shim)];
        let files = files
            .into_iter()
            .filter_map(|(option, file)| Some([option, file?]));
        Program::new(TDVMM)
            .args(["--platform", "tdx=on", "--firmware", self.firmware])
            .args(["--kernel", self.kernel, "--initramfs", self.initramfs])
            .args(files.flatten())
            .args(["--cmdline", &guest::command_line(self.then)])
            .args(["--cpus", &format!("boot={}", self.cpus)])
            .args(["--memory", &format!("size={}M", self.memory_mib)])
            .args(["--serial", "tty"])
    }

    /// Boots until the guest has reported and ended as it should: its kernel knows that it runs in a TD, and nothing
    /// went wrong in it.
    pub fn boots(&self, context: &mut Context<'_>) -> Result<Report> {
        emtdx::hold(context)?;
        emtdx::ended(context)?;
        let run = context.l1.start(&self.program())?;
        let up = context.l1.wait_for(run, MARKER, context.left())?;
        context.l1.wait_for(run, REPORT_END, context.left())?;
        let report = Report::parse(&context.l1.output(run))?;
        let code = match self.then {
            Then::Reboot | Then::Panic => exit_codes::RESET,
            _ => exit_codes::POWER_OFF,
        };
        let end = context.l1.wait_end(run, context.left())?;
        ensure!(end.outcome == Outcome::Exited(code), "{:?}", end.outcome);
        context.note(format!("marker after {:.1} s", up.as_secs_f64()));
        let seen = report.cpus.len();
        ensure!(seen == usize::try_from(self.cpus)?, "{seen} CPUs");
        ensure!(
            report.announcements == td::ANNOUNCEMENTS,
            "the guest's kernel says only {:?}",
            report.announcements
        );
        for ended in emtdx::ended(context)? {
            ensure!(ended.end.is_empty(), "the TD died: {}", ended.end);
            ensure!(ended.mrtd == emtdx::ovmf_mrtd()?, "MRTD is {}", ended.mrtd);
        }
        Ok(report)
    }
}

fn restarts(context: &mut Context<'_>, then: Then) -> Result<()> {
    let td = Td { then, ..Td::SMALL };
    td.boots(context).map(drop)
}
