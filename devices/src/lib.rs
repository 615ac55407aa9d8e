//! Device emulation against a memory view, an interrupt wire and offsets.
//!
//! A device here is told of accesses by offset, raises edges on a wire, and sees guest memory through
//! a view. It knows nothing of KVM, of TDX or of the address at which it was placed.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

pub mod bus;
mod calendar;
pub mod clock;
pub mod debugcon;
pub mod dma;
pub mod fwcfg;
pub mod guest_log;
pub mod io_thread;
pub mod ioapic;
pub mod irq;
pub mod pci;
pub mod pit;
pub mod pm;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod virtio;
