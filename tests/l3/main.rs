//! Lane L3: unmodified Debian kernels under the VMM, in an L1 with KVM that needs no hardware
//! virtualization. Run it by `cargo xtask test --lane L3`.

mod boot;
mod emtdx;
mod endings;
mod guests;
mod oracle;
mod serial;
mod td;
mod td_memory;

use std::process::ExitCode;

use anyhow::Result;
use tdvmm_tests::harness::{self, Case, Options};

fn main() -> Result<ExitCode> {
    let options = Options::parse(std::env::args().skip(1))?;
    let cases: Vec<Case> = [
        boot::cases(),
        endings::cases(),
        serial::cases(),
        oracle::cases(),
        emtdx::cases(),
        td::cases(),
        td_memory::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let passed = harness::run("lane L3", &cases, &options)?;
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
