//! The CMOS real-time clock (Motorola MC146818 with a PC's 128 bytes of RAM), no interrupt.
//!
//! The time is that of the host plus an offset, which changes when a guest sets the clock. An update is
//! never in progress (register A), since the fields are computed when they are read. While a guest has
//! set SET in register B, the fields hold still and are plain memory; clearing it sets the clock.
//! BCD or binary, 24 or 12 hours, as register B says.

use crate::bus::{AccessError, BusDevice};
use crate::calendar::Moment;
use crate::clock::Clock;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Where firmware and the FADT of most PCs have it.
const CENTURY: u8 = 0x32;
const TIME_REGISTERS: [u8; 8] = [
    SECONDS,
    MINUTES,
    HOURS,
    DAY_OF_WEEK,
    DAY,
    MONTH,
    YEAR,
    CENTURY,
];

/// 32.768 kHz time base, 1024 Hz periodic rate.
const A_DEFAULT: u8 = 0x26;
/// Update in progress.
const A_UIP: u8 = 1 << 7;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// RAM and time are valid.
const D_VALID: u8 = 1 << 7;
const PM: u8 = 1 << 7;

/// See the module's text. Goes on 2 ports: index, data.
#[derive(Debug)]
pub struct Rtc {
    clock: Box<dyn Clock>,
    /// Guest time minus host time, in seconds.
    offset: i64,
    index: u8,
    /// All registers; the time registers only count while SET is set.
    ram: [u8; 128],
}

impl Rtc {
    /// Ports that it answers.
    pub const PORTS: u64 = 2;

    /// A clock that shows the Unix time of `clock`.
    #[must_use]
    pub fn new(clock: Box<dyn Clock>) -> Self {
        let mut rtc = Self {
            clock,
            offset: 0,
            index: 0,
            ram: [0; 128],
        };
        rtc.set_byte(REGISTER_A, A_DEFAULT);
        rtc.set_byte(REGISTER_B, B_24_HOURS);
        rtc
    }

    fn byte(&self, register: u8) -> u8 {
        self.ram
            .get(usize::from(register))
            .copied()
            .unwrap_or_default()
    }

    fn set_byte(&mut self, register: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(register)) {
            *byte = value;
        }
    }

    fn is_held(&self) -> bool {
        self.byte(REGISTER_B) & B_SET != 0
    }

    fn read_register(&mut self, register: u8) -> u8 {
        match register {
            REGISTER_A => self.byte(REGISTER_A) & !A_UIP,
            // No interrupt is ever pending.
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            _ => {
                if TIME_REGISTERS.contains(&register) && !self.is_held() {
                    self.show_time();
                }
                self.byte(register)
            }
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        match register {
            REGISTER_A => self.set_byte(REGISTER_A, value & !A_UIP),
            REGISTER_B => {
                let held = self.is_held();
                self.set_byte(REGISTER_B, value);
                match (held, self.is_held()) {
                    (false, true) => self.show_time(),
                    (true, false) => self.take_time(),
                    _ => {}
                }
            }
            REGISTER_C | REGISTER_D => {}
            _ if TIME_REGISTERS.contains(&register) && !self.is_held() => {
                self.show_time();
                self.set_byte(register, value);
                self.take_time();
            }
            _ => self.set_byte(register, value),
        }
    }

    /// Writes the time of the clock into the fields.
    fn show_time(&mut self) {
        let now = Moment::from_unix(self.clock.unix_seconds().saturating_add(self.offset));
        let (century, year) = (now.year / 100, now.year % 100);
        let small = |value: u16| u8::try_from(value).unwrap_or_default();
        let fields = [
            (SECONDS, now.second),
            (MINUTES, now.minute),
            (DAY_OF_WEEK, now.day_of_week()),
            (DAY, now.day),
            (MONTH, now.month),
            (YEAR, small(year)),
            (CENTURY, small(century)),
        ];
        for (register, value) in fields {
            self.set_byte(register, self.encode(value));
        }
        let hours = if self.byte(REGISTER_B) & B_24_HOURS != 0 {
            self.encode(now.hour)
        } else {
            let (hour, pm) = match now.hour {
                0 => (12, 0),
                hour @ 1..=11 => (hour, 0),
                12 => (12, PM),
                hour => (hour.saturating_sub(12), PM),
            };
            self.encode(hour) | pm
        };
        self.set_byte(HOURS, hours);
    }

    /// Sets the clock to the fields; does nothing if there is no such moment.
    fn take_time(&mut self) {
        let set = self.fields().and_then(Moment::to_unix);
        if let Some(seconds) = set {
            self.offset = seconds.saturating_sub(self.clock.unix_seconds());
        }
    }

    fn fields(&self) -> Option<Moment> {
        let field = |register| self.decode(self.byte(register));
        let hours = self.byte(HOURS);
        let hour = if self.byte(REGISTER_B) & B_24_HOURS != 0 {
            self.decode(hours)?
        } else {
            let hour = self
                .decode(hours & !PM)
                .filter(|hour| (1..=12).contains(hour))?;
            let afternoon = if hours & PM != 0 { 12 } else { 0 };
            (hour % 12).wrapping_add(afternoon)
        };
        let century = field(CENTURY)?;
        Some(Moment {
            year: u16::from(century)
                .wrapping_mul(100)
                .wrapping_add(field(YEAR).filter(|year| *year < 100)?.into()),
            month: field(MONTH)?,
            day: field(DAY)?,
            hour,
            minute: field(MINUTES)?,
            second: field(SECONDS)?,
        })
    }

    /// A number below 100 in the form that register B asks for.
    fn encode(&self, value: u8) -> u8 {
        if self.byte(REGISTER_B) & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    /// `None` if it is no BCD number where one is asked for.
    fn decode(&self, value: u8) -> Option<u8> {
        if self.byte(REGISTER_B) & B_BINARY != 0 {
            return Some(value);
        }
        let (tens, units) = (value >> 4, value & 0xf);
        (tens < 10 && units < 10).then(|| tens.wrapping_mul(10).wrapping_add(units))
    }
}

impl BusDevice for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let len = data.len();
        match (offset, data) {
            // The index cannot be read back on a PC.
            (0, [value]) => *value = 0xff,
            (1, [value]) => *value = self.read_register(self.index),
            (0 | 1, _) => return Err(AccessError::Size(len)),
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            // Bit 7 masks NMIs on a PC.
            (0, &[value]) => self.index = value & 0x7f,
            (1, &[value]) => self.write_register(self.index, value),
            (0 | 1, _) => return Err(AccessError::Size(data.len())),
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
