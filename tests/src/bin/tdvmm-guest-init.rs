//! The first process of a guest; see `tdvmm_tests::guest::init`. And a tool for scripts in it:
//! `/init fill|check PATH PIECES SEED`, see `tdvmm_tests::guest::pattern`.
#![expect(clippy::print_stderr, reason = "the console is all that a guest has")]

use std::io;
use std::process::ExitCode;

use tdvmm_tests::guest::{init, pattern};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // The kernel passes on what it does not know of its command line, so other words mean nothing.
    let result = match words.as_slice() {
        ["fill", path, pieces, seed] => numbers(pieces, seed, |p, s| pattern::fill(path, p, s)),
        ["check", path, pieces, seed] => numbers(pieces, seed, |p, s| pattern::check(path, p, s)),
        _ => init::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tdvmm-guest-init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn numbers(pieces: &str, seed: &str, run: impl Fn(u64, u64) -> io::Result<()>) -> io::Result<()> {
    match (pieces.parse(), seed.parse()) {
        (Ok(pieces), Ok(seed)) => run(pieces, seed),
        _ => Err(io::Error::other("PIECES and SEED are numbers")),
    }
}
