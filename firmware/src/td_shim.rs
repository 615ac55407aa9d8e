//! Direct boot by TD-Shim: the kernel and its command line go into sections of the image.
//!
//! TD-Shim makes the zero page itself and knows no initramfs: one that belongs to the kernel has to
//! be built into it. The kernel is either a bzImage, copied as it is, or the segments of a vmlinux
//! laid out at their physical addresses, with the address of its 64-bit entry.
//! Source: TD-Shim `td-shim/src/bin/td-shim/linux/boot.rs`, `td-shim-interface`.

mod events;

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use tdvmm_arch::acpi::AcpiTables;
use tdvmm_arch::{Gpa, GpaRange};
use thiserror::Error;

use crate::fwcfg::setup_len;
use crate::image::{Image, Section, SectionKind};
use crate::wire;

pub use events::rtmrs;

/// The form of the kernel in the Payload section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadInfo {
    /// A bzImage.
    BzImage,
    /// The memory of a vmlinux, which is entered here.
    RawVmlinux {
        /// The 64-bit entry.
        entry: Gpa,
    },
}

impl PayloadInfo {
    /// The wire form: type, a reserved word, entry. The specification's text numbers the types
    /// differently; this is what the code reads.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let (kind, entry) = match self {
            Self::BzImage => (1_u32, 0),
            Self::RawVmlinux { entry } => (2, entry.0),
        };
        let [k0, k1, k2, k3] = kind.to_le_bytes();
        let [e0, e1, e2, e3, e4, e5, e6, e7] = entry.to_le_bytes();
        [k0, k1, k2, k3, 0, 0, 0, 0, e0, e1, e2, e3, e4, e5, e6, e7]
    }
}

/// What goes into the sections of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectBoot<'a> {
    /// For the hand-off blocks.
    pub info: PayloadInfo,
    /// For the Payload section.
    pub payload: Cow<'a, [u8]>,
    /// For the PayloadParam section: the command line with a NUL.
    pub parameters: Vec<u8>,
}

/// Files that this image cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DirectBootError {
    /// The image takes no payload.
    #[error("the firmware image has no section for {0}")]
    NoSection(&'static str),
    /// The image brings its own.
    #[error("the firmware image brings a payload of its own, so it cannot take a kernel")]
    Occupied,
    /// TD-Shim's contract has no initramfs.
    #[error("TD-Shim takes no separate initramfs: build it into the kernel")]
    Initramfs,
    /// Neither bzImage nor vmlinux.
    #[error("the kernel is neither a bzImage nor an x86-64 ELF file with segments")]
    Format,
    /// The kernel is larger than its section.
    #[error("kernel of {len:#x} bytes does not fit the Payload section of {room:#x} bytes")]
    KernelTooLong {
        /// Bytes of the kernel.
        len: usize,
        /// Bytes of the section.
        room: u64,
    },
    /// The command line is larger than its section.
    #[error(
        "command line of {len:#x} bytes with its NUL does not fit the PayloadParam section of {room:#x} bytes"
    )]
    CmdlineTooLong {
        /// Bytes with the NUL.
        len: usize,
        /// Bytes of the section.
        room: u64,
    },
    /// A command line that would end early.
    #[error("kernel command line holds a NUL at byte {0}")]
    Nul(usize),
    /// A segment of a vmlinux that lies elsewhere, or an entry that does.
    #[error("vmlinux needs memory at {at}, the Payload section is {section}")]
    Elsewhere {
        /// Address needed.
        at: Gpa,
        /// The section.
        section: GpaRange,
    },
    /// Segments that take more memory together than there is, so that some of them overlap.
    #[error("the segments of the vmlinux overlap, at the latest with segment {0}")]
    Overlap(usize),
    /// A segment whose bytes the file does not have.
    #[error("segment {0} of the vmlinux does not lie in the file")]
    Segment(usize),
}

/// The contents of the sections that start `kernel` with `cmdline`.
///
/// A bzImage is borrowed. A vmlinux is laid out in memory of its own: however small its file is, that
/// reaches from the start of the Payload section to the end of the last byte of a segment, so it has at
/// most the section's size, which [`MAX_ADDED`] bounds.
///
/// [`MAX_ADDED`]: crate::image::MAX_ADDED
///
/// # Errors
///
/// [`DirectBootError`].
pub fn direct_boot<'a>(
    image: &Image<'_>,
    kernel: &'a [u8],
    cmdline: &str,
    initramfs: Option<&[u8]>,
) -> Result<DirectBoot<'a>, DirectBootError> {
    let payload = section(image, SectionKind::Payload, "a payload")?;
    let parameters = section(image, SectionKind::PayloadParam, "a command line")?;
    if initramfs.is_some() {
        return Err(DirectBootError::Initramfs);
    }
    let parameters = terminated(cmdline, parameters.range().len())?;
    let (info, payload) = if setup_len(kernel) != 0 {
        let (len, room) = (kernel.len(), payload.range().len());
        if wire::len_u64(len) > room {
            return Err(DirectBootError::KernelTooLong { len, room });
        }
        (PayloadInfo::BzImage, Cow::Borrowed(kernel))
    } else {
        let (entry, memory) = lay_out(kernel, payload.range())?;
        (PayloadInfo::RawVmlinux { entry }, Cow::Owned(memory))
    };
    Ok(DirectBoot {
        info,
        payload,
        parameters,
    })
}

/// The tables that go into hand-off blocks, each with its header and checksum, and with zeros where
/// another table's address would stand. TD-Shim makes the root pointer and the XSDT itself, and sets
/// the FADT's 32-bit pointer to the DSDT; Linux prefers the 64-bit one wherever that is not zero.
#[must_use]
pub fn acpi_tables(built: &AcpiTables) -> Vec<Vec<u8>> {
    let given = built
        .tables
        .iter()
        .filter(|table| table.signature != *b"XSDT");
    given
        .filter_map(|table| {
            let mut bytes = wire::slice(&built.blob, table.offset, table.len)?.to_vec();
            for pointer in &built.relocations {
                if pointer.table_offset == table.offset {
                    let at = pointer.pointer_offset.checked_sub(table.offset)?;
                    let len = usize::from(pointer.size);
                    bytes.get_mut(at..at.checked_add(len)?)?.fill(0);
                }
            }
            let checksum = table.checksum_offset().checked_sub(table.offset)?;
            *bytes.get_mut(checksum)? = 0;
            let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
            *bytes.get_mut(checksum)? = sum;
            Some(bytes)
        })
        .collect()
}

fn section<'i>(
    image: &'i Image<'_>,
    kind: SectionKind,
    what: &'static str,
) -> Result<&'i Section, DirectBootError> {
    let section = image
        .section(kind)
        .ok_or(DirectBootError::NoSection(what))?;
    if section.data().is_empty() {
        Ok(section)
    } else {
        Err(DirectBootError::Occupied)
    }
}

fn terminated(cmdline: &str, room: u64) -> Result<Vec<u8>, DirectBootError> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(DirectBootError::Nul(at));
    }
    let bytes: Vec<u8> = cmdline.bytes().chain([0]).collect();
    let len = bytes.len();
    if wire::len_u64(len) > room {
        return Err(DirectBootError::CmdlineTooLong { len, room });
    }
    Ok(bytes)
}

// ELF64: gABI, "ELF Header" and "Program Header".
const ELF64_LITTLE_ENDIAN: [u8; 6] = *b"\x7fELF\x02\x01";
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LEN: usize = 56;
const SEGMENT_LOAD: u32 = 1;

/// The segments at their physical addresses within the section, and the entry.
fn lay_out(elf: &[u8], section: GpaRange) -> Result<(Gpa, Vec<u8>), DirectBootError> {
    let is_elf = wire::array(elf, 0) == Some(ELF64_LITTLE_ENDIAN)
        && wire::u16_at(elf, 18) == Some(MACHINE_X86_64)
        && wire::u16_at(elf, 54).map(usize::from) == Some(SEGMENT_LEN);
    let header = || {
        let entry = wire::u64_at(elf, 24)?;
        let table = usize::try_from(wire::u64_at(elf, 32)?).ok()?;
        Some((Gpa(entry), table, wire::u16_at(elf, 56)?))
    };
    let (entry, table, count) = header().filter(|_| is_elf).ok_or(DirectBootError::Format)?;

    // Twice over the headers, so that memory is taken once and is never larger than the section, and no more is
    // copied than the section holds.
    let (mut len, mut free) = (0, section.len());
    for index in 0..usize::from(count) {
        let segment = segment(elf, table, index).ok_or(DirectBootError::Segment(index))?;
        if let Some(segment) = segment {
            len = segment.place_in(section)?.end.max(len);
            let rest = free.checked_sub(segment.len);
            free = rest.ok_or(DirectBootError::Overlap(index))?;
        }
    }
    if len == 0 {
        return Err(DirectBootError::Format);
    }
    if !section.contains(entry) {
        return Err(DirectBootError::Elsewhere { at: entry, section });
    }
    let mut memory = vec![0; len];
    for index in 0..usize::from(count) {
        if let Some(segment) = segment(elf, table, index).flatten() {
            let at = segment.place_in(section)?.start;
            let placed = wire::put(&mut memory, at, segment.bytes);
            placed.ok_or(DirectBootError::Segment(index))?;
        }
    }
    Ok((entry, memory))
}

struct Segment<'a> {
    bytes: &'a [u8],
    /// All of the segment's memory; zeros follow the bytes.
    at: Gpa,
    len: u64,
}

/// Segment `index`, where it is loaded; `None` where it does not lie in the file.
fn segment(elf: &[u8], table: usize, index: usize) -> Option<Option<Segment<'_>>> {
    let at = table.checked_add(index.checked_mul(SEGMENT_LEN)?)?;
    let header = wire::slice(elf, at, SEGMENT_LEN)?;
    let memory_len = wire::u64_at(header, 40)?;
    if wire::u32_at(header, 0)? != SEGMENT_LOAD || memory_len == 0 {
        return Some(None);
    }
    let offset = usize::try_from(wire::u64_at(header, 8)?).ok()?;
    let len = usize::try_from(wire::u64_at(header, 32)?).ok()?;
    let bytes = wire::slice(elf, offset, len)?;
    if wire::len_u64(len) > memory_len {
        return None;
    }
    Some(Some(Segment {
        bytes,
        at: Gpa(wire::u64_at(header, 24)?),
        len: memory_len,
    }))
}

impl Segment<'_> {
    /// Where its bytes lie in the section, which has to hold all of its memory.
    fn place_in(&self, section: GpaRange) -> Result<Range<usize>, DirectBootError> {
        let at = self.at;
        let elsewhere = DirectBootError::Elsewhere { at, section };
        GpaRange::from_len(at, self.len)
            .filter(|range| section.contains_range(*range))
            .ok_or(elsewhere)?;
        let start = at.0.checked_sub(section.start().0).ok_or(elsewhere)?;
        let start = usize::try_from(start).map_err(|_| elsewhere)?;
        Ok(start..start.saturating_add(self.bytes.len()))
    }
}
