//! The rules that hold for the sections of an image together.

use tdvmm_arch::{Gpa, GpaRange};

use super::MAX_ADDED;
use super::error::LayoutError;
use super::section::{Section, SectionKind};

/// Where every processor starts: 16 bytes below 4 GiB.
const RESET_VECTOR: Gpa = Gpa(0xffff_fff0);

pub(super) fn check(sections: &[Section]) -> Result<(), LayoutError> {
    for (position, second) in sections.iter().enumerate() {
        for first in sections.iter().take(position) {
            check_pair(first, second)?;
        }
    }
    let find = |kind| sections.iter().find(|section| section.kind() == kind);
    if let (Some(parameters), None) = (find(SectionKind::PayloadParam), find(SectionKind::Payload))
    {
        let index = parameters.index();
        return Err(LayoutError::OrphanParameters { index });
    }
    let added = sections.iter().filter(|section| section.kind().is_added());
    let total = added.fold(0_u64, |sum, section| {
        sum.saturating_add(section.range().len())
    });
    if total > MAX_ADDED {
        return Err(LayoutError::TooMuchMemory { total });
    }
    let starts = |section: &Section| {
        section.kind() == SectionKind::Bfv && section.range().contains(RESET_VECTOR)
    };
    if !sections.iter().any(starts) {
        return Err(LayoutError::NoResetVector(RESET_VECTOR));
    }
    // TD-Shim: an image without a TD HOB declares its memory itself (static measurement).
    let tells =
        |section: &Section| matches!(section.kind(), SectionKind::TdHob | SectionKind::PermMem);
    if !sections.iter().any(tells) {
        return Err(LayoutError::NoMemoryMap);
    }
    Ok(())
}

fn check_pair(first: &Section, second: &Section) -> Result<(), LayoutError> {
    if first.kind() == second.kind() && !second.kind().may_repeat() {
        return Err(LayoutError::Duplicate {
            index: second.index(),
            kind: second.kind(),
        });
    }
    if let Some(shared) = intersection(first.range(), second.range()) {
        return Err(LayoutError::MemoryOverlap {
            first: first.index(),
            second: second.index(),
            shared,
        });
    }
    // Facts about the image (TD_INFO, TD_PARAMS) may lie inside a volume that is loaded.
    let loaded = first.kind().is_added() && second.kind().is_added();
    let (a, b) = (first.data(), second.data());
    let at = a.start.max(b.start);
    if loaded && at < a.end.min(b.end) {
        return Err(LayoutError::FileOverlap {
            first: first.index(),
            second: second.index(),
            at,
        });
    }
    Ok(())
}

fn intersection(a: GpaRange, b: GpaRange) -> Option<GpaRange> {
    if !a.overlaps(b) {
        return None;
    }
    GpaRange::new(a.start().max(b.start()), a.end().min(b.end()))
}
