//! The regions of private memory that make a TD of an image, in the order of the descriptor.

use alloc::vec::Vec;

use thiserror::Error;

use super::Image;
use super::section::{Section, SectionKind};
use crate::measure::Region;

/// What the VMM puts into the sections that the file leaves to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contents<'a> {
    /// The hand-off blocks.
    pub hob: Option<&'a [u8]>,
    /// TD-Shim: the kernel.
    pub payload: Option<&'a [u8]>,
    /// TD-Shim: the kernel's command line.
    pub payload_param: Option<&'a [u8]>,
}

/// Contents that do not fit the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RegionError {
    /// Contents were given for a type of section that the image lacks.
    #[error("the firmware image has no {0} section to put contents into")]
    NoSection(SectionKind),
    /// The file itself brings the contents of the section.
    #[error("section {index} ({kind}) of the firmware image has contents of its own")]
    Occupied {
        /// Number of the section.
        index: usize,
        /// Its type.
        kind: SectionKind,
    },
    /// The contents are larger than the section.
    #[error("{len:#x} bytes do not fit section {index} ({kind}) of {room:#x} bytes")]
    TooLong {
        /// Number of the section.
        index: usize,
        /// Its type.
        kind: SectionKind,
        /// Bytes to place.
        len: u64,
        /// Bytes of the section.
        room: u64,
    },
}

impl<'a> Image<'a> {
    /// What is added to the TD, in order: each region's bytes come from the file or from
    /// `contents`, and zeros follow up to the end of its range. Sections that are not loaded
    /// (PermMem, TD_INFO, TD_PARAMS) give no region.
    pub fn regions(&self, contents: &Contents<'a>) -> Result<Vec<Region<'a>>, RegionError> {
        let given = [
            (SectionKind::TdHob, contents.hob),
            (SectionKind::Payload, contents.payload),
            (SectionKind::PayloadParam, contents.payload_param),
        ];
        for (kind, bytes) in given {
            if let Some(bytes) = bytes {
                self.check_room(kind, bytes)?;
            }
        }
        let added = self.sections.iter().filter(|s| s.kind().is_added());
        Ok(added
            .map(|section| Region {
                range: section.range(),
                measure: section.measure(),
                bytes: given
                    .iter()
                    .find(|(kind, _)| *kind == section.kind())
                    .and_then(|(_, bytes)| *bytes)
                    .unwrap_or_else(|| self.data(section)),
            })
            .collect())
    }

    fn check_room(&self, kind: SectionKind, bytes: &[u8]) -> Result<(), RegionError> {
        let section: &Section = self.section(kind).ok_or(RegionError::NoSection(kind))?;
        let index = section.index();
        if !section.data().is_empty() {
            return Err(RegionError::Occupied { index, kind });
        }
        let (len, room) = (crate::wire::len_u64(bytes.len()), section.range().len());
        if len > room {
            return Err(RegionError::TooLong {
                index,
                kind,
                len,
                room,
            });
        }
        Ok(())
    }
}
