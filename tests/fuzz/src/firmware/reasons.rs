//! A name for every way in which parsing can end. The matches name each variant, so that a new one
//! does not compile before it has a name here, and the corpus is not complete before it reaches it.

use tdvmm_firmware::image::{DescriptorError, LayoutError, ParseError, SectionError};
use tdvmm_firmware::varstore::VarStoreError;

/// Every name that [`of_image`] gives.
pub const IMAGE: &[&str] = &[
    "legal",
    "size",
    "guid table",
    "guid entry",
    "no metadata",
    "variables only",
    "code only",
    "descriptor out of file",
    "descriptor signature",
    "descriptor version",
    "descriptor length",
    "too many sections",
    "section type",
    "section attributes",
    "section unaligned",
    "section unreachable",
    "section memory size",
    "section raw size",
    "section raw exceeds memory",
    "section data out of file",
    "memory overlap",
    "file overlap",
    "duplicate",
    "no reset vector",
    "orphan parameters",
    "too much memory",
    "no memory map",
];

/// How parsing an image ended.
#[must_use]
pub const fn of_image<T>(result: &Result<T, ParseError>) -> &'static str {
    let Err(error) = result else {
        return "legal";
    };
    match error {
        ParseError::Size(_) => "size",
        ParseError::GuidTable { .. } => "guid table",
        ParseError::GuidEntry { .. } => "guid entry",
        ParseError::NoMetadata { .. } => "no metadata",
        ParseError::VariablesOnly => "variables only",
        ParseError::CodeOnly { .. } => "code only",
        ParseError::Descriptor { source, .. } => match source {
            DescriptorError::OutOfFile { .. } => "descriptor out of file",
            DescriptorError::Signature(_) => "descriptor signature",
            DescriptorError::Version(_) => "descriptor version",
            DescriptorError::Length { .. } => "descriptor length",
            DescriptorError::TooManySections(_) => "too many sections",
        },
        ParseError::Section { source, .. } => match source {
            SectionError::Kind(_) => "section type",
            SectionError::Attributes(_) => "section attributes",
            SectionError::Unaligned { .. } => "section unaligned",
            SectionError::Unreachable { .. } => "section unreachable",
            SectionError::MemorySize(_) => "section memory size",
            SectionError::RawSize(_) => "section raw size",
            SectionError::RawExceedsMemory { .. } => "section raw exceeds memory",
            SectionError::DataOutOfFile { .. } => "section data out of file",
        },
        ParseError::Layout(source) => match source {
            LayoutError::MemoryOverlap { .. } => "memory overlap",
            LayoutError::FileOverlap { .. } => "file overlap",
            LayoutError::Duplicate { .. } => "duplicate",
            LayoutError::NoResetVector(_) => "no reset vector",
            LayoutError::OrphanParameters { .. } => "orphan parameters",
            LayoutError::TooMuchMemory { .. } => "too much memory",
            LayoutError::NoMemoryMap => "no memory map",
        },
    }
}

/// Every name that [`of_store`] gives.
pub const STORE: &[&str] = &[
    "legal",
    "not a volume",
    "volume size",
    "checksum",
    "format",
    "store",
    "variable",
    "garbage",
];

/// How parsing a store of variables ended.
#[must_use]
pub const fn of_store<T>(result: &Result<T, VarStoreError>) -> &'static str {
    let Err(error) = result else {
        return "legal";
    };
    match error {
        VarStoreError::NotAVolume => "not a volume",
        VarStoreError::VolumeSize { .. } => "volume size",
        VarStoreError::Checksum(_) => "checksum",
        VarStoreError::Format(_) => "format",
        VarStoreError::Store { .. } => "store",
        VarStoreError::Variable { .. } => "variable",
        VarStoreError::Garbage { .. } => "garbage",
    }
}
