//! Other variables for an image, before it is loaded.

use core::ops::Range;

use thiserror::Error;

use super::{VarStoreError, VariableStore, volume_len};
use crate::image::{Image, ParseError, SectionKind};

/// Variables that cannot take the place of an image's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplaceError {
    /// The image has no variables, or is none.
    #[error("the firmware image has no variable store")]
    NoVariables(#[source] Option<ParseError>),
    /// The file is larger or smaller than what it replaces.
    #[error("variable store of {given:#x} bytes cannot replace the firmware's of {own:#x} bytes")]
    Size {
        /// Bytes of the file.
        given: usize,
        /// Bytes of the image's variables.
        own: usize,
    },
    /// The file holds something else.
    #[error("file holds no usable variable store")]
    Unusable(#[source] VarStoreError),
}

/// Where the variables lie in a firmware file: the section CFV, or for an image without TDX metadata
/// the volume that it starts with.
///
/// # Errors
///
/// [`ReplaceError::NoVariables`].
pub fn variables_range(file: &[u8]) -> Result<Range<usize>, ReplaceError> {
    match Image::parse(file) {
        Ok(image) => image
            .section(SectionKind::Cfv)
            .map(crate::image::Section::data)
            .ok_or(ReplaceError::NoVariables(None)),
        Err(error) => match volume_len(file) {
            Some(len) if len < file.len() => Ok(0..len),
            _ => Err(ReplaceError::NoVariables(Some(error))),
        },
    }
}

/// Puts `variables` in the place of those of the firmware in `file`. MRTD stays what it was, as no
/// image in use measures its variables (a report has a note on one that does); `RTMR[0]` changes.
///
/// # Errors
///
/// [`ReplaceError`]; `file` is then unchanged.
pub fn replace_variables(file: &mut [u8], variables: &[u8]) -> Result<(), ReplaceError> {
    let range = variables_range(file)?;
    let size = ReplaceError::Size {
        given: variables.len(),
        own: range.len(),
    };
    if variables.len() != range.len() {
        return Err(size);
    }
    VariableStore::parse(variables).map_err(ReplaceError::Unusable)?;
    file.get_mut(range).ok_or(size)?.copy_from_slice(variables);
    Ok(())
}
