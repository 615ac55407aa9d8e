//! x86-64 facts as values.
//!
//! Everything a guest is handed (memory map, tables, CPUID, boot parameters, first registers) is
//! computed here by functions from values to values. This crate knows nothing of KVM, files,
//! processes or devices, so every line of it runs in an ordinary unit test.
//!
//! It needs no `std`, and neither does `firmware`: a verifier may run where there is no operating system.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod addr;
pub mod boot;
pub mod cpuid;
pub mod e820;
mod hex;
pub mod layout;
pub mod map;
pub mod msrs;
pub mod topology;

pub use addr::{Gpa, GpaRange, VcpuId};
pub use layout::RamLayout;
pub use topology::Topology;
