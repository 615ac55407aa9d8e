//! TDs under `tdvmm` on the emulated TDX, and firmware in an ordinary VM on the same modules.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::fixture::install::{FIRMWARE_BLANK, FIRMWARE_GENERIC};
use tdvmm_tests::guest::{self, Report, Then};
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Outcome, Program};

use super::emtdx::{self, INITRAMFS, KERNEL, TDX};
use super::guests::{self, TDVMM};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let quick = Tier::Representative;
    vec![
        td("td-1cpu", Tier::Full, 1),
        td("td-2cpu", quick, 2),
        td("td-4cpu", Tier::Full, 4),
        unexpected_mrtd(),
        // In every run `disk-boot-ovmf` boots OVMF with two vCPUs, and `td-2cpu` has it take the kernel from fw_cfg.
        ovmf("ovmf-1cpu", Tier::Full, 1),
        ovmf("ovmf-2cpu", Tier::Full, 2),
    ]
}

/// `tdvmm` with OVMF and a kernel for it to start.
fn tdvmm(firmware: &str, cpus: u32) -> Program {
    Program::new(TDVMM)
        .args(["--firmware", firmware])
        .args(["--kernel", KERNEL, "--initramfs", INITRAMFS])
        .args(["--cmdline", &guest::command_line(Then::PowerOff)])
        .args(["--cpus", &format!("boot={cpus}")])
        .args(["--memory", "size=512M", "--serial", "tty"])
}

/// `tdvmm` with the TD that boots Debian's kernel.
pub fn td_program(cpus: u32) -> Program {
    tdvmm(FIRMWARE_BLANK, cpus).args(["--platform", "tdx=on"])
}

fn case(
    name: &str,
    tier: Tier,
    run: impl Fn(&mut Context<'_>) -> Result<()> + Send + Sync + 'static,
) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine: &TDX,
        prepare: guests::with_tdvmm,
        deadline: Duration::from_secs(240),
        run: Box::new(run),
    }
}

/// A TD boots Debian's kernel; its MRTD is the one known beforehand, as it, the guest and the witness say.
fn td(name: &str, tier: Tier, cpus: u32) -> Case {
    case(name, tier, move |context| {
        emtdx::hold(context)?;
        emtdx::ended(context)?;
        let expected = format!("mrtd={}", emtdx::ovmf_mrtd()?);
        let program =
            tdvmm(FIRMWARE_BLANK, cpus).args(["--platform", "tdx=on", "--expect", &expected]);
        let report = boot(context, &program)?;
        emtdx::check_booted(context, cpus, &report)
    })
}

/// OVMF in an ordinary VM finds the kernel in fw_cfg.
fn ovmf(name: &str, tier: Tier, cpus: u32) -> Case {
    case(name, tier, move |context| {
        emtdx::hold(context)?;
        let report = boot(context, &tdvmm(FIRMWARE_GENERIC, cpus))?;
        let seen = report.cpus.len();
        ensure!(seen == usize::try_from(cpus)?, "the guest sees {seen} CPUs");
        ensure!(
            report.td.is_empty() && report.announcements.is_empty(),
            "an ordinary VM says it is a TD: {:?}",
            report.td
        );
        guests::check_warnings(&report)
    })
}

/// Another MRTD than the expected one: nothing is started, and the exit code says why.
fn unexpected_mrtd() -> Case {
    case("td-unexpected-mrtd", Tier::Representative, |context| {
        emtdx::hold(context)?;
        emtdx::ended(context)?;
        let other = format!("mrtd={}", "00".repeat(48));
        let program = tdvmm(FIRMWARE_BLANK, 1).args(["--platform", "tdx=on", "--expect", &other]);
        let run = context.l1.start(&program)?;
        let end = context.l1.wait_end(run, context.left())?;
        ensure!(end.outcome == Outcome::Exited(162), "{:?}", end.outcome);
        ensure!(emtdx::ended(context)?.is_empty(), "a TD was made");
        Ok(())
    })
}

/// Boots it, and notes the time.
fn boot(context: &mut Context<'_>, program: &Program) -> Result<Report> {
    let (report, up) = guests::boot(context, program)?;
    context.note(format!("marker after {:.1} s", up.as_secs_f64()));
    Ok(report)
}
