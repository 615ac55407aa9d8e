//! The first process of an L1; see `tdvmm_tests::l1::agent`. And a tool in it: `/init without-fsync
//! PROGRAM ARG…`, see `tdvmm_tests::l1::without_fsync`.
#![expect(
    clippy::print_stderr,
    reason = "the console is all that is left when the session fails"
)]

use tdvmm_tests::l1::{agent, without_fsync};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["without-fsync", program, arguments @ ..] = words.as_slice() {
        let error = without_fsync::run(program, arguments);
        eprintln!("cannot run {program}: {error}");
        return;
    }
    if let Err(error) = agent::run() {
        eprintln!("tdvmm-l1-agent: {error}");
    }
    // The kernel panics when its first process ends; the machine sees that as a lost L1.
}
