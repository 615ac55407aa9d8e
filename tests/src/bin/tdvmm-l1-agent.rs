//! The first process of an L1, or with `--on-host FOLDER` its stand-in on a host; see `tdvmm_tests::l1::agent`.
#![expect(
    clippy::print_stderr,
    reason = "the console is all that is left when the session fails"
)]

use std::path::Path;

use tdvmm_tests::l1::agent;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let result = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--on-host"), Some(folder)) => agent::run_on_host(Path::new(&folder)),
        _ => agent::run(),
    };
    if let Err(error) = result {
        eprintln!("tdvmm-l1-agent: {error}");
    }
    // The kernel panics when its first process ends; the machine sees that as a lost L1.
}
