//! Where RAM lies: one low range from address 0 and, past what fits there, one high range from 4 GiB.
//!
//! The split is a rule of the size alone ([`map::LOW_RAM_END`], [`map::HIGH_RAM_START`]), the same for an
//! ordinary VM and a TD, so that a measurement never depends on a quirk of the layout.

use serde::Serialize;

use crate::addr::PAGE_SIZE;
use crate::{Gpa, GpaRange, map};

/// The least RAM a guest can have: everything that a direct boot places lies below 1 MiB or right at it.
pub const MIN_SIZE: u64 = 1 << 20;

/// The most RAM a guest can have, in bytes (16 TiB). It leaves room for 64-bit PCI windows below 2^46,
/// the least physical address width that TDX hosts have.
pub const MAX_SIZE: u64 = 16 << 40;

/// Why an amount of RAM cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Less than [`MIN_SIZE`].
    #[error("{0} bytes of memory are too few: at least 1 MiB is needed")]
    TooSmall(u64),
    /// More than [`MAX_SIZE`].
    #[error("{0} bytes of memory are too many: at most 16 TiB can be mapped")]
    TooLarge(u64),
    /// Not a multiple of the page size.
    #[error("{0} bytes of memory are not a multiple of 4096")]
    NotPages(u64),
}

/// The RAM of a guest as guest-physical ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RamLayout {
    low: GpaRange,
    high: Option<GpaRange>,
}

impl RamLayout {
    /// Lays out `size` bytes.
    ///
    /// # Errors
    ///
    /// If `size` is not a multiple of 4 KiB between [`MIN_SIZE`] and [`MAX_SIZE`].
    pub const fn new(size: u64) -> Result<Self, LayoutError> {
        if size < MIN_SIZE {
            return Err(LayoutError::TooSmall(size));
        }
        if size > MAX_SIZE {
            return Err(LayoutError::TooLarge(size));
        }
        if !size.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::NotPages(size));
        }
        if size <= map::LOW_RAM_END {
            return Ok(Self {
                low: GpaRange::constant(0, size),
                high: None,
            });
        }
        Ok(Self {
            low: GpaRange::constant(0, map::LOW_RAM_END),
            high: Some(GpaRange::constant(
                map::HIGH_RAM_START,
                size - map::LOW_RAM_END,
            )),
        })
    }

    /// RAM below the PCI hole, from address 0. Never empty.
    #[must_use]
    pub const fn low(&self) -> GpaRange {
        self.low
    }

    /// RAM from 4 GiB up, if there is any.
    #[must_use]
    pub const fn high(&self) -> Option<GpaRange> {
        self.high
    }

    /// All ranges, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = GpaRange> + use<> {
        [Some(self.low), self.high].into_iter().flatten()
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ranges().map(GpaRange::len).sum()
    }

    /// The first address after all RAM.
    #[must_use]
    pub fn top(&self) -> Gpa {
        self.high.unwrap_or(self.low).end()
    }

    /// Whether all of `range` is RAM.
    #[must_use]
    pub fn contains_range(&self, range: GpaRange) -> bool {
        self.ranges().any(|ram| ram.contains_range(range))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn two_gib_lie_below_the_hole_entirely() {
        let ram = RamLayout::new(2 * GIB).unwrap();
        assert_eq!(ram.low(), GpaRange::constant(0, 0x8000_0000));
        assert_eq!(ram.high(), None);
        assert_eq!(ram.top(), Gpa(0x8000_0000));
    }

    #[test]
    fn one_page_past_two_gib_lies_at_four_gib() {
        let ram = RamLayout::new(2 * GIB + PAGE_SIZE).unwrap();
        assert_eq!(
            ram.high(),
            Some(GpaRange::constant(0x1_0000_0000, PAGE_SIZE))
        );
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_by_name() {
        assert_eq!(
            RamLayout::new(MIB - 4096),
            Err(LayoutError::TooSmall(MIB - 4096))
        );
        assert_eq!(RamLayout::new(0), Err(LayoutError::TooSmall(0)));
        assert_eq!(RamLayout::new(MIB + 1), Err(LayoutError::NotPages(MIB + 1)));
        let large = MAX_SIZE + PAGE_SIZE;
        assert_eq!(RamLayout::new(large), Err(LayoutError::TooLarge(large)));
        assert_eq!(
            RamLayout::new(u64::MAX),
            Err(LayoutError::TooLarge(u64::MAX))
        );
    }

    proptest! {
        #[test]
        fn any_size_gives_sorted_disjoint_ranges_that_add_up(
            // Exponent first: uniform sizes would nearly all be above 1 TiB.
            pages in (8u32..=30).prop_flat_map(|bits| (1u64 << bits)..=(1u64 << bits).max((2u64 << bits) - 1).min(1 << 30))
        ) {
            let size = pages * PAGE_SIZE;
            let ram = RamLayout::new(size).unwrap();
            let ranges: Vec<GpaRange> = ram.ranges().collect();
            prop_assert_eq!(ranges[0].start(), Gpa(0));
            prop_assert!(ranges.iter().all(|r| !r.is_empty() && r.is_aligned(PAGE_SIZE)));
            prop_assert!(ranges.windows(2).all(|w| w[0].end() <= w[1].start()));
            prop_assert_eq!(ranges.iter().map(|r| r.len()).sum::<u64>(), size);
            prop_assert_eq!(ram.size(), size);
            prop_assert_eq!(ram.top(), ranges.last().unwrap().end());
            let hole = GpaRange::constant(map::LOW_RAM_END, map::HIGH_RAM_START - map::LOW_RAM_END);
            prop_assert!(ranges.iter().all(|r| !r.overlaps(hole)));
        }
    }
}
