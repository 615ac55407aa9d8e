//! Speaks KVM's TDX ABI inside of L1; see `tdvmm_tests::probe`.
//!
//! `tdvmm-tdx-probe conformance | tiny | stress IMAGE VCPUS PAGES accept|touch SOAK SECONDS | hold`

use std::env;
use std::process::ExitCode;
use std::thread;

use tdvmm_tests::probe::{self, Orders, Report};

#[expect(
    clippy::print_stderr,
    reason = "a program of the testbed talks to who started it"
)]
fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut report = Report::default();
    match words.as_slice() {
        ["conformance"] => probe::conformance(&mut report),
        ["tiny"] => probe::tiny(&mut report),
        [
            "stress",
            image,
            vcpus,
            pages,
            how @ ("accept" | "touch"),
            soak,
            seconds,
        ] => {
            let number = |text: &str| text.parse().expect("a number");
            let orders = Orders {
                image: (*image).to_owned(),
                vcpus: number(vcpus),
                pages: number(pages),
                touch: *how == "touch",
                soak: number(soak),
                seconds: number(seconds).into(),
            };
            probe::stress(&mut report, &orders);
        }
        ["hold"] => {
            let _vm = probe::hold();
            loop {
                thread::park();
            }
        }
        _ => {
            eprintln!("usage: see the head of tdvmm-tdx-probe.rs");
            return ExitCode::from(2);
        }
    }
    if report.end() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
