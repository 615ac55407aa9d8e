//! Exit codes of `tdvmm`, as its README documents them: the one table that all lanes check against.

/// The guest switched itself off.
pub const POWER_OFF: i32 = 0;
/// The host failed: a file, a system call, KVM.
pub const HOST_ERROR: i32 = 1;
/// The guest asked for a reset.
pub const RESET: i32 = 10;
/// Triple fault.
pub const TRIPLE_FAULT: i32 = 11;
/// KVM cannot go on with a vCPU.
pub const INTERNAL_ERROR: i32 = 12;
/// An exit that the VMM does not serve.
pub const UNEXPECTED_EXIT: i32 = 13;
/// The operator pressed Ctrl-A x.
pub const OPERATOR: i32 = 14;
/// The configuration asks for what cannot be.
pub const BAD_CONFIG: i32 = 152;
/// The command line cannot be understood.
pub const BAD_ARGUMENTS: i32 = 153;
/// Ended by SIGTERM.
pub const SIGTERM: i32 = 128 + 15;
/// A step of the launch of a TD failed.
pub const TD_LAUNCH_FAILED: i32 = 161;
/// The TD reported a fatal error.
pub const TD_FATAL: i32 = 163;
/// No TDX key id is free.
pub const TD_NO_KEY_ID: i32 = 165;
/// KVM gave the TD up.
pub const TD_DEAD: i32 = 166;
