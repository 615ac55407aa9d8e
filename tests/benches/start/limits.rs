//! The limits. The first two are a ratchet: they follow the figures down, and are raised only by a change
//! that says what is bought with it.

/// System calls of all threads, from execve on, before the first KVM_RUN. Measured: 106, of which four
/// ask which signals are ignored and one, on a processor that has it, for guests' use of AMX; a C library of
/// another version may make a few more.
pub const CALLS: u64 = 107;

/// Bytes of the stripped program. Measured: 2.7 MiB, with TDX, disks, memory provided in advance by several
/// threads, and the reports on firmware and host.
pub const PROGRAM_BYTES: u64 = 2816 << 10;

/// Time in proportion to the floor's.
pub const RATIO: f64 = 1.5;

/// Proportional set size of the process, the guest's memory left out.
pub const PSS_MIB: f64 = 2.3;

// No change buys more than this.
const _: () = assert!(CALLS <= 110 && PROGRAM_BYTES <= 3 << 20);
