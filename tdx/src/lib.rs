//! The KVM TDX ABI and the only legal order to call it.
//!
//! A launch goes through the typestates of [`td`] over the calls of [`ops`], which `ioctl`
//! makes for real and [`fake`] answers in tests. Parameters are made and refused in [`params`],
//! from what [`caps`] reports, and [`host`] judges whether a host can run TDs at all; what failed is told by [`error`] and [`status`]. At run time,
//! [`exit`] decodes what a TD asks for. Everything but `ioctl` is pure.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

pub mod abi;
pub mod caps;
pub mod cpuid;
pub mod error;
pub mod exit;
pub mod fake;
pub mod host;
pub mod ioctl;
pub mod log;
pub mod ops;
pub mod pages;
pub mod params;
mod retry;
pub mod status;
pub mod td;
pub mod transcript;
pub mod wire;
