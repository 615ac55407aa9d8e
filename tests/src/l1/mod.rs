//! An L1: a Linux with KVM (kvm-amd on emulated SVM) inside QEMU's TCG, and a session that runs
//! programs in it. Needs neither `/dev/kvm` nor privileges.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use tdvmm_tests::{debian::{Packages, Role}, l1::{Machine, Program}};
//! let packages = Packages::open()?;
//! let mut machine = Machine::new(&packages, Role::Main)?; // 3 CPUs, 4 GiB, stock modules
//! machine.replace_module("kvm", "/path/to/kvm.ko".as_ref());
//! machine.module_parameters("kvm-amd", "nested=0");
//! machine.archive().copy("/bin/prog", 0o755, "/path/to/static/prog".as_ref())?;
//! machine.add_qemu()?;                                    // at /usr/bin/qemu-system-x86_64
//! let mut l1 = machine.boot()?;                           // waits for the L1 of another process
//! let run = l1.start(&Program::new("/bin/prog").args(["-x"]))?;
//! l1.wait_for(run, "ready", Duration::from_secs(60))?;    // its standard output and error
//! let end = l1.wait_end(run, Duration::from_secs(10))?;
//! assert_eq!(end.outcome.code(), Some(0));
//! assert!(l1.kernel_troubles()?.is_empty());              // WARN, BUG, lockdep since last asked
//! # Ok(()) }
//! ```
//!
//! All that runs in L1 stays off its CPU 0: QEMU's TCG has a defect that corrupts a guest on the
//! first CPU (another CPU restoring x87 state changes CPU 0's nested-paging flag), so an L1 has one
//! CPU more than its guests need. The session speaks over a virtio-serial port with the agent
//! (`src/bin/tdvmm-l1-agent.rs`), which is L1's first process; L1's serial console goes to a file.

pub mod agent;
mod kmsg;
mod logs;
mod machine;
mod program;
pub mod protocol;
mod run;
mod session;
pub mod without_fsync;

pub use kmsg::troubles;
pub use logs::remove_old as remove_old_logs;
pub use machine::Machine;
pub use program::Program;
pub use protocol::Outcome;
pub use run::{Ended, RunId};
pub use session::L1;
