//! Interrupts as a device sees them: a wire to pulse, and routes that the I/O APIC programs.
//!
//! Both are implemented by the process around the devices (an irqfd and `KVM_SET_GSI_ROUTING`), and by
//! recorders in tests.

use std::fmt::Debug;
use std::io;

/// A message-signalled interrupt: what a device writes, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Address, `0xfee0_0000` and up on x86.
    pub address: u64,
    /// Data: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// A wire whose rising edge is an interrupt. Pulsing it never blocks.
pub trait IrqWire: Debug + Send + Sync {
    /// Raises one edge. Edges that come faster than the guest takes them merge.
    ///
    /// # Errors
    ///
    /// If the host refuses; the interrupt is lost then.
    fn pulse(&self) -> io::Result<()>;
}

/// Says which message an edge on a pin of the I/O APIC sends.
pub trait MsiRouter: Debug + Send + Sync {
    /// From now on an edge on `pin` sends `to`; with `None` it goes nowhere.
    ///
    /// # Errors
    ///
    /// If the host refuses; the pin keeps its former route then.
    fn route(&self, pin: u32, to: Option<Msi>) -> io::Result<()>;
}
