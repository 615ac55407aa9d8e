//! Which pages of a TD are shared: one bit for each page of memory, and a generation number.
//!
//! Read without a lock by every device ([`PageState`]), written by [`super::convert`] alone. The protocol
//! between the two is in ARCHITECTURE.md, "Page states".

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tdvmm_arch::GpaRange;
use tdvmm_arch::addr::PAGE_SIZE;

const BITS: u64 = u64::BITS as u64;

/// The states of all pages. All are private at first.
#[derive(Debug)]
pub struct PageBits {
    ranges: Vec<RangeBits>,
    generation: AtomicU64,
}

#[derive(Debug)]
struct RangeBits {
    range: GpaRange,
    /// Bit set: shared. The last word may have bits without a page.
    shared: Box<[AtomicU64]>,
}

impl PageBits {
    /// All pages of `ranges`, private.
    pub fn new(ranges: impl IntoIterator<Item = GpaRange>) -> Self {
        let bits = |range: GpaRange| {
            let words = (range.len() / PAGE_SIZE).div_ceil(BITS);
            RangeBits {
                range,
                shared: (0..words).map(|_| AtomicU64::new(0)).collect(),
            }
        };
        Self {
            ranges: ranges.into_iter().map(bits).collect(),
            generation: AtomicU64::new(0),
        }
    }

    /// Marks the pages of `range` private and raises the generation; pages of no memory are left out.
    ///
    /// The bits change before the number does: who sees the old number and looks at the bits later is right
    /// in either case, and who sees the new number sees the bits.
    pub fn mark_private(&self, range: GpaRange) {
        self.for_each_word(range, |word, mask| {
            word.fetch_and(!mask, Ordering::AcqRel);
        });
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Marks the pages of `range` shared.
    pub fn mark_shared(&self, range: GpaRange) {
        self.for_each_word(range, |word, mask| {
            word.fetch_or(mask, Ordering::AcqRel);
        });
    }

    /// Whether all of `range` is memory and shared.
    pub fn is_shared(&self, range: Range<u64>) -> bool {
        let Some(of) = self
            .ranges
            .iter()
            .find(|of| of.range.start().0 <= range.start && range.end <= of.range.end().0)
        else {
            return false;
        };
        let mut all = true;
        of.for_each_word(range, |word, mask| {
            all &= word.load(Ordering::Acquire) & mask == mask;
        });
        all
    }

    /// Whether any page of `range` is memory and shared.
    pub fn has_shared(&self, range: GpaRange) -> bool {
        let mut any = false;
        self.for_each_word(range, |word, mask| {
            any |= word.load(Ordering::Acquire) & mask != 0;
        });
        any
    }

    /// The number that every conversion to private raises.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn for_each_word(&self, range: GpaRange, mut act: impl FnMut(&AtomicU64, u64)) {
        for of in &self.ranges {
            let start = range.start().0.max(of.range.start().0);
            let end = range.end().0.min(of.range.end().0);
            if start < end {
                of.for_each_word(start..end, &mut act);
            }
        }
    }
}

impl RangeBits {
    /// Calls `act` with each word that has bits of `range`, which lies in this one, and those bits.
    fn for_each_word(&self, range: Range<u64>, mut act: impl FnMut(&AtomicU64, u64)) {
        let start = self.range.start().0;
        let mut page = (range.start - start) / PAGE_SIZE;
        let end = (range.end - start).div_ceil(PAGE_SIZE);
        while page < end {
            let first = page % BITS;
            let count = (BITS - first).min(end - page);
            let mask = (u64::MAX >> (BITS - count)) << first;
            let word = usize::try_from(page / BITS)
                .ok()
                .and_then(|at| self.shared.get(at));
            if let Some(word) = word {
                act(word, mask);
            }
            page += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LOW: GpaRange = GpaRange::constant(0, 200 * PAGE_SIZE);
    const HIGH: GpaRange = GpaRange::constant(1 << 32, 70 * PAGE_SIZE);

    fn page_range(first: u64, count: u64) -> GpaRange {
        GpaRange::constant(first * PAGE_SIZE, count * PAGE_SIZE)
    }

    #[test]
    fn memory_starts_private_and_what_is_no_memory_stays_so() {
        let bits = PageBits::new([LOW, HIGH]);
        assert!(!bits.is_shared(0..1));
        bits.mark_shared(GpaRange::constant(0, 1 << 33));
        assert!(bits.is_shared(0..200 * PAGE_SIZE));
        assert!(!bits.is_shared(0..200 * PAGE_SIZE + 1));
        assert!(bits.is_shared((1 << 32) + 5..(1 << 32) + 70 * PAGE_SIZE));
        assert!(!bits.is_shared(3 << 30..(3 << 30) + 1));
    }

    #[test]
    fn only_conversion_to_private_raises_the_generation() {
        let bits = PageBits::new([LOW]);
        bits.mark_shared(page_range(3, 2));
        assert_eq!(bits.generation(), 0);
        bits.mark_private(page_range(3, 1));
        assert_eq!(bits.generation(), 1);
        assert!(!bits.is_shared(3 * PAGE_SIZE..4 * PAGE_SIZE));
        assert!(bits.is_shared(4 * PAGE_SIZE..5 * PAGE_SIZE));
    }

    proptest! {
        #[test]
        fn bits_agree_with_a_set_of_pages(
            steps in proptest::collection::vec((any::<bool>(), 0u64..200, 1u64..130), 1..40),
            asked in (0u64..200, 1u64..130),
        ) {
            let bits = PageBits::new([LOW]);
            let mut set = BTreeSet::new();
            for (share, first, count) in steps {
                let pages = (first..first + count).filter(|page| *page < 200);
                if share {
                    bits.mark_shared(page_range(first, count));
                    set.extend(pages);
                } else {
                    bits.mark_private(page_range(first, count));
                    pages.for_each(|page| { set.remove(&page); });
                }
            }
            let (first, count) = asked;
            let expected = (first..first + count).all(|page| set.contains(&page));
            let range = page_range(first, count);
            prop_assert_eq!(bits.is_shared(range.start().0..range.end().0), expected);
        }
    }
}
