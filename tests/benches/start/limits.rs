//! The limits. The first two are a ratchet: they follow the figures down, and are raised only by a change
//! that says what is bought with it.

/// System calls of all threads, from execve on, before the first KVM_RUN. Measured: 106, of which four
/// ask which signals are ignored, one for the limit of open files and one, on a processor that has it, for guests' use of
/// AMX; a C library of another version may make a few more.
pub const CALLS: u64 = 107;

/// Bytes of the stripped program. Measured: 2.59 MiB, with TDX, disks, memory provided in advance by several threads,
/// and the reports on firmware and host; a quarter of a MiB of it are qcow2 images, with the check of their refcounts.
pub const PROGRAM_BYTES: u64 = 2672 << 10;

/// Time in proportion to the floor's.
pub const RATIO: f64 = 1.5;

/// Proportional set size of the process, the guest's memory left out. Measured: 2.4, of which 2.2 are the
/// program's file; the kernel maps 64 KiB around each page that is touched, so code that does not run counts
/// as well (qcow2 images: 0.2).
pub const PSS_MIB: f64 = 2.5;

/// Time to the first byte with a disk and a console, in proportion to that without.
pub const DEVICES_RATIO: f64 = 1.3;

/// As [`PSS_MIB`], with a disk and a console.
pub const DEVICES_PSS_MIB: f64 = 2.6;

// No change buys more than this.
const _: () = assert!(CALLS <= 110 && PROGRAM_BYTES <= 3 << 20);
