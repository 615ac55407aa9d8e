//! One kernel after another in the same guest: kexec twice over, and a kernel that is started by a crash.
//!
//! In a TD the old kernel has to make all memory private again, and the new one finds the other vCPUs in the mailbox.

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::exit_codes;
use tdvmm_tests::fixture::install::FIRMWARE_BLANK;
use tdvmm_tests::guest::{self, MARKER, Then, td};
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, MachineKind, Tier};
use tdvmm_tests::l1::{Machine, Outcome, Program};

use super::emtdx::{self, TDX};
use super::guests::{self, KERNEL, PLAIN, TDVMM};
use super::td_debian::case;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        kexec("td-kexec-twice", &TDX, true, 1),
        kexec("td-2cpu-kexec-twice", &TDX, true, 2),
        kexec("kexec-twice", &PLAIN, false, 2),
        crash("td-kdump", &TDX, true),
        crash("kdump", &PLAIN, false),
    ]
}

/// Two kernels follow the first by kexec, each told from the others by how many are left.
fn kexec(name: &str, machine: &'static MachineKind, is_td: bool, cpus: u32) -> Case {
    let run = move |context: &mut Context<'_>| {
        let program = other_kernels(is_td, cpus, Then::Kexec, "tdvmm.kexec=2");
        let output = run_to_power_off(context, is_td, &program)?;
        for left in ["2", "1", "0"] {
            let line = format!("kernels left {left}");
            ensure!(output.contains(&line), "no `{line}` in: {output}");
        }
        check_kernels(&output, 3, is_td)
    };
    Case {
        run: Box::new(run),
        ..case(name, Tier::Full, machine, with_kexec, |_| Ok(()))
    }
}

/// A kernel that was loaded for the case of a crash is started by it, and finds the crashed one's memory.
fn crash(name: &str, machine: &'static MachineKind, is_td: bool) -> Case {
    let run = move |context: &mut Context<'_>| {
        let program = other_kernels(is_td, 1, Then::Crash, "crashkernel=256M");
        let output = run_to_power_off(context, is_td, &program)?;
        let found = output
            .lines()
            .find_map(|line| line.split_once("kernel's memory "));
        let (_, bytes) = found.with_context(|| format!("no crash kernel in: {output}"))?;
        ensure!(
            bytes.trim().parse::<u64>()? > 100 << 20,
            "{bytes} bytes of memory"
        );
        check_kernels(&output, 2, is_td)
    };
    Case {
        run: Box::new(run),
        ..case(name, Tier::Full, machine, with_kexec, |_| Ok(()))
    }
}

const KEXEC_INITRAMFS: &str = "/tdx/initramfs-kexec";

fn with_kexec(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    let initramfs = guest::kexec_initramfs(machine.packages(), L1_KERNEL)?;
    machine.archive().file(KEXEC_INITRAMFS, 0o644, initramfs);
    Ok(())
}

fn other_kernels(is_td: bool, cpus: u32, then: Then, words: &str) -> Program {
    let td: &[&str] = if is_td {
        &["--platform", "tdx=on", "--firmware", FIRMWARE_BLANK]
    } else {
        &[]
    };
    let line = format!("{} {words}", guest::command_line(then));
    Program::new(TDVMM)
        .args(td.iter().copied())
        .args(["--kernel", KERNEL, "--initramfs", KEXEC_INITRAMFS])
        .args(["--cmdline", &line, "--cpus", &format!("boot={cpus}")])
        .args(["--memory", "size=1G", "--serial", "tty"])
}

fn run_to_power_off(context: &mut Context<'_>, is_td: bool, program: &Program) -> Result<String> {
    if is_td {
        emtdx::hold(context)?;
    }
    let run = context.l1.start(program)?;
    let end = context.l1.wait_end(run, context.left())?;
    let output = context.l1.output(run);
    let code = exit_codes::POWER_OFF;
    ensure!(
        end.outcome == Outcome::Exited(code),
        "{:?}: {output}",
        end.outcome
    );
    context.note(format!("all over after {:.1} s", end.after.as_secs_f64()));
    Ok(output)
}

/// So many kernels came up, and each knew whether it was in a TD.
fn check_kernels(output: &str, count: usize, is_td: bool) -> Result<()> {
    let up = output.matches(MARKER).count();
    ensure!(up == count, "{up} kernels came up, not {count}");
    let expected = if is_td { count } else { 0 };
    for text in td::ANNOUNCEMENTS {
        let said = output.matches(text).count();
        ensure!(said == expected, "{said} kernels say `{text}`");
    }
    Ok(())
}
