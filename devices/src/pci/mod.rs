//! One PCI bus: functions, their configuration space, and the three ways a guest reaches them.
//!
//! ```text
//! 0xcf8/0xcfc  ConfigMechanism1 \
//! ECAM         Ecam              > PciRoot > function (its own lock) > ConfigSpace, BARs
//! PCI window   MmioWindow       /
//! ```
//!
//! Segment 0, bus 0, function 0 of each of 32 slots. Whatever else a guest asks for reads as all ones.
//! A lock of one of the three is held while the lock of a function is taken, never the other way
//! round: a function knows neither the root nor the bus.

mod access;
mod bridges;
mod config;
#[cfg(test)]
mod fake;
mod msix;
mod root;

pub use access::{ConfigMechanism1, Ecam, MmioWindow};
pub use bridges::{HostBridge, LpcBridge};
pub use config::{Bar, ConfigSpace, Identity, SpaceError};
pub use msix::{Msix, MsixPlace, MsixTrigger, MsixVectors};
pub use root::{BarError, PciDevice, PciRoot, SharedFunction, SlotError};
