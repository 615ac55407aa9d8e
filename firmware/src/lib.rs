//! Bytes in, facts out: firmware images, hand-off structures and measurements.
//!
//! What the VMM hands to a TD is made here by functions from values to values, so the launch and a
//! verifier's tools get the same bytes from the same code. This crate knows nothing of KVM, files,
//! processes or devices, and of `tdx` only what plain records say.
//!
//! ```text
//! firmware file --image--> sections --regions--> (range, measured?, bytes) --measure--> MRTD, log
//! RAM, ACPI     --hob-----> TD HOB ----^   payload, parameters --td_shim----^
//! kernel, ACPI  --fwcfg---> fw_cfg items             variables of the image --varstore
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]
// A test may panic: that is how it fails.
#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

extern crate alloc;

pub mod fwcfg;
pub mod guid;
pub mod hob;
pub mod image;
pub mod inspect;
pub mod measure;
pub mod td_shim;
mod text;
pub mod varstore;
mod wire;
