//! The first process of an L1; see `tdvmm_tests::l1::agent`.
#![expect(
    clippy::print_stderr,
    reason = "the console is all that is left when the session fails"
)]

fn main() {
    if let Err(error) = tdvmm_tests::l1::agent::run() {
        eprintln!("tdvmm-l1-agent: {error}");
    }
    // The kernel panics when its first process ends; the machine sees that as a lost L1.
}
