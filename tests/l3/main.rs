//! Lane L3: unmodified Debian kernels under the VMM, in an L1 with KVM that needs no hardware
//! virtualization. Run it by `cargo xtask test --lane L3`.
//!
//! The TD cases are lane L4, too, on a host that has TDX itself: `cargo xtask test --lane tdx`.

mod boot;
mod console;
mod disk;
mod emtdx;
mod endings;
mod guests;
mod host;
mod leftovers;
mod oracle;
mod qemu_td;
mod serial;
mod td;
mod td_block_io;
mod td_cases;
mod td_debian;
mod td_kexec;
mod td_launch;
mod td_memory;
mod td_secure_boot;
mod td_shapes;
mod td_shim;
mod td_time;
mod tdx_abi;

use std::process::ExitCode;

use anyhow::Result;
use tdvmm_tests::harness::{self, Case, Options};

fn main() -> Result<ExitCode> {
    let options = Options::parse(std::env::args().skip(1))?;
    if options.on_host() {
        let passed = harness::run_on_host("lane L4", &td_cases(), &options, &emtdx::HOST)?;
        return Ok(exit_code(passed));
    }
    let cases: Vec<Case> = [
        boot::cases(),
        endings::cases(),
        serial::cases(),
        console::cases(),
        oracle::cases(),
        tdx_abi::cases(),
        qemu_td::cases(),
        disk::cases(),
        td_memory::cases(),
        td_time::cases(),
        td_block_io::cases(),
        td_shim::cases(),
        host::cases(),
        td_cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let passed = harness::run("lane L3", &cases, &options)?;
    Ok(exit_code(passed))
}

/// The cases that need TDX and nothing else of the testbed.
fn td_cases() -> Vec<Case> {
    [
        td::cases(),
        td_cases::cases(),
        td_launch::cases(),
        td_debian::cases(),
        td_secure_boot::cases(),
        td_kexec::cases(),
        td_shapes::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn exit_code(passed: bool) -> ExitCode {
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
