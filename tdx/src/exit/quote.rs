//! The request half of GetQuote: where the buffer is, and its header.
//!
//! GHCI, GetQuote; the order of the checks decides which error the guest sees. The buffer is shared
//! memory that the guest may change at any time: its header is copied once, and what is decided is
//! decided on the copy.

use tdvmm_arch::addr::{Gpa, GpaRange, PAGE_SIZE};

use super::reply::VmcallStatus;

/// Largest buffer: what Linux guests use, and a bound on what a guest can make the VMM hold.
const MAX_SIZE: u64 = 128 << 10;
const VERSION: u64 = 1;

/// A request for a quote, as the guest made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuoteRequest {
    /// Start of the shared buffer, without the shared bit.
    pub gpa: Gpa,
    /// Its size in bytes.
    pub size: u64,
}

impl QuoteRequest {
    /// The buffer, or what to answer instead.
    ///
    /// # Errors
    ///
    /// The status for the guest.
    pub fn buffer(self) -> Result<GpaRange, VmcallStatus> {
        if self.size == 0 {
            return Err(VmcallStatus::InvalidOperand);
        }
        let range = GpaRange::from_len(self.gpa, self.size).ok_or(VmcallStatus::InvalidOperand)?;
        if !range.is_aligned(PAGE_SIZE) {
            return Err(VmcallStatus::AlignError);
        }
        if self.size > MAX_SIZE {
            Err(VmcallStatus::InvalidOperand)
        } else {
            Ok(range)
        }
    }
}

/// The first 24 bytes of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuoteHeader {
    /// Bytes of the TDREPORT that follows.
    pub in_len: u32,
}

impl QuoteHeader {
    /// Length of the header in bytes.
    pub const LEN: usize = 24;

    /// The header in a copy of the buffer's start, for a buffer of `size` bytes.
    ///
    /// # Errors
    ///
    /// The status for the guest.
    pub fn parse(copy: &[u8; Self::LEN], size: u64) -> Result<Self, VmcallStatus> {
        let [
            v0,
            v1,
            v2,
            v3,
            v4,
            v5,
            v6,
            v7,
            ..,
            i0,
            i1,
            i2,
            i3,
            _,
            _,
            _,
            _,
        ] = *copy;
        let version = u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]);
        let in_len = u32::from_le_bytes([i0, i1, i2, i3]);
        let room = size.saturating_sub(Self::LEN as u64);
        if version == VERSION && u64::from(in_len) <= room {
            Ok(Self { in_len })
        } else {
            Err(VmcallStatus::InvalidOperand)
        }
    }

    /// The header that tells the guest that there is no quoting service. TDVMCALL itself succeeds.
    #[must_use]
    pub fn unavailable(self) -> [u8; Self::LEN] {
        const SERVICE_UNAVAILABLE: u64 = 0x8000_0000_0000_0001;
        let mut header = [0; Self::LEN];
        let fields = [
            &VERSION.to_le_bytes()[..],
            &SERVICE_UNAVAILABLE.to_le_bytes(),
            &self.in_len.to_le_bytes(),
        ];
        for (to, from) in header.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_checks_come_in_the_order_the_guest_expects() {
        let buffer = |gpa, size| {
            QuoteRequest {
                gpa: Gpa(gpa),
                size,
            }
            .buffer()
        };
        assert_eq!(buffer(0x1001, 0), Err(VmcallStatus::InvalidOperand));
        assert_eq!(buffer(0x1001, 0x1000), Err(VmcallStatus::AlignError));
        assert_eq!(buffer(0x1000, 0x1001), Err(VmcallStatus::AlignError));
        assert_eq!(buffer(0x1000, 0x21000), Err(VmcallStatus::InvalidOperand));
        assert_eq!(
            buffer(u64::MAX - 0xfff, 0x2000),
            Err(VmcallStatus::InvalidOperand)
        );
        assert_eq!(
            buffer(0x1000, 0x20000),
            Ok(GpaRange::constant(0x1000, 0x20000))
        );
    }

    #[test]
    fn header_of_another_version_or_with_too_much_input_is_refused() {
        let header = |version: u8, in_len: u32| {
            let mut bytes = [0; QuoteHeader::LEN];
            bytes[0] = version;
            bytes[16..20].copy_from_slice(&in_len.to_le_bytes());
            QuoteHeader::parse(&bytes, 0x2000)
        };
        assert_eq!(header(1, 1024), Ok(QuoteHeader { in_len: 1024 }));
        assert_eq!(
            header(1, 0x2000 - 24),
            Ok(QuoteHeader {
                in_len: 0x2000 - 24
            })
        );
        assert_eq!(header(1, 0x2000 - 23), Err(VmcallStatus::InvalidOperand));
        assert_eq!(header(2, 1024), Err(VmcallStatus::InvalidOperand));
    }

    #[test]
    fn unavailable_answer_has_the_status_and_no_output() {
        let answer = QuoteHeader { in_len: 1024 }.unavailable();
        assert_eq!(answer[..8], 1u64.to_le_bytes());
        assert_eq!(answer[8..16], 0x8000_0000_0000_0001u64.to_le_bytes());
        assert_eq!(answer[16..], [0, 4, 0, 0, 0, 0, 0, 0]);
    }
}
