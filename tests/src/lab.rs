//! `cargo xtask lab`: a shell in an L1, with all that the testbed has and a shared folder.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::debian::{Packages, Role};
use crate::fixture::Fixture;
use crate::fixture::install::{FIRMWARE, FIRMWARE_BLANK};
use crate::harness::L1_KERNEL;
use crate::l1::{L1, Machine, Program, RunId};
use crate::{guest, programs, qemu, say};

/// How long the loop sleeps when neither side says anything: below what a typist notices.
const TICK: Duration = Duration::from_millis(10);

/// Boots an L1 with everything in it and gives it to whoever sits at the terminal.
pub fn lab(packages: &Packages, share: &Path) -> Result<()> {
    let mut machine = Machine::new(packages, L1_KERNEL)?;
    fill(&mut machine, packages)?;
    // KVM in the lab launches TDs, too.
    let fixture = Fixture::open(packages, L1_KERNEL)?;
    fixture.install(packages, &mut machine)?;
    let initramfs = guest::td_initramfs(packages, L1_KERNEL, Some(&fixture.selftest()))?;
    machine.archive().file("/tdx/initramfs", 0o644, initramfs);
    machine.share(&share.canonicalize()?);
    let mut l1 = machine.boot()?;
    say(&format!(
        "{} is /host; tdvmm, kernels in /guest, QEMU at {}",
        share.display(),
        qemu::PATH_IN_L1
    ));
    say(&format!(
        "KVM emulates TDX, without any security: firmware at {FIRMWARE_BLANK} and {FIRMWARE}, \
         an initramfs for TDs at /tdx/initramfs, ended TDs in /sys/kernel/debug/tdx_emul"
    ));
    say("no guest runs on CPU 0 here (a defect of the emulator); `exit` ends the lab");
    shell(&mut l1)?;
    l1.power_off()
}

/// `tdvmm`, QEMU, kernels and an initramfs for guests.
pub fn fill(machine: &mut Machine<'_>, packages: &Packages) -> Result<()> {
    machine.add_qemu()?;
    for role in [Role::Main, Role::Old] {
        machine.add_kernel(role, &format!("/guest/{role}"))?;
    }
    let initramfs = guest::initramfs(packages)?;
    machine.archive().file("/guest/initramfs", 0o644, initramfs);
    let tdvmm = programs::build(programs::TDVMM)?;
    machine.archive().copy("/bin/tdvmm", 0o755, &tdvmm)?;
    Ok(())
}

/// Joins this terminal with a shell in L1 until the shell ends.
pub fn shell(l1: &mut L1) -> Result<()> {
    let script = "cd /; exec setsid -c sh -l";
    let run = l1.start(&Program::script(script).env("PS1", "L1:\\w# ").on_terminal())?;
    let raw = RawTerminal::enter();
    let result = relay(l1, run);
    drop(raw);
    result
}

fn relay(l1: &mut L1, run: RunId) -> Result<()> {
    let (to, typed) = mpsc::channel();
    // Ends with this process: a read of the terminal cannot be called off.
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = io::stdin().read(&mut buffer) {
            if to.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut shown = 0;
    let mut out = io::stdout();
    loop {
        for data in typed.try_iter() {
            l1.input(run, &data)?;
        }
        l1.poll(TICK)?;
        let output = l1.output_bytes(run);
        out.write_all(output.get(shown..).unwrap_or_default())?;
        out.flush()?;
        shown = output.len();
        if l1.has_ended(run) {
            return Ok(());
        }
    }
}

/// Standard input gives every key at once, until this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    /// None where standard input is no terminal.
    fn enter() -> Option<Self> {
        let saved = tcgetattr(io::stdin()).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(saved))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing is left to do for a terminal that has gone away.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
