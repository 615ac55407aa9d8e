//! virtio over PCI: queue, transport and devices.
//!
//! ```text
//! transport ── registers, status, capabilities     the driver's set-up, under the transport's lock
//!     │ activate / reset
//! worker on an I/O thread ── queue ── ring         requests, without a lock
//!                             └ chain ── segment
//! ```

mod capabilities;
pub mod chain;
pub mod device;
mod interrupt;
pub mod queue;
mod registers;
mod ring;
mod segment;
pub mod status;
mod sync;
pub mod transport;

pub use interrupt::NO_VECTOR;
pub use ring::RingAddresses;
pub use segment::Segment;
