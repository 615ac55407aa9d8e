//! GUIDs as firmware stores them: three little-endian fields, then eight bytes in order.

use core::fmt;

use serde::{Serialize, Serializer};

/// A GUID in its stored (mixed-endian) form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All zero, used as "no owner".
    pub const ZERO: Self = Self([0; 16]);

    /// The GUID written as `a-b-c-dddd-dddddddddddd`, where `rest` is the last two groups in order.
    #[must_use]
    pub const fn new(first: u32, second: u16, third: u16, rest: [u8; 8]) -> Self {
        let a = first.to_le_bytes();
        let b = second.to_le_bytes();
        let c = third.to_le_bytes();
        let [r0, r1, r2, r3, r4, r5, r6, r7] = rest;
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], r0, r1, r2, r3, r4, r5, r6, r7,
        ])
    }

    /// The GUID that is stored as `bytes`.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The stored form.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = self.0;
        let first = u32::from_le_bytes([a0, a1, a2, a3]);
        let second = u16::from_le_bytes([b0, b1]);
        let third = u16::from_le_bytes([c0, c1]);
        write!(f, "{first:08x}-{second:04x}-{third:04x}-")?;
        for (position, byte) in rest.iter().enumerate() {
            if position == 2 {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_is_printed_as_it_is_written_and_stored_mixed_endian() {
        let guid = Guid::new(
            0x96b5_82de,
            0x1fb2,
            0x45f7,
            [0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d],
        );
        assert_eq!(guid.to_string(), "96b582de-1fb2-45f7-baea-a366c55a082d");
        assert_eq!(guid.as_bytes()[..6], [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f]);
        assert_eq!(Guid::from_bytes(*guid.as_bytes()), guid);
    }
}
