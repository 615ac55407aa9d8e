//! The prober: a small program in L1 that speaks KVM's TDX ABI with its own constants and its own structs.
//!
//! It shares no code with crate `tdx`, so that a wrong offset there and a wrong offset here do not agree. It runs the
//! conformance list, TDs of one page, a TD that makes the TDVMCALLs it is told, and a TD with several vCPUs under stress,
//! and prints one line for each case: `ok NAME` or `FAIL NAME: why`.

mod calls;
mod conformance;
mod ordinary;
mod puppet;
mod quotes;
mod scan;
mod stress;
mod sys;
mod td;
mod tiny;

use std::fmt;

pub use quotes::serve as serve_quotes;
pub use scan::{Scan, scan};
pub use stress::Orders;

/// Results of a run, printed as they come.
#[derive(Debug, Default)]
pub struct Report {
    /// Cases that went as they should.
    pub passed: u32,
    /// Cases that did not.
    pub failed: u32,
}

/// Why a case failed.
#[derive(Clone, Debug)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: Into<String>> From<T> for Failure {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl Report {
    #[expect(clippy::print_stdout, reason = "its output is what the harness reads")]
    fn tell(&mut self, name: &str, result: Result<(), Failure>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok {name}");
            }
            Err(failure) => {
                self.failed += 1;
                println!("FAIL {name}: {failure}");
            }
        }
    }

    /// Prints the totals; true if something ran and nothing failed.
    #[expect(clippy::print_stdout, reason = "its output is what the harness reads")]
    pub fn end(&self) -> bool {
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0 && self.passed > 0
    }
}

/// Names of the cases of the conformance list.
#[must_use]
pub fn conformance_names() -> Vec<String> {
    conformance::names()
}

/// Runs one case of the conformance list, or all.
pub fn conformance(report: &mut Report, only: Option<&str>) {
    conformance::run(report, only);
}

/// Names of the TDs of one page.
#[must_use]
pub fn tiny_names() -> Vec<String> {
    tiny::names()
}

/// Runs one TD of one page, or all.
pub fn tiny(report: &mut Report, only: Option<&str>) {
    tiny::run(report, only);
}

/// Names of the cases of the TD on strings.
#[must_use]
pub fn puppet_names() -> Vec<String> {
    calls::names()
}

/// Runs one case of the TD on strings, whose code is in the file `image`, or all.
pub fn puppet(report: &mut Report, image: &str, only: Option<&str>) {
    calls::run(report, image, only);
}

/// Runs one TD under stress.
pub fn stress(report: &mut Report, orders: &Orders) {
    stress::run(report, orders);
}

/// An idle ordinary VM. While it lives, KVM's static keys and the CPUs' SVM state stay as they are when other VMs come
/// and go, which QEMU's TCG was seen to trip over.
///
/// # Panics
/// KVM refuses it.
#[must_use]
pub fn hold() -> impl fmt::Debug {
    let mut vm = td::Kvm::open().create(0).expect("an ordinary VM");
    vm.enable_cap(121, 24).expect("a split irqchip");
    vm.create_vcpu(0).expect("a vCPU");
    vm
}
