//! Numbers as hex strings in serialized form: a plan is read by people, and JSON has no hex.

use core::fmt::LowerHex;

use serde::Serializer;

/// For `#[serde(serialize_with = "...")]`: `0x` and lower-case digits, no padding.
///
/// # Errors
///
/// Those of the serializer.
pub(crate) fn serialize<T: LowerHex, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}
