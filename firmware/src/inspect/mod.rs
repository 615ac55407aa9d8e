//! Everything that can be said of a firmware file, for people and as JSON.
//!
//! JSON: addresses and file offsets are hex strings, sizes are numbers of bytes. `mrtd` and
//! `mrtd_two_pass` are 96 hex digits, or null where the VMM brings measured contents.

mod draw;
mod names;
mod render;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::guid::Guid;
use crate::image::{Contents, Family, FoundBy, Image, ParseError, Section, SectionKind};
use crate::measure::{Digest, Measure, Order, mrtd};
use crate::text::printable;
use crate::varstore::{KeyLists, SecureBoot, VariableStore};
use crate::wire;

pub use names::known_release;

/// A number that is printed and serialized as hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a firmware file is, holds and measures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Bytes of the file.
    pub file_size: u64,
    /// Where the firmware comes from.
    pub family: Family,
    /// The release, where its MRTD is known.
    pub release: Option<&'static str>,
    /// MRTD with upstream KVM.
    pub mrtd: Option<Digest>,
    /// MRTD with kernels before upstream support.
    pub mrtd_two_pass: Option<Digest>,
    /// What there is to know besides.
    pub notes: Vec<String>,
    /// File offset of the descriptor.
    pub descriptor: Hex,
    /// How it was found.
    pub found_by: FoundBy,
    /// The sections, in the order of loading.
    pub sections: Vec<SectionReport>,
    /// Bytes of the file that no section loads.
    pub file_gaps: Vec<FileGap>,
    /// The table of GUIDs at the end of the file, last entry first.
    pub guid_table: Vec<GuidReport>,
    /// The variables, where the image has some.
    pub variables: Option<VariablesReport>,
}

/// One section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SectionReport {
    /// Place in the descriptor, from 0.
    pub index: usize,
    /// What it is for.
    #[serde(rename = "type")]
    pub kind: SectionKind,
    /// Where its bytes start in the file.
    pub file_offset: Hex,
    /// Bytes in the file.
    pub file_size: u64,
    /// Where its memory starts.
    pub gpa: Hex,
    /// Bytes of memory.
    pub memory_size: u64,
    /// The attribute bits.
    pub attributes: u32,
    /// Whether it is added to the TD before it runs.
    pub added: bool,
    /// Whether its contents are in MRTD.
    pub extended: bool,
}

/// Bytes of the file from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FileGap {
    /// First offset.
    pub start: Hex,
    /// First offset after it.
    pub end: Hex,
}

/// An entry of the GUID table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuidReport {
    /// The GUID.
    pub guid: Guid,
    /// What it stands for, where that is known.
    pub meaning: Option<&'static str>,
    /// Where its data starts in the file.
    pub file_offset: Hex,
    /// Bytes of data.
    pub size: usize,
}

/// The variables of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VariablesReport {
    /// Why they cannot be read. The firmware then starts with none, or not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Whether secure boot enforces its keys.
    pub secure_boot: Option<SecureBoot>,
    /// The keys.
    pub keys: KeyLists,
    /// All variables that exist.
    pub list: Vec<VariableReport>,
}

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VariableReport {
    /// Its name, with a replacement for each character that could steer a terminal.
    pub name: String,
    /// The namespace of the name.
    pub vendor: Guid,
    /// UEFI attribute bits.
    pub attributes: u32,
    /// Bytes of data.
    pub size: usize,
}

/// A file that cannot be launched by itself. The message is one line with all causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InspectError {
    /// It is no image.
    #[error("{}", OneLine(.0))]
    Refused(#[from] ParseError),
}

/// An error and its causes, on one line.
struct OneLine<'a>(&'a ParseError);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut error: &dyn core::error::Error = self.0;
        write!(f, "{error}")?;
        while let Some(source) = error.source() {
            write!(f, ": {source}")?;
            error = source;
        }
        Ok(())
    }
}

/// Inspects a firmware file.
///
/// # Errors
///
/// [`InspectError`].
pub fn report(bytes: &[u8]) -> Result<Report, InspectError> {
    Ok(report_of(&Image::parse(bytes)?))
}

/// As [`report`], of a file that has been read already.
#[must_use]
pub fn report_of(image: &Image<'_>) -> Report {
    let mut notes = Vec::new();
    let (upstream, two_pass) = match image.measured_contents() {
        Some(section) => {
            notes.push(alloc::format!(
                "section {} ({}) is measured and filled at launch, so the file alone has no MRTD",
                section.index(),
                section.kind(),
            ));
            (None, None)
        }
        None => (of(image, Order::PerPage), of(image, Order::TwoPass)),
    };
    notes.extend(image.sections().iter().filter_map(note_on_measuring));
    if image.wants_payload() {
        notes.push("the VMM places the kernel in the Payload section".to_string());
    }
    Report {
        file_size: wire::len_u64(image.file().len()),
        family: image.family(),
        release: upstream.as_ref().and_then(known_release),
        mrtd: upstream,
        mrtd_two_pass: two_pass,
        notes,
        descriptor: Hex(image.descriptor_at()),
        found_by: image.found_by(),
        sections: image.sections().iter().map(section).collect(),
        file_gaps: file_gaps(image),
        guid_table: guid_table(image),
        variables: image
            .section(SectionKind::Cfv)
            .map(|section| variables(image.data(section))),
    }
}

/// What is measured otherwise than images in use have it, so that MRTD says less or other things.
fn note_on_measuring(section: &Section) -> Option<String> {
    let (index, kind) = (section.index(), section.kind());
    match (kind, section.measure()) {
        (SectionKind::Bfv, Measure::No) => Some(alloc::format!(
            "section {index} ({kind}) is not measured, so MRTD does not tell what code starts"
        )),
        (SectionKind::Cfv, Measure::Yes) => Some(alloc::format!(
            "section {index} ({kind}) is measured, so other variables give another MRTD"
        )),
        _ => None,
    }
}

/// MRTD of the file alone.
fn of(image: &Image<'_>, order: Order) -> Option<Digest> {
    let regions = image.regions(&Contents::default()).ok()?;
    mrtd(order, &regions).ok()
}

fn section(section: &Section) -> SectionReport {
    let data = section.data();
    SectionReport {
        index: section.index(),
        kind: section.kind(),
        file_offset: Hex(wire::len_u64(data.start)),
        file_size: wire::len_u64(data.len()),
        gpa: Hex(section.range().start().0),
        memory_size: section.range().len(),
        attributes: section.attributes(),
        added: section.kind().is_added(),
        extended: section.measure() == Measure::Yes,
    }
}

/// What lies between the data of sections.
fn file_gaps(image: &Image<'_>) -> Vec<FileGap> {
    let mut covered: Vec<_> = image.sections().iter().map(Section::data).collect();
    covered.sort_by_key(|data| data.start);
    let end = image.file().len();
    covered.push(end..end);
    let mut gaps = Vec::new();
    let mut from = 0;
    for data in covered {
        if data.start > from {
            gaps.push(FileGap {
                start: Hex(wire::len_u64(from)),
                end: Hex(wire::len_u64(data.start)),
            });
        }
        from = from.max(data.end);
    }
    gaps
}

fn guid_table(image: &Image<'_>) -> Vec<GuidReport> {
    let entries = image.guid_table().iter();
    entries
        .map(|entry| GuidReport {
            guid: entry.guid,
            meaning: names::meaning(entry.guid),
            file_offset: Hex(wire::len_u64(entry.offset)),
            size: entry.len,
        })
        .collect()
}

fn variables(cfv: &[u8]) -> VariablesReport {
    let store = match VariableStore::parse(cfv) {
        Ok(store) => store,
        Err(error) => {
            return VariablesReport {
                unreadable: Some(error.to_string()),
                secure_boot: None,
                keys: KeyLists::default(),
                list: Vec::new(),
            };
        }
    };
    let list = store.variables().iter().map(|variable| VariableReport {
        name: printable(&variable.name),
        vendor: variable.vendor,
        attributes: variable.attributes,
        size: variable.data.len(),
    });
    VariablesReport {
        unreadable: None,
        secure_boot: Some(store.secure_boot()),
        keys: store.keys(),
        list: list.collect(),
    }
}
