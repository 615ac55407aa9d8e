//! Recipes for firmware: a legal image, store or kernel, and a few changes to it, so that signatures,
//! GUIDs and lengths are right where a change does not touch them.
//!
//! The folder is used twice: by the fuzz targets, and by the test that replays their corpus.

pub mod boot;
pub mod image;
pub mod reasons;
pub mod store;
pub mod vmlinux;

use arbitrary::{Result, Unstructured};

/// A number of the kind that breaks parsers: small, of whole pages, near a limit, or any.
fn interesting(u: &mut Unstructured<'_>, file: u64) -> Result<u64> {
    let small = i64::from(u.arbitrary::<i8>()?);
    let base = match u.int_in_range(0..=9)? {
        0 => 0,
        1 => file,
        2 => 1 << 32,
        3 => 1 << 47,
        4 => 1 << 30,
        5 => 0xffff_ffff,
        6 => u64::MAX,
        7 => u64::from(u.arbitrary::<u16>()?) << 12,
        8 => u64::from(u.arbitrary::<u32>()?),
        _ => u.arbitrary()?,
    };
    Ok(if u.arbitrary()? {
        base
    } else {
        base.wrapping_add_signed(small)
    })
}

/// Writes as much of `value` as fits at `at`; a place beyond the end is left alone.
fn put(file: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = at
        .checked_add(value.len())
        .and_then(|end| file.get_mut(at..end))
    {
        field.copy_from_slice(value);
    }
}
