//! The first process of an L1, or with `--on-host FOLDER` its stand-in on a host; see `tdvmm_tests::l1::agent`.
//! And a tool there: `/init without-fsync PROGRAM ARG…`, see `tdvmm_tests::l1::without_fsync`.
#![expect(
    clippy::print_stderr,
    reason = "the console is all that is left when the session fails"
)]

use std::path::Path;

use tdvmm_tests::l1::{agent, without_fsync};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["without-fsync", program, arguments @ ..] => Err(without_fsync::run(program, arguments)),
        ["--on-host", folder] => agent::run_on_host(Path::new(folder)),
        // The kernel passes on what it does not know of its command line.
        _ => agent::run(),
    };
    if let Err(error) = result {
        eprintln!("tdvmm-l1-agent: {error}");
    }
    // The kernel panics when its first process ends; the machine sees that as a lost L1.
}
