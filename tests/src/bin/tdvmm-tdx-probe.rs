//! Speaks KVM's TDX ABI inside of L1; see `tdvmm_tests::probe`.
//!
//! - `conformance [CASE]`, `tiny [CASE]`: the list, or one of it
//! - `puppet IMAGE [CASE]`: TDVMCALLs one by one
//! - `stress IMAGE VCPUS PAGES accept|touch SOAK SECONDS`
//! - `hold`: keeps an idle ordinary VM; prints `holding`
//! - `scan PROGRAM SEED`: looks for the token of a TD (`tests/guests/td/memory.c`) in the memory of a process
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
        ["puppet", image] => probe::puppet(&mut report, image, None),
        ["puppet", image, case] => probe::puppet(&mut report, image, Some(case)),
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
                puppet: false,
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
        ["scan", program, seed] => return scan(program, seed),
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

#[expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program of the testbed talks to who started it"
)]
fn scan(program: &str, seed: &str) -> ExitCode {
    let seed = u64::from_str_radix(seed, 16).expect("a seed in hex");
    match probe::scan(program, seed) {
        Ok(scan) => {
            for place in &scan.found {
                println!("FOUND {place}");
            }
            println!(
                "{} mappings of {} KiB, {} memfds; {} of {} guest_memfds can be read or mapped",
                scan.mappings,
                scan.bytes >> 10,
                scan.memfds,
                scan.open_guest_memfds,
                scan.guest_memfds
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("scan: {error:#}");
            ExitCode::FAILURE
        }
    }
}
