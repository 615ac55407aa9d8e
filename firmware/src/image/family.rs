//! Which firmware an image is.
//!
//! Nothing in a descriptor names its maker, so this goes by what only one of them does. The result
//! selects rules of the hand-off (limits of the TD HOB, how a kernel is handed over), never a check.

use core::fmt;

use serde::Serialize;

use super::locate::{FoundBy, GuidEntry, legacy_pointer};
use super::section::{Section, SectionKind};
use crate::guid::Guid;
use crate::wire;

/// EDK2 `gEfiSystemNvDataFvGuid`: the file system of a volume that holds UEFI variables.
const VARIABLE_VOLUME: Guid = Guid::new(
    0xfff1_2b8d,
    0x7696,
    0x4c8b,
    [0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50],
);
/// EDK2 `OvmfPkg/ResetVector`: the entry for processors of SEV-ES guests, in every OVMF since 2021.
const OVMF_RESET_BLOCK: Guid = Guid::new(
    0x00f7_71de,
    0x1a7e,
    0x4fcb,
    [0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e],
);
const VOLUME_SIGNATURE: [u8; 4] = *b"_FVH";

/// The firmware project that an image comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Family {
    /// EDK2's OVMF with TDX support (TDVF).
    #[serde(rename = "OVMF")]
    Ovmf,
    /// TD-Shim and what is built from it.
    #[serde(rename = "TD-Shim")]
    TdShim,
    /// Launchable, but by nobody known here.
    #[serde(rename = "unknown")]
    Unknown,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ovmf => "OVMF",
            Self::TdShim => "TD-Shim",
            Self::Unknown => "unknown",
        })
    }
}

pub(super) fn recognise(
    file: &[u8],
    found_by: FoundBy,
    table: &[GuidEntry],
    sections: &[Section],
) -> Family {
    let shim_only = |section: &Section| {
        !matches!(
            section.kind(),
            SectionKind::Bfv | SectionKind::Cfv | SectionKind::TdHob | SectionKind::TempMem
        )
    };
    let pointer_works = found_by == FoundBy::Pointer || legacy_pointer(file).is_some();
    if pointer_works || sections.iter().any(shim_only) {
        return Family::TdShim;
    }
    let stores_variables = |section: &Section| {
        section.kind() == SectionKind::Cfv
            && file.get(section.data()).is_some_and(is_variable_store)
    };
    let has_reset_block = table.iter().any(|entry| entry.guid == OVMF_RESET_BLOCK);
    if has_reset_block || sections.iter().any(stores_variables) {
        Family::Ovmf
    } else {
        Family::Unknown
    }
}

/// Whether the bytes start with a firmware volume for UEFI variables.
pub(crate) fn is_variable_store(bytes: &[u8]) -> bool {
    wire::array(bytes, 16) == Some(*VARIABLE_VOLUME.as_bytes())
        && wire::array(bytes, 40) == Some(VOLUME_SIGNATURE)
}
