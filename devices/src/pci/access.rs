//! The ways in which a guest reaches the bus: ports, ECAM, and the memory window of the BARs.

use std::sync::Arc;

use super::root::PciRoot;
use crate::bus::{AccessError, BusDevice};
use crate::reset::ResetControl;

/// Configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2): address at offset 0, data at 4 to 7.
///
/// The reset control register is a byte in the midst of the address register (port 0xcf9), so this
/// device passes accesses of one byte there on to it. Goes on 8 ports.
#[derive(Debug)]
pub struct ConfigMechanism1 {
    root: Arc<PciRoot>,
    reset: ResetControl,
    address: u32,
}

impl ConfigMechanism1 {
    /// Ports that it answers.
    pub const PORTS: u64 = 8;
    const ENABLE: u32 = 1 << 31;

    /// For the functions of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, reset: ResetControl) -> Self {
        Self {
            root,
            reset,
            address: 0,
        }
    }

    /// Slot and register that the address names, if it is enabled and on bus 0, function 0.
    fn target(&self, byte: u64) -> Option<(u8, u16)> {
        let [register, slot_and_function, bus, _] = self.address.to_le_bytes();
        let here = self.address & Self::ENABLE != 0 && bus == 0 && slot_and_function & 7 == 0;
        let byte = u16::try_from(byte).ok()?;
        here.then(|| {
            let register = u16::from(register & 0xfc).wrapping_add(byte);
            (slot_and_function >> 3, register)
        })
    }
}

impl BusDevice for ConfigMechanism1 {
    fn name(&self) -> &str {
        "pci-ports"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (1, 1) => data.fill(self.reset.value()),
            (0..=3, _) => return Err(AccessError::Size(data.len())),
            (4..=7, _) => {
                let byte = dword_part(offset.wrapping_sub(4), data.len())?;
                match self.target(byte) {
                    Some((slot, register)) => self.root.config_read(slot, register, data),
                    None => data.fill(0xff),
                }
            }
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]) & !0x7f00_0003,
            (1, &[value]) => self.reset.set(value),
            (0..=3, _) => return Err(AccessError::Size(data.len())),
            (4..=7, _) => {
                let byte = dword_part(offset.wrapping_sub(4), data.len())?;
                if let Some((slot, register)) = self.target(byte) {
                    self.root.config_write(slot, register, data);
                }
            }
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }
}

/// Memory-mapped configuration (PCI Express Base 5.0, 7.2.2): bus, slot and function are bits 20 and
/// up, 15 and up, 12 and up of the offset. Goes on up to 256 MiB.
#[derive(Debug)]
pub struct Ecam {
    root: Arc<PciRoot>,
}

impl Ecam {
    /// For the functions of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root }
    }

    /// Slot and register of an access, if it is on bus 0, function 0.
    fn target(offset: u64) -> Option<(u8, u16)> {
        let slot = u8::try_from(offset >> 15).ok().filter(|slot| *slot < 32)?;
        let in_slot = u16::try_from(offset & 0x7fff).ok()?;
        (in_slot < 0x1000).then_some((slot, in_slot))
    }
}

impl BusDevice for Ecam {
    fn name(&self) -> &str {
        "pci-ecam"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        dword_part(offset & 3, data.len())?;
        match Self::target(offset) {
            Some((slot, register)) => self.root.config_read(slot, register, data),
            None => data.fill(0xff),
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        dword_part(offset & 3, data.len())?;
        if let Some((slot, register)) = Self::target(offset) {
            self.root.config_write(slot, register, data);
        }
        Ok(())
    }
}

/// The memory window in which BARs decode. Goes on the whole window.
#[derive(Debug)]
pub struct MmioWindow {
    root: Arc<PciRoot>,
    base: u64,
}

impl MmioWindow {
    /// For the BARs of `root`; `base` is where the window starts, since BARs hold addresses.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, base: u64) -> Self {
        Self { root, base }
    }
}

impl BusDevice for MmioWindow {
    fn name(&self) -> &str {
        "pci-window"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let address = self.base.checked_add(offset);
        address
            .filter(|address| self.root.bar_read(*address, data))
            .map(|_| ())
            .ok_or(AccessError::NoRegister(offset))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let address = self.base.checked_add(offset);
        address
            .filter(|address| self.root.bar_write(*address, data))
            .map(|_| ())
            .ok_or(AccessError::NoRegister(offset))
    }
}

/// Checks that an access of `len` bytes at `byte` of a dword is 1, 2 or 4 bytes long and aligned.
fn dword_part(byte: u64, len: usize) -> Result<u64, AccessError> {
    match (len, byte) {
        (1, _) | (2, 0 | 2) | (4, 0) => Ok(byte),
        (2 | 4, _) => Err(AccessError::Unaligned(byte)),
        _ => Err(AccessError::Size(len)),
    }
}

#[cfg(test)]
mod tests;
