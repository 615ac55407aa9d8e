//! virtio over PCI: queue, transport and devices.
//!
//! ```text
//! transport ── registers, status, capabilities     the driver's set-up, under the transport's lock
//!     │ activate / reset
//! worker on an I/O thread ── queue ── ring         requests, without a lock
//!                             └ chain ── segment
//! ```

pub mod block;
mod capabilities;
pub mod chain;
pub mod console;
pub mod device;
pub mod entropy;
mod interrupt;
mod late;
mod linger;
pub mod queue;
mod registers;
mod ring;
mod segment;
mod served;
pub mod status;
mod sync;
pub mod transport;

pub use interrupt::NO_VECTOR;
pub use ring::RingAddresses;
pub use segment::Segment;

/// Copies a part of a configuration structure; zeros behind its end.
fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).ok().and_then(|at| config.get(at..));
    for (to, byte) in data.iter_mut().zip(from.unwrap_or_default()) {
        *to = *byte;
    }
}
