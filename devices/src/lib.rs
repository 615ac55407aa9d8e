//! Device emulation against a memory view, an interrupt wire and offsets.
//!
//! A device here is told of accesses by offset, raises edges on a wire, and sees guest memory through
//! a view. It knows nothing of KVM, of TDX or of the address at which it was placed.

#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

pub mod bus;
pub mod dma;
pub mod irq;
pub mod power;
pub mod virtio;
