//! The first process of a guest; see `tdvmm_tests::guest::init`.
#![expect(clippy::print_stderr, reason = "the console is all that a guest has")]

fn main() {
    if let Err(error) = tdvmm_tests::guest::init::run() {
        eprintln!("tdvmm-guest-init: {error}");
    }
}
