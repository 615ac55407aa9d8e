//! Virtual processors: why KVM left one, what is done about it, and the threads they run on.

pub mod exit;
pub mod run_loop;
pub mod thread;
