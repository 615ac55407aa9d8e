//! The hand-off blocks (TD HOB): the firmware's only word on how much memory a TD has.
//!
//! ```text
//! PHIT | one resource descriptor per piece of RAM, ascending | extensions (TD-Shim) | end
//! ```
//!
//! Memory that the VMM has added is described as system memory, all other RAM as unaccepted: a
//! guest that accepts an added page, or uses one that was not, does not survive it. Firmware
//! measures the blocks into `RTMR[0]`, so they depend on nothing but memory size, image and tables.
//! Source: UEFI PI 1.8, volume 3, chapter 5; TD-Shim specification, "TD HOB".

mod memory;
mod write;

use alloc::vec::Vec;

use tdvmm_arch::{Gpa, GpaRange};
use thiserror::Error;

pub use memory::{Resource, ResourceKind, memory_map};

use crate::image::{Family, Image, SectionKind};

/// What an image is told beyond its memory. Only TD-Shim takes any of it; TDVF has fw_cfg.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extensions<'a> {
    /// What the Payload section holds; none where the image brings its payload.
    pub payload: Option<crate::td_shim::PayloadInfo>,
    /// ACPI tables, each with its header and without a root pointer.
    pub acpi_tables: &'a [&'a [u8]],
}

/// The finished blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hob {
    bytes: Vec<u8>,
    at: Gpa,
    memory: Vec<Resource>,
}

/// Blocks that cannot be made for this image and this memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HobError {
    /// The image has no TD_HOB section.
    #[error("the firmware image has no TD_HOB section")]
    NoSection,
    /// The blocks are larger than the section.
    #[error("TD HOB needs {needed:#x} bytes, the firmware's section has {room:#x}")]
    TooLarge {
        /// Bytes needed.
        needed: usize,
        /// Bytes of the section.
        room: u64,
    },
    /// An ACPI table too large for one block.
    #[error("ACPI table {index} of {len:#x} bytes is too large for a HOB")]
    Table {
        /// Its place among the tables.
        index: usize,
        /// Its bytes.
        len: usize,
    },
    /// RAM ranges that are not ascending and apart.
    #[error("RAM {0} does not lie above the RAM before it")]
    Order(GpaRange),
    /// Memory of a section that is not RAM.
    #[error("section {index} ({kind}) at {range} needs RAM that the guest does not have")]
    NotRam {
        /// Number of the section.
        index: usize,
        /// Its type.
        kind: SectionKind,
        /// Its memory.
        range: GpaRange,
    },
    /// TDVF finds no place for what other vCPUs need.
    #[error(
        "{vcpus} vCPUs need {needed:#x} bytes of unaccepted memory in one piece below 4 GiB, the largest has {largest:#x}"
    )]
    ApStacks {
        /// Number of vCPUs.
        vcpus: u32,
        /// Bytes needed.
        needed: u64,
        /// Bytes of the largest piece.
        largest: u64,
    },
    /// TDVF has no use for blocks that are TD-Shim's.
    #[error("{0} firmware takes no payload or ACPI tables by TD HOB")]
    Extensions(Family),
}

/// The blocks for `image` in a guest whose RAM is `ram` (ascending, apart).
///
/// # Errors
///
/// [`HobError`].
pub fn build(
    image: &Image<'_>,
    ram: &[GpaRange],
    vcpus: u32,
    extensions: &Extensions<'_>,
) -> Result<Hob, HobError> {
    let section = image.hob_range().ok_or(HobError::NoSection)?;
    let memory = memory_map(image, ram)?;
    if image.family() == Family::Ovmf {
        if extensions.payload.is_some() || !extensions.acpi_tables.is_empty() {
            return Err(HobError::Extensions(image.family()));
        }
        memory::check_ap_stacks(&memory, vcpus)?;
    }
    let bytes = write::blocks(section.start(), &memory, extensions)?;
    let needed = bytes.len();
    if crate::wire::len_u64(needed) > section.len() {
        let room = section.len();
        return Err(HobError::TooLarge { needed, room });
    }
    Ok(Hob {
        bytes,
        at: section.start(),
        memory,
    })
}

impl Hob {
    /// The blocks from the first to the end block; zeros follow in the section.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where they go.
    #[must_use]
    pub const fn address(&self) -> Gpa {
        self.at
    }

    /// The memory that they describe.
    #[must_use]
    pub fn memory(&self) -> &[Resource] {
        &self.memory
    }

    /// What firmware extends into `RTMR[0]`: OVMF leaves the end block out, TD-Shim does not.
    #[must_use]
    pub fn measured(&self, family: Family) -> &[u8] {
        if family == Family::TdShim {
            return &self.bytes;
        }
        let end = self.bytes.len().saturating_sub(write::END_LEN);
        self.bytes.get(..end).unwrap_or_default()
    }
}
