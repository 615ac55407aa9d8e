//! What TD-Shim measures into the RTMRs when it boots Linux.
//!
//! | register | events |
//! |---|---|
//! | 0 | the hand-off blocks with their end block; separator |
//! | 1 | separator; the Payload section to its end, unless it is in MRTD; the PayloadParam section to its end |
//! | 2, 3 | none |
//!
//! Source: TD-Shim `td-shim/src/bin/td-shim/main.rs`, `td-shim/src/event_log.rs`.

use sha2::{Digest as _, Sha384};

use crate::image::{Image, SectionKind};
use crate::measure::{Digest, Measure, Region, Rtmr};

/// `EV_SEPARATOR`: four zero bytes.
const SEPARATOR: [u8; 4] = [0; 4];

/// The four registers when Linux is entered, for a TD made of `regions`, which are those of `image`. `None` where the
/// image has no section for the blocks, the kernel or its command line.
#[must_use]
pub fn rtmrs(image: &Image<'_>, regions: &[Region<'_>]) -> Option<[Digest; 4]> {
    let region = |kind| {
        let range = image.section(kind)?.range();
        regions.iter().find(|region| region.range == range)
    };
    let blocks = region(SectionKind::TdHob)?;
    let payload = region(SectionKind::Payload)?;
    let parameters = region(SectionKind::PayloadParam)?;

    let mut registers = [Rtmr::new(); 4];
    let [first, second, ..] = &mut registers;
    first.extend(&Digest::of(blocks.bytes));
    first.extend(&Digest::of(&SEPARATOR));
    second.extend(&Digest::of(&SEPARATOR));
    if payload.measure == Measure::No {
        second.extend(&whole(payload));
    }
    second.extend(&whole(parameters));
    Some(registers.map(|register| register.value()))
}

/// The digest of all of a region's memory: its contents and the zeros after them.
fn whole(region: &Region<'_>) -> Digest {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut hash = Sha384::new_with_prefix(region.bytes);
    let mut left = region
        .range
        .len()
        .saturating_sub(crate::wire::len_u64(region.bytes.len()));
    while left > 0 {
        let now = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        hash.update(ZEROS.get(..now).unwrap_or_default());
        left = left.saturating_sub(crate::wire::len_u64(now));
    }
    Digest::from_bytes(hash.finalize().into())
}
