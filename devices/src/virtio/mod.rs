//! virtio over PCI: queue, transport and devices.

pub mod chain;
pub mod queue;
mod ring;
mod segment;
mod sync;

pub use ring::RingAddresses;
pub use segment::Segment;
