//! The two functions by which firmware knows a Q35: host bridge and LPC bridge.
//!
//! Registers after Intel's 3 Series chipset (MCH) and ICH9 data sheets, only those that OVMF and Linux
//! touch. Nothing moves when they are written: the ECAM and the power management ports are where the
//! address map has them, and the registers say so or keep what was written.

use super::config::{ConfigSpace, Identity};
use super::root::PciDevice;

/// 00:00.0, the memory controller hub, 8086:29c0. Its device id tells OVMF that this is a Q35.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// The slot it belongs in.
    pub const SLOT: u8 = 0;
    /// Base of the ECAM: OVMF writes 0xe000_0001 and 0.
    const PCIEXBAR: u8 = 0x60;

    /// As after a reset.
    #[must_use]
    pub fn new() -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x29c0,
            class: 0x06_00_00,
            ..Identity::default()
        });
        // Enable, size (256, 128, 64 MiB), base up to bit 35.
        config.set_writable(Self::PCIEXBAR, &[0x07, 0, 0, 0xfc, 0x0f, 0, 0, 0]);
        Self { config }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciDevice for HostBridge {
    fn name(&self) -> &str {
        "host-bridge"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}

/// 00:1f.0, the LPC bridge of an ICH9, 8086:2918: where the power management ports are.
#[derive(Debug)]
pub struct LpcBridge {
    config: ConfigSpace,
}

impl LpcBridge {
    /// The slot it belongs in.
    pub const SLOT: u8 = 0x1f;
    const PMBASE: u8 = 0x40;
    const ACPI_CNTL: u8 = 0x44;
    const PIRQ_A: u8 = 0x60;
    const PIRQ_E: u8 = 0x68;
    const RCBA: u8 = 0xf0;

    /// As firmware leaves it, with the power management ports at `pmbase` (a multiple of 128).
    #[must_use]
    pub fn new(pmbase: u16) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x2918,
            class: 0x06_01_00,
            revision: 2,
            ..Identity::default()
        });
        // Bit 0: this is an I/O address. Fixed, whatever is written.
        config.set(
            Self::PMBASE,
            &(u32::from(pmbase & 0xff80) | 1).to_le_bytes(),
        );
        // ACPI enable (bit 7) and SCI routing.
        config.set_writable(Self::ACPI_CNTL, &[0x87]);
        // Routing is kept, but no function has an INTx.
        for register in [Self::PIRQ_A, Self::PIRQ_E] {
            config.set(register, &[0x80; 4]);
            config.set_writable(register, &[0x8f; 4]);
        }
        config.set_writable(Self::RCBA, &[0x01, 0xc0, 0xff, 0xff]);
        Self { config }
    }
}

impl PciDevice for LpcBridge {
    fn name(&self) -> &str {
        "lpc-bridge"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}

#[cfg(test)]
mod tests;
