//! RAM cut into what the VMM has added and what the guest accepts.

use alloc::vec::Vec;

use serde::Serialize;
use tdvmm_arch::addr::LARGE_PAGE_SIZE;
use tdvmm_arch::map::HIGH_RAM_START;
use tdvmm_arch::{Gpa, GpaRange};

use super::HobError;
use crate::image::{Image, Section};

/// EDK2 `OvmfPkg/IntelTdx/TdxHelperLib`: stack of each processor while memory is accepted.
const AP_STACK: u64 = 16 << 10;

/// State of a piece of RAM when the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    /// Added by the VMM, usable at once (EFI_RESOURCE_SYSTEM_MEMORY).
    Added,
    /// To be accepted by the guest (EFI_RESOURCE_MEMORY_UNACCEPTED).
    Unaccepted,
}

impl ResourceKind {
    pub(super) const fn wire(self) -> u32 {
        match self {
            Self::Added => 0,
            Self::Unaccepted => 7,
        }
    }
}

/// A piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Resource {
    /// Its addresses; never empty.
    pub range: GpaRange,
    /// Its state.
    pub kind: ResourceKind,
}

/// `ram` in pieces, ascending. Sections within the mapped image are no RAM and not described.
///
/// # Errors
///
/// [`HobError::Order`] and [`HobError::NotRam`].
pub fn memory_map(image: &Image<'_>, ram: &[GpaRange]) -> Result<Vec<Resource>, HobError> {
    check_order(ram)?;
    let mut added: Vec<&Section> = image
        .sections()
        .iter()
        .filter(|section| section.kind().is_added())
        .filter(|section| !image.mapped_range().contains_range(section.range()))
        .collect();
    added.sort_unstable_by_key(|section| section.range().start());
    for section in &added {
        let range = section.range();
        if !ram.iter().any(|ram| ram.contains_range(range)) {
            return Err(HobError::NotRam {
                index: section.index(),
                kind: section.kind(),
                range,
            });
        }
    }
    let mut map = Vec::new();
    for ram in ram {
        let mut from = ram.start();
        for section in added.iter().filter(|s| ram.contains_range(s.range())) {
            push(
                &mut map,
                from,
                section.range().start(),
                ResourceKind::Unaccepted,
            );
            push(
                &mut map,
                section.range().start(),
                section.range().end(),
                ResourceKind::Added,
            );
            from = section.range().end();
        }
        push(&mut map, from, ram.end(), ResourceKind::Unaccepted);
    }
    Ok(map)
}

fn check_order(ram: &[GpaRange]) -> Result<(), HobError> {
    let mut end = Gpa(0);
    for range in ram {
        if range.start() < end {
            return Err(HobError::Order(*range));
        }
        end = range.end();
    }
    Ok(())
}

fn push(map: &mut Vec<Resource>, start: Gpa, end: Gpa, kind: ResourceKind) {
    let range = GpaRange::new(start, end).filter(|range| !range.is_empty());
    map.extend(range.map(|range| Resource { range, kind }));
}

/// OVMF takes the stacks of all processors from the first unaccepted piece that is large enough,
/// and hangs where there is none.
pub(super) fn check_ap_stacks(map: &[Resource], vcpus: u32) -> Result<(), HobError> {
    if vcpus < 2 {
        return Ok(());
    }
    let needed = u64::from(vcpus)
        .saturating_mul(AP_STACK)
        .next_multiple_of(LARGE_PAGE_SIZE);
    let low = map.iter().filter(|piece| {
        piece.kind == ResourceKind::Unaccepted && piece.range.end() <= Gpa(HIGH_RAM_START)
    });
    let largest = low.map(|piece| piece.range.len()).max().unwrap_or(0);
    if largest < needed {
        return Err(HobError::ApStacks {
            vcpus,
            needed,
            largest,
        });
    }
    Ok(())
}
