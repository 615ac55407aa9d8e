//! The three registers by which guests reset a PC.
//!
//! Each has the [`PowerSink`]; what a reset does is not decided here.

use std::sync::Arc;

use crate::bus::{AccessError, BusDevice};
use crate::power::{PowerEvent, PowerSink};

/// Reset control (port 0xcf9, ICH9 data sheet 13.7.5): writing bit 2 resets.
///
/// Part of [`crate::pci::ConfigMechanism1`], which has the ports around it.
#[derive(Debug)]
pub struct ResetControl {
    power: Arc<dyn PowerSink>,
    value: u8,
}

impl ResetControl {
    /// System reset and full reset: bits that are kept.
    const KEPT: u8 = 0x0a;
    const RESET_CPU: u8 = 1 << 2;

    /// A register that tells `power`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power, value: 0 }
    }

    /// The register as read.
    #[must_use]
    pub fn value(&self) -> u8 {
        self.value
    }

    /// A guest writes the register.
    pub fn set(&mut self, value: u8) {
        self.value = value & Self::KEPT;
        if value & Self::RESET_CPU != 0 {
            self.power.request(PowerEvent::Reset("port 0xcf9"));
        }
    }
}

/// What is left of a keyboard controller: command 0xfe pulses the reset line.
///
/// Goes on 5 ports from 0x60: data at 0, command and status at 4. They read as all ones, as where nobody answers, by
/// which OVMF (its PS/2 drivers look at the parity and time-out bits) and Linux see at once that there is no keyboard;
/// else they try to reset one, with seconds of timeouts. But "ready for a command" is true, which ends the wait of a
/// kernel that is about to reset.
///
/// System control port B lies between (0x61): no NMI has a reason, and the output of timer 2 is high, which ends the
/// wait of a kernel that calibrates by it. All ones would be an NMI from a PCI error.
#[derive(Debug)]
pub struct I8042 {
    power: Arc<dyn PowerSink>,
}

impl I8042 {
    /// Ports that it answers, of which three have a register.
    pub const PORTS: u64 = 5;
    const RESET: u8 = 0xfe;
    /// All but "input buffer full", which is for the driver to wait on.
    const STATUS: u8 = !(1 << 1);
    const TIMER_2_OUTPUT: u8 = 1 << 5;

    /// A controller that tells `power`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power }
    }
}

impl BusDevice for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (0, [value]) => *value = 0xff,
            (4, [value]) => *value = Self::STATUS,
            (1, [value]) => *value = Self::TIMER_2_OUTPUT,
            (0 | 1 | 4, data) => return Err(AccessError::Size(data.len())),
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (4, &[Self::RESET]) => self.power.request(PowerEvent::Reset("i8042 command 0xfe")),
            (0 | 1 | 4, [_]) => {}
            (0 | 1 | 4, _) => return Err(AccessError::Size(data.len())),
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }
}

/// Port 0x92: fast A20 gate (always open) and fast reset (bit 0).
#[derive(Debug)]
pub struct Port92 {
    power: Arc<dyn PowerSink>,
    value: u8,
}

impl Port92 {
    /// Ports that it answers.
    pub const PORTS: u64 = 1;
    const RESET: u8 = 1 << 0;
    const A20: u8 = 1 << 1;

    /// A port that tells `power`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power, value: 0 }
    }
}

impl BusDevice for Port92 {
    fn name(&self) -> &str {
        "port92"
    }

    fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let len = data.len();
        let [value] = data else {
            return Err(AccessError::Size(len));
        };
        *value = self.value | Self::A20;
        Ok(())
    }

    fn write(&mut self, _: u64, data: &[u8]) -> Result<(), AccessError> {
        let &[value] = data else {
            return Err(AccessError::Size(data.len()));
        };
        self.value = value & !Self::RESET;
        if value & Self::RESET != 0 {
            self.power.request(PowerEvent::Reset("port 0x92"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
