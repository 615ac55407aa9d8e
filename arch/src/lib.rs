//! x86-64 facts as values.
//!
//! Everything a guest is handed (memory map, tables, CPUID, boot parameters, first registers) is
//! computed here by functions from values to values. This crate knows nothing of KVM, files,
//! processes or devices, so every line of it runs in an ordinary unit test.

#![forbid(unsafe_code)]

pub mod addr;
pub mod map;

pub use addr::{Gpa, GpaRange, VcpuId};
