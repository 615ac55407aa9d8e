//! What the lanes share: the testbed that boots real kernels under the VMM on a machine that may
//! have no hardware virtualization.
//!
//! - [`cache`]: where downloads and built images live, outside git.
//! - [`debian`]: pinned packages from the configured Debian mirror, checked, unpacked, cached.
//! - [`cpio`], [`kernel`], [`qemu`], [`programs`], [`unpacked`]: what an L1 is put together from.
//! - [`disk_image`]: disks to boot from.
//! - [`l1`]: an L1 Linux with KVM inside QEMU (TCG) and a session that runs programs in it.
//! - [`efi`]: signatures of EFI programs, and the keys of firmware.
//! - [`conformance`]: what KVM answers to each call of a TD's launch, as data.
//! - [`fixture`]: emulated TDX: KVM modules built from kernel source, and its own tests.
//! - [`probe`]: the program in L1 that speaks KVM's TDX ABI.
//! - [`guest`]: the initramfs of the guests that the VMM under test boots, and what it reports.
//! - [`native`]: guests in assembly on this machine's own KVM, for lane L2 and the bench.
//! - [`harness`]: cases, their order, deadlines and results.
//! - [`shim`]: a firmware that keeps TD-Shim's contract.
//! - [`demo`], [`lab`]: the testbed by hand.
//!
//! Names: L0 is this machine, L1 the emulated machine whose kernel has KVM, L2 the guest of the VMM
//! under test. (The lanes L0 to L4 of the test summary are another counting; see `xtask`.)

pub mod cache;
pub mod conformance;
pub mod cpio;
pub mod debian;
pub mod demo;
pub mod disk_image;
pub mod efi;
pub mod exit_codes;
pub mod fixture;
pub mod guest;
pub mod harness;
pub mod kernel;
pub mod l1;
pub mod lab;
pub mod native;
pub mod probe;
pub mod programs;
pub mod qemu;
pub mod shim;
pub mod unpacked;

use std::sync::{Mutex, PoisonError};

/// What [`note`] was told.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says something that is true of the whole run and belongs into its summary, once.
pub fn note(line: &str) {
    // A thread that panicked meanwhile was not in the middle of a change.
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    if notes.iter().any(|known| known == line) {
        return;
    }
    notes.push(line.to_owned());
    drop(notes);
    say(&format!("NOTE: {line}"));
}

/// All that [`note`] was told in this process.
pub fn notes() -> Vec<String> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// One line about what the testbed is doing, on standard error.
#[expect(
    clippy::print_stderr,
    reason = "a test harness talks to who started it"
)]
pub fn say(line: &str) {
    eprintln!("testbed: {line}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn note_that_is_repeated_is_kept_once() {
        for _ in 0..2 {
            super::note("a package was replaced (said by a test)");
        }
        let notes = super::notes();
        let same = notes.iter().filter(|n| n.contains("said by a test"));
        assert_eq!(same.count(), 1);
    }
}
