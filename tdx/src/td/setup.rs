//! What is said about a VM before it is a TD.

use std::num::NonZeroU32;

use crate::params::TscFrequency;

/// Settings of the VM that belong to every TD, and two that are a matter of choice.
#[derive(Clone, Copy, Debug)]
pub struct VmSetup {
    /// Pins of the I/O APIC in user space.
    pub ioapic_pins: u32,
    /// Whether MSI routes carry 32-bit APIC ids: for more than 255 vCPUs.
    pub x2apic_ids: bool,
    /// TSC frequency; `None` leaves the host's.
    pub tsc: Option<TscFrequency>,
}

impl Default for VmSetup {
    fn default() -> Self {
        Self {
            ioapic_pins: 24,
            x2apic_ids: false,
            tsc: None,
        }
    }
}

/// Number of vCPUs: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuCount(NonZeroU32);

impl VcpuCount {
    /// `None` for 0.
    #[must_use]
    pub const fn new(count: u32) -> Option<Self> {
        match NonZeroU32::new(count) {
            Some(count) => Some(Self(count)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}
