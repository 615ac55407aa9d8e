//! One section of the descriptor: its wire form, and the rules that hold for it alone.
//!
//! Source: Intel TDX Virtual Firmware Design Guide, "TDVF descriptor"; TD-Shim specification,
//! "TD-Shim metadata", for the types from 4 on.

use core::fmt;
use core::ops::Range;

use serde::{Serialize, Serializer};
use tdvmm_arch::addr::PAGE_SIZE;
use tdvmm_arch::{Gpa, GpaRange};

use super::error::SectionError;
use crate::measure::Measure;
use crate::wire;

/// Bytes of a section entry.
pub(super) const ENTRY_LEN: usize = 32;

/// Attribute bit: the content is extended into MRTD.
const MR_EXTEND: u32 = 1 << 0;
/// Attribute bit: the memory is not added before the TD runs; the guest accepts it.
const PAGE_AUG: u32 = 1 << 1;

/// Private memory ends here at the latest: the shared bit is bit 47 of a TD with 48-bit addresses.
const PRIVATE_END: Gpa = Gpa(1 << 47);

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SectionKind {
    /// Boot firmware volume: the code, with the reset vector.
    Bfv,
    /// Configuration firmware volume: the UEFI variables.
    Cfv,
    /// Where the VMM puts the hand-off blocks.
    TdHob,
    /// Zero pages that the firmware works in before it has accepted memory.
    TempMem,
    /// Memory that the guest accepts itself, declared by the image.
    PermMem,
    /// TD-Shim: the kernel or executable to start.
    Payload,
    /// TD-Shim: the kernel's command line.
    PayloadParam,
    /// TD-Shim: facts about the image, not loaded.
    TdInfo,
    /// TD-Shim: TD parameters, not loaded.
    TdParams,
    /// A type that is not defined; occurs in errors only.
    Unknown(u32),
}

impl From<u32> for SectionKind {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Bfv,
            1 => Self::Cfv,
            2 => Self::TdHob,
            3 => Self::TempMem,
            4 => Self::PermMem,
            5 => Self::Payload,
            6 => Self::PayloadParam,
            7 => Self::TdInfo,
            8 => Self::TdParams,
            other => Self::Unknown(other),
        }
    }
}

impl SectionKind {
    /// Whether pages of this type are added to the TD before it runs.
    #[must_use]
    pub const fn is_added(self) -> bool {
        matches!(
            self,
            Self::Bfv
                | Self::Cfv
                | Self::TdHob
                | Self::TempMem
                | Self::Payload
                | Self::PayloadParam
        )
    }

    /// Whether an image may have more than one section of this type.
    pub(super) const fn may_repeat(self) -> bool {
        matches!(self, Self::Bfv | Self::Cfv | Self::TempMem | Self::PermMem)
    }

    /// Whether the type may, must or must not bring data in the file.
    const fn raw_data(self) -> Presence {
        match self {
            Self::Bfv | Self::Cfv => Presence::Required,
            Self::TdHob | Self::TempMem | Self::PermMem => Presence::Forbidden,
            _ => Presence::Optional,
        }
    }

    /// Whether a section of this type may have these attributes. Whether the others are measured is the
    /// image's choice, and done as it says.
    const fn allows(self, attributes: u32) -> bool {
        match self {
            // A measured TD HOB would tie MRTD to the size of the guest's memory.
            Self::TdHob | Self::TdInfo | Self::TdParams | Self::Unknown(_) => attributes == 0,
            // Without the bit it would have to be added, which no image asks for.
            Self::PermMem => attributes == PAGE_AUG,
            _ => attributes & !MR_EXTEND == 0,
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Bfv => "BFV",
            Self::Cfv => "CFV",
            Self::TdHob => "TD_HOB",
            Self::TempMem => "TempMem",
            Self::PermMem => "PermMem",
            Self::Payload => "Payload",
            Self::PayloadParam => "PayloadParam",
            Self::TdInfo => "TD_INFO",
            Self::TdParams => "TD_PARAMS",
            Self::Unknown(number) => return write!(f, "type {number}"),
        };
        f.pad(name)
    }
}

impl Serialize for SectionKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
    Forbidden,
}

/// A section that has passed every check that concerns it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    index: usize,
    kind: SectionKind,
    data: Range<usize>,
    range: GpaRange,
    attributes: u32,
}

impl Section {
    /// Place in the descriptor, from 0: the order in which sections are loaded and measured.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// What it is for.
    #[must_use]
    pub const fn kind(&self) -> SectionKind {
        self.kind
    }

    /// Its bytes of the file; empty where it has none.
    #[must_use]
    pub fn data(&self) -> Range<usize> {
        self.data.clone()
    }

    /// Its memory; empty for types that are not loaded.
    #[must_use]
    pub const fn range(&self) -> GpaRange {
        self.range
    }

    /// The attribute bits: 0 extended into MRTD, 1 accepted by the guest.
    #[must_use]
    pub const fn attributes(&self) -> u32 {
        self.attributes
    }

    /// Whether its content goes into MRTD.
    #[must_use]
    pub const fn measure(&self) -> Measure {
        if self.attributes & MR_EXTEND != 0 {
            Measure::Yes
        } else {
            Measure::No
        }
    }
}

/// The entry as it stands in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) data_offset: u32,
    pub(super) raw_size: u32,
    pub(super) address: u64,
    pub(super) memory_size: u64,
    pub(super) kind: SectionKind,
    pub(super) attributes: u32,
}

impl Entry {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            data_offset: wire::u32_at(bytes, 0)?,
            raw_size: wire::u32_at(bytes, 4)?,
            address: wire::u64_at(bytes, 8)?,
            memory_size: wire::u64_at(bytes, 16)?,
            kind: wire::u32_at(bytes, 24)?.into(),
            attributes: wire::u32_at(bytes, 28)?,
        })
    }

    /// First file offset after the data; 0 where there is none.
    pub(super) const fn data_end(&self) -> u64 {
        if self.raw_size == 0 {
            0
        } else {
            (self.data_offset as u64).saturating_add(self.raw_size as u64)
        }
    }

    /// Applies every rule that concerns this section alone, but for the bounds of the file.
    pub(super) fn check(&self) -> Result<GpaRange, SectionError> {
        if let SectionKind::Unknown(number) = self.kind {
            return Err(SectionError::Kind(number));
        }
        if !self.kind.allows(self.attributes) {
            return Err(SectionError::Attributes(self.attributes));
        }
        let (at, len) = (Gpa(self.address), self.memory_size);
        let has_memory = self.kind.is_added() || self.kind == SectionKind::PermMem;
        if has_memory != (len != 0) {
            return Err(SectionError::MemorySize(len));
        }
        if !at.is_aligned(PAGE_SIZE) || !Gpa(len).is_aligned(PAGE_SIZE) {
            return Err(SectionError::Unaligned { at, len });
        }
        let range = GpaRange::from_len(at, len)
            .filter(|range| range.end() <= PRIVATE_END)
            .ok_or(SectionError::Unreachable { at, len })?;
        let legal = match self.kind.raw_data() {
            Presence::Required => self.raw_size != 0,
            Presence::Optional => true,
            Presence::Forbidden => self.raw_size == 0,
        };
        if !legal {
            return Err(SectionError::RawSize(self.raw_size));
        }
        if has_memory && u64::from(self.raw_size) > len {
            return Err(SectionError::RawExceedsMemory {
                raw: self.raw_size,
                memory: len,
            });
        }
        Ok(range)
    }

    /// The checked section, where its data lies in a file of `file` bytes.
    pub(super) fn place(
        &self,
        index: usize,
        range: GpaRange,
        file: u64,
    ) -> Result<Section, SectionError> {
        let end = self.data_end();
        if end > file {
            return Err(SectionError::DataOutOfFile { end, file });
        }
        let data = if self.raw_size == 0 {
            0..0
        } else {
            let start = self.data_offset as usize;
            start..start.saturating_add(self.raw_size as usize)
        };
        Ok(Section {
            index,
            kind: self.kind,
            data,
            range,
            attributes: self.attributes,
        })
    }
}
