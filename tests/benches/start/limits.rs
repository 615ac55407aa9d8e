//! The limits. The first two are a ratchet: they follow the figures down, and are raised only by a change
//! that says what is bought with it.

/// System calls of all threads, from execve on, before the first KVM_RUN.
pub const CALLS: u64 = 110;

/// Bytes of the stripped program.
pub const PROGRAM_BYTES: u64 = 3 << 20;

/// Time in proportion to the floor's.
pub const RATIO: f64 = 1.5;

/// Proportional set size of the process, the guest's memory left out.
pub const PSS_MIB: f64 = 2.3;
