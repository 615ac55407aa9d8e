//! Speaks KVM's TDX ABI inside of L1; see `tdvmm_tests::probe`.
//!
//! - `conformance [CASE]`, `tiny [CASE]`: the list, or one of it
//! - `stress IMAGE VCPUS PAGES accept|touch SOAK SECONDS`
//! - `hold`: keeps an idle ordinary VM; prints `holding`
//! - `quotes SOCKET`: a mock quote generation service; prints `serving`

use std::env;
use std::process::ExitCode;
use std::thread;

use tdvmm_tests::probe::{self, Orders, Report};

#[expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program of the testbed talks to who started it"
)]
fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut report = Report::default();
    match words.as_slice() {
        ["conformance"] => probe::conformance(&mut report, None),
        ["conformance", case] => probe::conformance(&mut report, Some(case)),
        ["tiny"] => probe::tiny(&mut report, None),
        ["tiny", case] => probe::tiny(&mut report, Some(case)),
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
            println!("holding");
            loop {
                thread::park();
            }
        }
        ["quotes", socket] => {
            if let Err(error) = probe::serve_quotes(socket) {
                eprintln!("quotes: {error}");
            }
            return ExitCode::FAILURE;
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
