//! The virtual machine monitor as a library.
//!
//! ```text
//! cli / vm.json -> config (checked) -> plan (pure) -> machine::launch_plain -> machine::run -> Ending
//! ```
//!
//! `config` and `plan` decide; `kvm`, `memory`, `serial`, `vcpu` and `machine` act.

pub mod affinity;
pub mod cli;
pub mod config;
pub mod ending;
pub mod heap;
pub mod host_check;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod observe;
pub mod payload;
pub mod plan;
pub mod serial;
pub mod vcpu;
