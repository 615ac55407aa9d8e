//! Counting system calls by ptrace, over all threads of a process.

#![expect(unsafe_code, reason = "the child asks to be traced before execve")]

use std::collections::HashSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// Number of `ioctl` on x86-64.
const IOCTL: u64 = 16;

/// System calls that all threads of `command` have entered before one of them enters `KVM_RUN` for the
/// first time, execve included.
///
/// Only for a process without other children: it waits for any.
pub fn before_first_entry(mut command: Command) -> Result<u64> {
    command.stdout(Stdio::null());
    let ask = || ptrace::traceme().map_err(io::Error::from);
    // SAFETY: between fork and execve only what is async-signal-safe may be done. This is one system call,
    // and the conversion of its error number allocates nothing.
    unsafe { command.pre_exec(ask) };
    let mut child = command.spawn()?;
    let main = Pid::from_raw(i32::try_from(child.id())?);
    let counted = count(main);
    // Fails when it has ended.
    let _ = child.kill();
    // A traced thread that has been killed is there until it is waited for, and the process until all are.
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::__WALL)) {
        if status.pid() == Some(main) {
            break;
        }
    }
    counted
}

fn count(main: Pid) -> Result<u64> {
    // The stop after execve.
    waitpid(main, None)?;
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(main, options)?;
    ptrace::syscall(main, None)?;
    // The execve itself came before the first stop.
    let mut calls = 1;
    let mut inside = HashSet::new();
    loop {
        let status = waitpid(None, Some(WaitPidFlag::__WALL))?;
        let (thread, signal) = match status {
            WaitStatus::PtraceSyscall(thread) => {
                if !inside.remove(&thread) {
                    let registers = ptrace::getregs(thread)?;
                    if (registers.orig_rax, registers.rsi) == (IOCTL, KVM_RUN) {
                        return Ok(calls);
                    }
                    calls += 1;
                    inside.insert(thread);
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            // A new thread starts with this stop, which is nobody's signal.
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) if thread == main => {
                bail!("ended before KVM_RUN: {status:?}")
            }
            _ => continue,
        };
        ptrace::syscall(thread, signal).context("cannot go on")?;
    }
}
