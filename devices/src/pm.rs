//! The power management ports: PM1, the ACPI timer, and sleep control of hardware-reduced ACPI.
//!
//! Offsets as in an ICH9 (data sheet 13.8.3) and ACPI 6.5, 4.8.3. The only sleep state that the tables
//! offer is S5, so a set SLP_EN switches off whatever type comes with it: Linux writes the type from
//! `\_S5`, OVMF writes 0. There is no SCI: no event is ever pending.

use std::sync::Arc;

use crate::bus::{AccessError, BusDevice};
use crate::clock::Clock;
use crate::power::{PowerEvent, PowerSink};

// Offsets.
const PM1_STATUS: u64 = 0x00;
const PM1_ENABLE: u64 = 0x02;
const PM1_CONTROL: u64 = 0x04;
const TIMER: u64 = 0x08;
const SLEEP_CONTROL: u64 = 0x14;
const SLEEP_STATUS: u64 = 0x15;

/// Frequency of the timer in Hz (ACPI 6.5, 4.8.2.1).
const TIMER_HZ: u128 = 3_579_545;
/// Only as many bits as every driver takes; the tables must not say that it has 32.
const TIMER_MASK: u32 = 0x00ff_ffff;

/// Global lock, bus master reload, SCI enable, sleep type.
const PM1_CONTROL_KEPT: u16 = 0x1c07;
const PM1_SLEEP: u16 = 1 << 13;
/// Timer, global, power and sleep button, RTC.
const PM1_ENABLE_KEPT: u16 = 0x0721;
const SLEEP_TYPE_KEPT: u8 = 0x1c;
const SLEEP_ENABLE: u8 = 1 << 5;

/// See the module's text.
#[derive(Debug)]
pub struct PowerBlock {
    power: Arc<dyn PowerSink>,
    clock: Box<dyn Clock>,
    enable: u16,
    control: u16,
    sleep_type: u8,
}

impl PowerBlock {
    /// Ports that it answers, from PMBASE on.
    pub const PORTS: u64 = 0x20;

    /// A block that tells `power` and counts by the monotonic time of `clock`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSink>, clock: Box<dyn Clock>) -> Self {
        Self {
            power,
            clock,
            enable: 0,
            control: 0,
            sleep_type: 0,
        }
    }

    fn timer(&self) -> u32 {
        // 64-bit nanoseconds last for 584 years, and 2^64 * TIMER_HZ fits 128 bits.
        let nanoseconds = self.clock.monotonic().as_nanos() & u128::from(u64::MAX);
        let ticks = nanoseconds.wrapping_mul(TIMER_HZ) / 1_000_000_000;
        let [a, b, c, d, ..] = ticks.to_le_bytes();
        u32::from_le_bytes([a, b, c, d]) & TIMER_MASK
    }

    /// Value and length of the register that starts at `offset`.
    fn register(&self, offset: u64) -> Option<(u32, usize)> {
        Some(match offset {
            PM1_STATUS | SLEEP_STATUS => (0, if offset == PM1_STATUS { 2 } else { 1 }),
            PM1_ENABLE => (self.enable.into(), 2),
            PM1_CONTROL => (self.control.into(), 2),
            TIMER => (self.timer(), 4),
            SLEEP_CONTROL => (self.sleep_type.into(), 1),
            _ => return None,
        })
    }
}

impl BusDevice for PowerBlock {
    fn name(&self) -> &str {
        "power"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let none = AccessError::NoRegister(offset);
        if (offset, data.len()) == (PM1_STATUS, 4) {
            let value = u32::from(self.enable) << 16;
            data.copy_from_slice(&value.to_le_bytes());
            return Ok(());
        }
        let (value, len) = self.register(offset).ok_or(none)?;
        // Less than the whole register from its start is as good: drivers read bytes of the timer.
        let value = value.to_le_bytes();
        match value.get(..data.len()) {
            Some(part) if data.len() <= len => data.copy_from_slice(part),
            _ => return Err(AccessError::Size(data.len())),
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            // Clears events, of which there are none; the timer cannot be set.
            (PM1_STATUS, &[_, _]) | (SLEEP_STATUS, &[_]) | (TIMER, &[_, _, _, _]) => {}
            (PM1_STATUS, &[_, _, a, b]) | (PM1_ENABLE, &[a, b]) => {
                self.enable = u16::from_le_bytes([a, b]) & PM1_ENABLE_KEPT;
            }
            (PM1_CONTROL, &[a, b]) => {
                let value = u16::from_le_bytes([a, b]);
                self.control = value & PM1_CONTROL_KEPT;
                if value & PM1_SLEEP != 0 {
                    self.power.request(PowerEvent::PowerOff);
                }
            }
            (SLEEP_CONTROL, &[value]) => {
                self.sleep_type = value & SLEEP_TYPE_KEPT;
                if value & SLEEP_ENABLE != 0 {
                    self.power.request(PowerEvent::PowerOff);
                }
            }
            (PM1_STATUS | PM1_ENABLE | PM1_CONTROL | TIMER | SLEEP_CONTROL | SLEEP_STATUS, _) => {
                return Err(AccessError::Size(data.len()));
            }
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
