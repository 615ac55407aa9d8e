//! Why a file is not a firmware image that can be launched, each refusal with the offending number.

use tdvmm_arch::{Gpa, GpaRange};
use thiserror::Error;

use super::SectionKind;

/// A file was refused as firmware of a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Smaller than a page, larger than 4 GiB, or no whole number of pages.
    #[error("firmware file has {0:#x} bytes, not a whole number of pages between 1 page and 4 GiB")]
    Size(u64),
    /// The length field of the GUID table does not fit the file.
    #[error("GUID table at file offset {at:#x} claims {len:#x} bytes, which do not fit")]
    GuidTable {
        /// File offset of the length field.
        at: usize,
        /// The claimed length.
        len: u16,
    },
    /// An entry of the GUID table does not fit the table.
    #[error(
        "entry of the GUID table that ends at file offset {end:#x} claims {len:#x} bytes, which do not fit"
    )]
    GuidEntry {
        /// File offset after the entry.
        end: usize,
        /// The claimed length.
        len: u16,
    },
    /// Neither the GUID table nor the legacy pointer leads to a descriptor.
    #[error(
        "no TDX metadata: neither the GUID table nor the pointer at file offset {pointer_at:#x} ({pointer:#x}) leads to a descriptor"
    )]
    NoMetadata {
        /// File offset of the legacy pointer.
        pointer_at: usize,
        /// What the legacy pointer holds.
        pointer: u32,
    },
    /// A store of UEFI variables without code: the volume that the file starts with is as large as it.
    #[error("no TDX metadata: the file is a variable store (VARS) without code")]
    VariablesOnly,
    /// The descriptor's header is wrong.
    #[error("TDX descriptor at file offset {at:#x}")]
    Descriptor {
        /// Where the descriptor was said to be.
        at: u64,
        /// What is wrong with it.
        source: DescriptorError,
    },
    /// One section is wrong by itself.
    #[error("section {index} ({kind})")]
    Section {
        /// Place in the descriptor, from 0.
        index: usize,
        /// Type of the section.
        kind: SectionKind,
        /// What is wrong with it.
        source: SectionError,
    },
    /// The sections do not make an image together.
    #[error("sections do not make a firmware image")]
    Layout(#[source] LayoutError),
    /// The file lacks the variable store that its descriptor speaks of.
    #[error(
        "file of {file:#x} bytes holds CODE only: its descriptor speaks of an image of {image:#x} bytes with the variable store (VARS) in front"
    )]
    CodeOnly {
        /// Bytes in the file.
        file: u64,
        /// Bytes in the image that the descriptor describes.
        image: u64,
    },
}

/// What is wrong with the descriptor's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DescriptorError {
    /// It does not lie in the file.
    #[error("lies outside the file of {file:#x} bytes")]
    OutOfFile {
        /// Bytes in the file.
        file: usize,
    },
    /// It does not start with "TDVF".
    #[error("signature is {0:#010x} instead of \"TDVF\"")]
    Signature(u32),
    /// A version other than 1.
    #[error("version is {0} instead of 1")]
    Version(u32),
    /// Length and number of sections contradict each other, or there is no section.
    #[error("length {length:#x} does not fit {sections} sections of 32 bytes after 16 bytes")]
    Length {
        /// The length field.
        length: u32,
        /// The number of sections.
        sections: u32,
    },
    /// More sections than any image has.
    #[error("{0} sections are more than {max}", max = super::MAX_SECTIONS)]
    TooManySections(u32),
}

/// What is wrong with one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SectionError {
    /// A type that is not defined.
    #[error("type {0} is not known")]
    Kind(u32),
    /// Attribute bits that are not defined, or not for this type, or not together.
    #[error("attributes {0:#x} are not legal for this type")]
    Attributes(u32),
    /// Address or size is not a whole number of pages.
    #[error("memory of {len:#x} bytes at {at} is not page aligned")]
    Unaligned {
        /// Start of the memory.
        at: Gpa,
        /// Bytes of memory.
        len: u64,
    },
    /// The memory wraps or reaches the lowest possible shared bit.
    #[error("memory of {len:#x} bytes at {at} does not lie below the shared bit")]
    Unreachable {
        /// Start of the memory.
        at: Gpa,
        /// Bytes of memory.
        len: u64,
    },
    /// A type that needs memory has none, or the reverse.
    #[error("memory size {0:#x} is not legal for this type")]
    MemorySize(u64),
    /// A type that needs data in the file has none, or the reverse.
    #[error("raw data size {0:#x} is not legal for this type")]
    RawSize(u32),
    /// More data than memory.
    #[error("raw data of {raw:#x} bytes is larger than its memory of {memory:#x} bytes")]
    RawExceedsMemory {
        /// Bytes of data.
        raw: u32,
        /// Bytes of memory.
        memory: u64,
    },
    /// The data does not lie in the file.
    #[error("raw data ends at file offset {end:#x} of a file of {file:#x} bytes")]
    DataOutOfFile {
        /// First offset after the data.
        end: u64,
        /// Bytes in the file.
        file: u64,
    },
}

/// What is wrong with the sections together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Two sections share memory.
    #[error("section {second} overlaps section {first} in the memory {shared}")]
    MemoryOverlap {
        /// Number of the section that comes first in the descriptor.
        first: usize,
        /// Number of the other.
        second: usize,
        /// The memory that both claim.
        shared: GpaRange,
    },
    /// Two sections that are loaded share bytes of the file.
    #[error("section {second} overlaps section {first} from file offset {at:#x}")]
    FileOverlap {
        /// Number of the section that comes first in the descriptor.
        first: usize,
        /// Number of the other.
        second: usize,
        /// First shared offset.
        at: usize,
    },
    /// A type that may come once came again.
    #[error("section {index} is a second {kind}")]
    Duplicate {
        /// Number of the second.
        index: usize,
        /// Its type.
        kind: SectionKind,
    },
    /// No boot firmware volume holds the first instruction.
    #[error("no BFV holds the reset vector at {0}")]
    NoResetVector(Gpa),
    /// Parameters for a payload that the image has no place for.
    #[error("section {index} holds parameters of a payload, but no section holds a payload")]
    OrphanParameters {
        /// Number of the section.
        index: usize,
    },
    /// The sections would add more memory than any image needs.
    #[error("sections add {total:#x} bytes of memory, more than {max:#x}", max = super::MAX_ADDED)]
    TooMuchMemory {
        /// Bytes that all sections add.
        total: u64,
    },
    /// The firmware could not learn its memory.
    #[error("neither a TD_HOB nor a PermMem section tells the firmware its memory")]
    NoMemoryMap,
}
