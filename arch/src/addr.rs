//! Units and spaces as types: guest-physical addresses, half-open ranges of them, vCPU numbers.
//!
//! A bare `u64` stops at the ABI edge. A [`GpaRange`] is always half-open and can only be built
//! when its end does not wrap, so code that holds one need not check for overflow again.

use core::fmt;

use serde::{Serialize, Serializer};

/// Bytes in the smallest page of the architecture.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes in a large page (one entry of a page directory).
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further on, or `None` where that wraps.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Whether the address is a multiple of `align`, a power of two.
    #[must_use]
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }
}

impl Serialize for Gpa {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A half-open range of guest-physical addresses: `start` belongs to it, `end` does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct GpaRange {
    start: Gpa,
    end: Gpa,
}

impl GpaRange {
    /// The range from `start` to `end`, or `None` where `end` lies before `start`.
    #[must_use]
    pub const fn new(start: Gpa, end: Gpa) -> Option<Self> {
        if end.0 < start.0 {
            None
        } else {
            Some(Self { start, end })
        }
    }

    /// The `len` bytes from `start`, or `None` where they wrap.
    #[must_use]
    pub const fn from_len(start: Gpa, len: u64) -> Option<Self> {
        match start.0.checked_add(len) {
            Some(end) => Some(Self {
                start,
                end: Gpa(end),
            }),
            None => None,
        }
    }

    /// A range from constants: a wrapped one does not compile when used in a `const`.
    ///
    /// # Panics
    ///
    /// If `start + len` wraps.
    #[must_use]
    pub const fn constant(start: u64, len: u64) -> Self {
        match Self::from_len(Gpa(start), len) {
            Some(range) => range,
            None => panic!("a constant range wraps"),
        }
    }

    /// The first address of the range.
    #[must_use]
    pub const fn start(self) -> Gpa {
        self.start
    }

    /// The first address after the range.
    #[must_use]
    pub const fn end(self) -> Gpa {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether the range holds no address.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end.0 == self.start.0
    }

    /// Whether `gpa` lies in the range.
    #[must_use]
    pub const fn contains(self, gpa: Gpa) -> bool {
        self.start.0 <= gpa.0 && gpa.0 < self.end.0
    }

    /// Whether all of `other` lies in this range.
    #[must_use]
    pub const fn contains_range(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two ranges share an address. An empty range shares none.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && self.start.0 < other.end.0
            && other.start.0 < self.end.0
    }

    /// Whether both ends are multiples of `align`, a power of two.
    #[must_use]
    pub const fn is_aligned(self, align: u64) -> bool {
        self.start.is_aligned(align) && self.end.is_aligned(align)
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end.0)
    }
}

/// The number of a vCPU, counted from 0. It is the APIC id too: topology is laid out so that the
/// two are the same (see `cpuid`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_whose_end_wraps_is_refused() {
        assert_eq!(GpaRange::from_len(Gpa(u64::MAX), 2), None);
        assert_eq!(GpaRange::new(Gpa(2), Gpa(1)), None);
    }

    #[test]
    fn ranges_that_only_touch_do_not_overlap() {
        let low = GpaRange::constant(0, 0x1000);
        let high = GpaRange::constant(0x1000, 0x1000);
        assert!(!low.overlaps(high));
        assert!(low.overlaps(GpaRange::constant(0xfff, 1)));
        assert!(!low.overlaps(GpaRange::constant(0x800, 0)));
    }

    #[test]
    fn end_of_a_range_is_not_in_it() {
        let range = GpaRange::constant(0x1000, 0x1000);
        assert!(range.contains(Gpa(0x1000)));
        assert!(range.contains(Gpa(0x1fff)));
        assert!(!range.contains(Gpa(0x2000)));
    }
}
