//! The system calls of a process and of all its threads, as they enter the kernel, by ptrace.

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

/// A thread enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which thread.
    pub thread: i32,
    /// Number of the system call on x86-64.
    pub number: i64,
    /// The second argument, of an ioctl its request.
    pub second: u64,
    /// The third argument, of a write its length.
    pub third: u64,
}

impl Call {
    /// Whether a vCPU enters its guest.
    #[must_use]
    pub fn is_kvm_run(&self) -> bool {
        self.number == libc::SYS_ioctl && self.second == KVM_RUN
    }
}

/// System calls that all threads of `command` have entered before one of them enters `KVM_RUN` for the
/// first time, execve included.
///
/// Only for a process without other children: it waits for any.
pub fn before_first_entry(command: Command) -> Result<u64> {
    // The execve itself comes before the first stop.
    let mut calls = 1;
    trace(command, |call| {
        if call.is_kvm_run() {
            return Some(calls);
        }
        calls += 1;
        None
    })
}

/// Shows `look` each system call of `command` until it gives an answer; then the process is ended. It is
/// an error if the process ends by itself before.
///
/// Only for a process without other children: it waits for any.
pub fn trace<T>(mut command: Command, look: impl FnMut(Call) -> Option<T>) -> Result<T> {
    command.stdout(Stdio::null());
    let ask = || ptrace::traceme().map_err(io::Error::from);
    // SAFETY: between fork and execve only what is async-signal-safe may be done. This is one system call,
    // and the conversion of its error number allocates nothing.
    unsafe { command.pre_exec(ask) };
    let mut child = command.spawn()?;
    let main = Pid::from_raw(i32::try_from(child.id())?);
    let answer = follow(main, look);
    // Fails when it has ended.
    let _ = child.kill();
    // A traced thread that has been killed is there until it is waited for, and the process until all are.
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::__WALL)) {
        if status.pid() == Some(main) {
            break;
        }
    }
    answer
}

fn follow<T>(main: Pid, mut look: impl FnMut(Call) -> Option<T>) -> Result<T> {
    // The stop after execve.
    waitpid(main, None)?;
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(main, options)?;
    ptrace::syscall(main, None)?;
    let mut inside = HashSet::new();
    loop {
        let status = waitpid(None, Some(WaitPidFlag::__WALL))?;
        let (thread, signal) = match status {
            WaitStatus::PtraceSyscall(thread) => {
                if !inside.remove(&thread) {
                    let registers = ptrace::getregs(thread)?;
                    let call = Call {
                        thread: thread.as_raw(),
                        number: registers.orig_rax.cast_signed(),
                        second: registers.rsi,
                        third: registers.rdx,
                    };
                    if let Some(answer) = look(call) {
                        return Ok(answer);
                    }
                    inside.insert(thread);
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            // A new thread starts with this stop, which is nobody's signal.
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) if thread == main => {
                bail!("ended too early: {status:?}")
            }
            _ => continue,
        };
        ptrace::syscall(thread, signal).context("cannot go on")?;
    }
}
