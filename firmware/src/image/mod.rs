//! A firmware image (TDVF or TD-Shim): found, checked, and cut into the regions that make a TD.
//!
//! An [`Image`] exists only for a file that passed every check, so whoever holds one need not look
//! again: sections lie in the file, in private memory, and apart from each other. The order of
//! sections is the descriptor's, which is the order of loading and so part of the measurement.

mod error;
mod family;
mod layout;
mod locate;
mod regions;
mod section;

use alloc::vec::Vec;

use tdvmm_arch::addr::PAGE_SIZE;
use tdvmm_arch::map::FIRMWARE_END;
use tdvmm_arch::{Gpa, GpaRange};

pub use error::{DescriptorError, LayoutError, ParseError, SectionError};
pub use family::Family;
pub(crate) use family::is_variable_store;
pub use locate::{FoundBy, GuidEntry};
pub use regions::{Contents, RegionError};
pub use section::{Section, SectionKind};

use crate::measure::Measure;
use crate::wire;
use section::Entry;

/// More sections than this are refused; images in use have at most 12.
pub const MAX_SECTIONS: u32 = 128;

/// More added memory than this is refused, as each page of it costs time when it is measured and
/// loaded. TD-Shim's payload sections have 32 MiB.
pub const MAX_ADDED: u64 = 1 << 30;

/// Between this and 4 GiB nothing but firmware can be memory: TD-Shim skips these addresses when it
/// looks for RAM.
const FIRMWARE_WINDOW: u64 = 0xfc00_0000;

/// The largest file: the image is mapped to end at 4 GiB.
const MAX_FILE: u64 = 1 << 32;

/// A firmware file that can be launched as a TD.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    file: &'a [u8],
    descriptor_at: u64,
    found_by: FoundBy,
    guid_table: Vec<GuidEntry>,
    sections: Vec<Section>,
    family: Family,
}

impl<'a> Image<'a> {
    /// Finds the descriptor by the GUID table, else by the legacy pointer, and checks every section.
    pub fn parse(file: &'a [u8]) -> Result<Self, ParseError> {
        let size = wire::len_u64(file.len());
        if size == 0 || size > MAX_FILE || !Gpa(size).is_aligned(PAGE_SIZE) {
            return Err(ParseError::Size(size));
        }
        let guid_table = locate::guid_table(file)?;
        let (at, found_by) = locate::descriptor(file, &guid_table)?;
        let entries =
            locate::entries(file, at).map_err(|source| ParseError::Descriptor { at, source })?;
        let sections = check_sections(&entries, size)?;
        layout::check(&sections).map_err(ParseError::Layout)?;
        let family = family::recognise(file, found_by, &guid_table, &sections);
        Ok(Self {
            file,
            descriptor_at: at,
            found_by,
            guid_table,
            sections,
            family,
        })
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &'a [u8] {
        self.file
    }

    /// The sections, in the order in which they are loaded.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The only section of a type that cannot repeat, or the first of one that can.
    #[must_use]
    pub fn section(&self, kind: SectionKind) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind() == kind)
    }

    /// What the file holds for a section; empty where it holds nothing. A section of another image
    /// gives whatever lies there.
    #[must_use]
    pub fn data(&self, section: &Section) -> &'a [u8] {
        self.file.get(section.data()).unwrap_or_default()
    }

    /// Where the hand-off blocks go. None: the image declares its memory itself (PermMem).
    #[must_use]
    pub fn hob_range(&self) -> Option<GpaRange> {
        self.section(SectionKind::TdHob).map(Section::range)
    }

    /// The value that each vCPU starts with in RCX and R8: the address of the hand-off blocks, 0
    /// where the image has none.
    #[must_use]
    pub fn hob_address(&self) -> Gpa {
        self.hob_range().map_or(Gpa(0), GpaRange::start)
    }

    /// The memory below 4 GiB that belongs to the firmware and is no RAM: where the file would lie if
    /// it were mapped to end at 4 GiB, and every section near it.
    #[must_use]
    pub fn mapped_range(&self) -> GpaRange {
        let file = FIRMWARE_END.saturating_sub(wire::len_u64(self.file.len()));
        let starts = self
            .sections
            .iter()
            .map(|section| section.range().start().0);
        let start = starts
            .filter(|start| (FIRMWARE_WINDOW..file).contains(start))
            .min()
            .unwrap_or(file);
        GpaRange::new(Gpa(start), Gpa(FIRMWARE_END)).unwrap_or_default()
    }

    /// Which firmware this is.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Whether a kernel is handed over in memory (Payload section) and not by fw_cfg.
    #[must_use]
    pub fn wants_payload(&self) -> bool {
        self.section(SectionKind::Payload)
            .is_some_and(|section| section.data().is_empty())
    }

    /// A measured section whose contents the VMM brings, so that the file alone has no MRTD.
    #[must_use]
    pub fn measured_contents(&self) -> Option<&Section> {
        self.sections.iter().find(|section| {
            let outside = matches!(
                section.kind(),
                SectionKind::Payload | SectionKind::PayloadParam
            );
            outside && section.data().is_empty() && section.measure() == Measure::Yes
        })
    }

    /// File offset of the descriptor.
    #[must_use]
    pub const fn descriptor_at(&self) -> u64 {
        self.descriptor_at
    }

    /// How the descriptor was found.
    #[must_use]
    pub const fn found_by(&self) -> FoundBy {
        self.found_by
    }

    /// The GUID table, last entry of the file first; empty where the file has none.
    #[must_use]
    pub fn guid_table(&self) -> &[GuidEntry] {
        &self.guid_table
    }
}

/// Checks each section by itself, then against the file.
fn check_sections(entries: &[Entry], file: u64) -> Result<Vec<Section>, ParseError> {
    let refused = |(index, kind)| {
        move |source| ParseError::Section {
            index,
            kind,
            source,
        }
    };
    let mut ranges = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        ranges.push(entry.check().map_err(refused((index, entry.kind)))?);
    }
    check_not_code_only(entries, file)?;
    entries
        .iter()
        .zip(ranges)
        .enumerate()
        .map(|(index, (entry, range))| {
            entry
                .place(index, range, file)
                .map_err(refused((index, entry.kind)))
        })
        .collect()
}

/// The offsets of a CODE file count from the start of the VARS file that belongs before it, so
/// what is missing at the end is exactly as large as the CFV.
fn check_not_code_only(entries: &[Entry], file: u64) -> Result<(), ParseError> {
    let image = entries.iter().map(Entry::data_end).max().unwrap_or(0);
    let variables = entries
        .iter()
        .find(|entry| entry.kind == SectionKind::Cfv)
        .map_or(0, |entry| u64::from(entry.raw_size));
    if variables != 0 && file.checked_add(variables) == Some(image) {
        return Err(ParseError::CodeOnly { file, image });
    }
    Ok(())
}
