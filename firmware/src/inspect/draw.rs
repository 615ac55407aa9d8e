//! The memory map as text, to scale: sections that lie near each other share one scale, and what
//! lies between such groups is only told.
//!
//! ```text
//! 0x800000 to 0x820000, a column is 2 KiB
//! |############----====--==----################################| 128 KiB
//! ```

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};

use super::{Hex, SectionReport};

/// Columns of a full bar.
const WIDTH: u64 = 64;
/// Sections further apart than this are not drawn on one scale.
const NEAR: u64 = 16 << 20;

/// Draws all sections that have memory, one bar each under the scale of their group.
pub(super) fn memory(f: &mut fmt::Formatter<'_>, sections: &[SectionReport]) -> fmt::Result {
    let mut placed: Vec<&SectionReport> = sections.iter().filter(|s| s.memory_size != 0).collect();
    placed.sort_by_key(|section| section.gpa);
    let mut rest = &placed[..];
    let mut previous_end: Option<u64> = None;
    while let Some(first) = rest.first() {
        let (group, others) = rest.split_at(group_len(rest));
        let start = first.gpa.0;
        if let Some(between) = previous_end.and_then(|end| start.checked_sub(end)) {
            writeln!(f, "  ... {} in between", Size(between))?;
        }
        let end = group.last().map_or(start, |last| end(last));
        draw_group(f, group, start, end)?;
        previous_end = Some(end);
        rest = others;
    }
    Ok(())
}

fn end(section: &SectionReport) -> u64 {
    section.gpa.0.saturating_add(section.memory_size)
}

/// How many sections from the first on lie near enough to each other.
fn group_len(sections: &[&SectionReport]) -> usize {
    let near = |pair: &&[&SectionReport]| match pair {
        [a, b] => b.gpa.0.saturating_sub(end(a)) <= NEAR,
        _ => false,
    };
    sections
        .windows(2)
        .take_while(near)
        .count()
        .saturating_add(1)
}

fn draw_group(
    f: &mut fmt::Formatter<'_>,
    group: &[&SectionReport],
    start: u64,
    end_of_group: u64,
) -> fmt::Result {
    let extent = end_of_group.saturating_sub(start);
    // A column stands for a power of two, so that the scale can be named.
    let column = extent.div_ceil(WIDTH).next_power_of_two().max(0x1000);
    let columns = extent.div_ceil(column);
    writeln!(
        f,
        "  {} to {}, a column is {}",
        Hex(start),
        Hex(end_of_group),
        Size(column)
    )?;
    for section in group {
        let from = section.gpa.0.saturating_sub(start);
        let to = end(section).saturating_sub(start);
        let bar = bar(from, to, column, columns, mark(section));
        writeln!(
            f,
            "  |{bar}| {} {}, {}",
            section.index,
            section.kind,
            Size(section.memory_size)
        )?;
    }
    Ok(())
}

/// Measured, loaded, or left to the guest.
fn mark(section: &SectionReport) -> char {
    match (section.added, section.extended) {
        (true, true) => '#',
        (true, false) => '=',
        (false, _) => '~',
    }
}

/// Every column that the section touches is marked, so that none is too small to be seen.
fn bar(from: u64, to: u64, column: u64, columns: u64, mark: char) -> String {
    let mut text = String::new();
    for number in 0..columns {
        let begins = number.saturating_mul(column);
        let ends = begins.saturating_add(column);
        let touched = from < ends && begins < to;
        text.push(if touched { mark } else { ' ' });
    }
    text
}

/// A number of bytes in the largest unit that divides it.
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        let mut text = String::new();
        match units
            .iter()
            .find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift)
        {
            Some((shift, unit)) => write!(text, "{} {unit}", self.0 >> shift)?,
            None => write!(text, "{} bytes", self.0)?,
        }
        f.pad(&text)
    }
}
