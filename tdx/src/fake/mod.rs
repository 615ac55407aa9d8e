//! A TD without a kernel: the order and errno rules of KVM, for tests of this crate and others.
//!
//! [`FakeKernel`] answers the same commands with the same structures as KVM's VM and vCPU
//! descriptors do, keeps MRTD as the TDX module does, stops early and fails where told to.
//! [`FakeTd`] puts it behind [`TdOps`](crate::ops::TdOps). It runs no guest. What it enforces is
//! held against the emulated KVM by one list of calls and results (`tests/conformance.rs`).

mod faults;
mod host;
mod init_vm;
mod kernel;
mod memory;
mod mrtd;
mod ops;
mod vcpu;

pub use faults::{Fault, Faults, PageStops, Stop};
pub use host::{FakeHost, capabilities, params, wanted_cpuid};
pub use kernel::{FakeKernel, Lifecycle, Payload};
pub use mrtd::MrtdWitness;
pub use ops::{FakeTd, FakeVcpu};
