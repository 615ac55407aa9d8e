//! What late I/O brought back of private memory, given up once for many chains.
//!
//! Chains of a hostile driver all name the same gigabytes, of which every other page may be private, and each run of
//! private pages costs a system call. So what several chains name is given up together.

use std::ops::Range;

use super::chain::Chain;

/// As [`Chain::check_after_io`] for chains of one queue that are given up with it.
pub(super) fn give_up<'a>(chains: impl Iterator<Item = &'a Chain>) {
    let mut ranges = Vec::new();
    let mut view = None;
    for chain in chains {
        ranges.extend(chain.no_longer_shared());
        view = Some(chain.view());
    }
    let Some(view) = view else { return };
    for range in joined(ranges) {
        view.discard_private(range);
    }
}

/// The same bytes in as few ranges as there can be.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let meets = next.start <= last.end;
        if meets {
            last.end = last.end.max(next.end);
        }
        meets
    });
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn joined_ranges_are_the_same_bytes_and_do_not_meet(
            parts in prop::collection::vec((0u64..200, 1u64..20), 0..40),
        ) {
            let ranges: Vec<_> = parts.iter().map(|(start, len)| *start..start + len).collect();
            let joined = joined(ranges.clone());
            for byte in 0..230 {
                let is_in = |ranges: &[Range<u64>]| ranges.iter().any(|range| range.contains(&byte));
                prop_assert_eq!(is_in(&ranges), is_in(&joined));
            }
            prop_assert!(joined.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
