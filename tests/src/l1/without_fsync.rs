//! `/init without-fsync PROGRAM ARG…` in L1: runs a program for which fsync and fdatasync do nothing.
//!
//! The self-check of the durability case: the program under test is the product as it is, and what it asks
//! of the kernel is stubbed by a seccomp filter. io_uring, through which it would flush otherwise, is
//! refused, so it takes the way without.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Replaces this process. Returns only on an error.
pub fn run(program: &str, arguments: &[&str]) -> io::Error {
    let sync = [libc::SYS_fsync, libc::SYS_fdatasync];
    let filters = [
        // Error number 0: success, and nothing was done.
        filter(&sync, SeccompAction::Errno(0)),
        filter(
            &[libc::SYS_io_uring_setup],
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        ),
    ];
    for program in filters {
        let applied = program.and_then(|program| apply_filter(&program).map_err(io::Error::other));
        if let Err(error) = applied {
            return error;
        }
    }
    Command::new(program).args(arguments).exec()
}

fn filter(calls: &[libc::c_long], action: SeccompAction) -> io::Result<BpfProgram> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}
