//! The I/O APIC: 24 pins, each an edge that becomes a message (Intel 82093AA data sheet, 3.0).
//!
//! It only keeps the redirection table and tells a [`MsiRouter`] what each pin sends. The interrupts
//! themselves go from an irqfd to the local APIC in the kernel and never come here.
//!
//! Edge only: a level-triggered interrupt needs the guest's EOI, which the kernel cannot see in a TD
//! (and which would cost an exit in an ordinary VM). A guest that unmasks a level-triggered entry
//! finds it masked again, and a limited warning is logged.

use std::sync::Arc;

use crate::bus::{AccessError, BusDevice};
use crate::guest_warn;
use crate::irq::{Msi, MsiRouter};

/// Pins, and so entries of the redirection table.
const PINS: usize = 24;
/// Version 0x20 has an EOI register; bits 16 and up are the index of the last entry.
const VERSION: u32 = 0x0017_0020;

// Offsets of the memory-mapped registers.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

// Indirect registers.
const ID: u8 = 0x00;
const VERSION_REGISTER: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const TABLE: u8 = 0x10;
const TABLE_LAST: u8 = 0x3f;
const ID_BITS: u32 = 0x0f00_0000;

// Bits of an entry.
const LOGICAL: u64 = 1 << 11;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask, and the destination with its
/// extension (bits 49 to 63). Delivery status and remote IRR are always 0, the rest is reserved.
const WRITABLE: u64 = 0xfffe_0000_0001_afff;

/// Where messages to local APICs go.
const MSI_BASE: u64 = 0xfee0_0000;

/// Why an entry sends nothing although it is not masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Not possible without EOI.
    Level,
    /// SMI and the reserved delivery modes.
    DeliveryMode(u8),
}

/// The message of an entry, `None` if it is masked or has no one to go to.
///
/// The upper seven bits of a 15-bit destination are in bits 49 to 55 of the entry and in bits 5 to 11
/// of the address, the form that Linux uses where `KVM_FEATURE_MSI_EXT_DEST_ID` is offered.
fn message(entry: u64) -> Result<Option<Msi>, Refusal> {
    if entry & MASKED != 0 {
        return Ok(None);
    }
    if entry & LEVEL != 0 {
        return Err(Refusal::Level);
    }
    let [vector, flags, ..] = entry.to_le_bytes();
    let mode = flags & 7;
    match mode {
        // Fixed, lowest priority, NMI, INIT.
        0 | 1 | 4 | 5 => {}
        // ExtINT asks a PIC for the vector; there is none.
        7 => return Ok(None),
        other => return Err(Refusal::DeliveryMode(other)),
    }
    let destination = (entry >> 56) & 0xff;
    let extended = (entry >> 49) & 0x7f;
    let logical = u64::from(entry & LOGICAL != 0);
    Ok(Some(Msi {
        address: MSI_BASE | destination << 12 | extended << 5 | logical << 2,
        data: u32::from(vector) | u32::from(mode) << 8,
    }))
}

#[derive(Clone, Copy, Debug)]
struct Pin {
    entry: u64,
    /// What the router was last told.
    routed: Option<Msi>,
}

/// See the module's text. Goes on 4 KiB of memory.
#[derive(Debug)]
pub struct IoApic {
    router: Arc<dyn MsiRouter>,
    selected: u8,
    id: u32,
    pins: [Pin; PINS],
}

impl IoApic {
    /// Bytes of memory that it answers.
    pub const LEN: u64 = 0x1000;

    /// All pins masked; the router is not called before a guest unmasks one.
    #[must_use]
    pub fn new(router: Arc<dyn MsiRouter>) -> Self {
        let masked = Pin {
            entry: MASKED,
            routed: None,
        };
        Self {
            router,
            selected: 0,
            id: 0,
            pins: [masked; PINS],
        }
    }

    /// Pin of the selected register and whether it is the upper half.
    fn selected_half(&self) -> Option<(usize, bool)> {
        let half = self.selected.checked_sub(TABLE)?;
        Some((usize::from(half / 2), half % 2 == 1))
    }

    fn read_selected(&self) -> u32 {
        match self.selected {
            ID | ARBITRATION => self.id,
            VERSION_REGISTER => VERSION,
            _ => {
                let half = self.selected_half();
                let pin = half.and_then(|(pin, upper)| Some((self.pins.get(pin)?, upper)));
                match pin.map(|(pin, upper)| (pin.entry.to_le_bytes(), upper)) {
                    Some(([a, b, c, d, ..], false)) => u32::from_le_bytes([a, b, c, d]),
                    Some(([.., a, b, c, d], true)) => u32::from_le_bytes([a, b, c, d]),
                    None => 0,
                }
            }
        }
    }

    fn write_selected(&mut self, value: u32) {
        match self.selected {
            ID => self.id = value & ID_BITS,
            TABLE..=TABLE_LAST => {
                if let Some((pin, upper)) = self.selected_half() {
                    self.write_entry(pin, upper, value);
                }
            }
            _ => {}
        }
    }

    fn write_entry(&mut self, index: usize, upper: bool, value: u32) {
        let Some(pin) = self.pins.get_mut(index) else {
            return;
        };
        let value = u64::from(value);
        let entry = if upper {
            (pin.entry & 0xffff_ffff) | value << 32
        } else {
            (pin.entry & !0xffff_ffff) | value
        };
        pin.entry = entry & WRITABLE;
        let to = message(pin.entry).unwrap_or_else(|refusal| {
            guest_warn!("I/O APIC pin {index}: stays masked, {refusal:?} is not supported");
            pin.entry |= MASKED;
            None
        });
        if to == pin.routed {
            return;
        }
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        match self.router.route(number, to) {
            Ok(()) => pin.routed = to,
            Err(error) => guest_warn!("I/O APIC pin {index}: cannot be routed to {to:x?}: {error}"),
        }
    }
}

impl BusDevice for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let value = match offset {
            SELECT => u32::from(self.selected),
            WINDOW => self.read_selected(),
            EOI => 0,
            _ => return Err(AccessError::NoRegister(offset)),
        };
        if data.len() != 4 {
            return Err(AccessError::Size(data.len()));
        }
        data.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let &[low, b, c, d] = data else {
            return Err(AccessError::Size(data.len()));
        };
        match offset {
            SELECT => self.selected = low,
            WINDOW => self.write_selected(u32::from_le_bytes([low, b, c, d])),
            // Ends level-triggered interrupts, of which there are none.
            EOI => {}
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
