//! The UEFI variables that an image starts with: a firmware volume with a store of authenticated
//! variables (EDK2 `MdeModulePkg/Include/Guid/VariableFormat.h`).
//!
//! ```text
//! volume header | store header | variable: header 60 bytes, name (UTF-16, NUL), data | ... | 0xff
//! ```
//!
//! They are the section CFV, which is loaded but not in MRTD: firmware extends it into `RTMR[0]`. So
//! a file of variables can take its place without a change of MRTD.

mod keys;
mod replace;
mod x509;

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use serde::Serialize;
use thiserror::Error;

pub use keys::{Key, KeyKind, KeyLists, SecureBoot};
pub use replace::{ReplaceError, replace_variables, variables_range};

use crate::guid::Guid;
use crate::image::is_variable_store;
use crate::wire;

/// EDK2 `gEfiAuthenticatedVariableGuid`.
const AUTHENTICATED: Guid = Guid::new(
    0xaaf3_2c78,
    0x947b,
    0x439a,
    [0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92],
);

const VOLUME_HEADER: usize = 56;
const STORE_HEADER: usize = 28;
/// Format and state bytes of a store in use.
const STORE_HEALTHY: [u8; 2] = [0x5a, 0xfe];
const VARIABLE_HEADER: usize = 60;
const VARIABLE_START: u16 = 0x55aa;
/// What free flash reads as.
const FREE: u16 = 0xffff;

/// A variable's state: bits are cleared one after the other.
const ADDED: u8 = 0x3f;
/// Added, and about to be replaced by a variable that may not be complete.
const ADDED_IN_TRANSITION: u8 = 0x3e;

/// A variable that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Variable {
    /// Its name, as the file has it: it may hold what steers a terminal.
    pub name: String,
    /// The namespace of its name.
    pub vendor: Guid,
    /// UEFI attribute bits.
    pub attributes: u32,
    /// Its bytes within the volume.
    #[serde(skip)]
    pub data: Range<usize>,
}

/// The variables of a volume.
#[derive(Clone, Debug)]
pub struct VariableStore<'a> {
    volume: &'a [u8],
    variables: Vec<Variable>,
}

/// Bytes that are no store of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VarStoreError {
    /// No firmware volume for variables.
    #[error("no firmware volume for UEFI variables")]
    NotAVolume,
    /// The volume's header does not fit the bytes, or contradicts itself.
    #[error(
        "volume header of {header:#x} bytes and volume of {volume:#x} bytes do not fit {given:#x} bytes"
    )]
    VolumeSize {
        /// Bytes of the header.
        header: u16,
        /// Bytes of the volume.
        volume: u64,
        /// Bytes there are.
        given: usize,
    },
    /// The 16-bit words of the header do not add up to 0.
    #[error("volume header has the checksum {0:#06x} instead of 0")]
    Checksum(u16),
    /// A store of another format.
    #[error("variable store has the format {0}, not that of authenticated variables")]
    Format(Guid),
    /// A store that does not fit the volume, or is not marked as formatted and healthy.
    #[error("variable store of {size:#x} bytes with the state {state:02x?} is not usable")]
    Store {
        /// Bytes that it claims.
        size: u32,
        /// Format and state bytes.
        state: [u8; 2],
    },
    /// A variable that does not fit the store.
    #[error(
        "variable at offset {at:#x} of the volume claims a name of {name:#x} and data of {data:#x} bytes, which do not fit"
    )]
    Variable {
        /// Where its header is.
        at: usize,
        /// Bytes of the name.
        name: u32,
        /// Bytes of the data.
        data: u32,
    },
    /// Neither a variable nor free space.
    #[error("offset {at:#x} of the volume holds {found:#06x}, neither a variable nor free space")]
    Garbage {
        /// Where.
        at: usize,
        /// What stands there.
        found: u16,
    },
}

impl<'a> VariableStore<'a> {
    /// Reads the volume that `bytes` starts with.
    ///
    /// # Errors
    ///
    /// [`VarStoreError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, VarStoreError> {
        let store = store_range(bytes)?;
        let volume = bytes.get(..store.end).unwrap_or_default();
        let mut found = Vec::new();
        let mut at = store.start.saturating_add(STORE_HEADER);
        while let Some((state, variable)) = read_variable(volume, at)? {
            // Headers are 4-byte aligned; a store is too, as its volume's header is.
            at = variable.data.end.next_multiple_of(4);
            found.push((state, variable));
        }
        Ok(Self {
            volume,
            variables: existing(found),
        })
    }

    /// The variables that exist, in the order in which they were written.
    #[must_use]
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The data of a variable; that of another store gives whatever lies there.
    #[must_use]
    pub fn data(&self, variable: &Variable) -> &'a [u8] {
        self.volume.get(variable.data.clone()).unwrap_or_default()
    }

    /// The data of the variable of this name.
    #[must_use]
    pub fn find(&self, vendor: Guid, name: &str) -> Option<&'a [u8]> {
        let same = |variable: &&Variable| variable.vendor == vendor && variable.name == name;
        self.variables.iter().find(same).map(|v| self.data(v))
    }
}

/// Bytes of the volume, as its header tells, where it is one for variables.
fn volume_len(bytes: &[u8]) -> Option<usize> {
    let len = usize::try_from(wire::u64_at(bytes, 32)?).ok()?;
    (is_variable_store(bytes) && len <= bytes.len()).then_some(len)
}

/// Where the store lies, after the checks of the volume's and its own header.
fn store_range(bytes: &[u8]) -> Result<Range<usize>, VarStoreError> {
    let given = bytes.len();
    let (Some(volume), Some(header)) = (wire::u64_at(bytes, 32), wire::u16_at(bytes, 48)) else {
        return Err(VarStoreError::NotAVolume);
    };
    if !is_variable_store(bytes) {
        return Err(VarStoreError::NotAVolume);
    }
    let bad_size = VarStoreError::VolumeSize {
        header,
        volume,
        given,
    };
    let len = volume_len(bytes).ok_or(bad_size)?;
    let start = usize::from(header);
    let header_bytes = bytes.get(..start).ok_or(bad_size)?;
    if start < VOLUME_HEADER || !start.is_multiple_of(4) {
        return Err(bad_size);
    }
    let (words, _) = header_bytes.as_chunks::<2>();
    let sum = words.iter().fold(0_u16, |sum, word| {
        sum.wrapping_add(u16::from_le_bytes(*word))
    });
    if sum != 0 {
        return Err(VarStoreError::Checksum(sum));
    }
    let store = bytes.get(start..len).ok_or(bad_size)?;
    let guid = wire::array(store, 0).ok_or(bad_size)?;
    if Guid::from_bytes(guid) != AUTHENTICATED {
        return Err(VarStoreError::Format(Guid::from_bytes(guid)));
    }
    let size = wire::u32_at(store, 16).ok_or(bad_size)?;
    let state = wire::array(store, 20).ok_or(bad_size)?;
    let fits = (STORE_HEADER..=store.len()).contains(&(size as usize));
    if !fits || state != STORE_HEALTHY {
        return Err(VarStoreError::Store { size, state });
    }
    Ok(start..start.saturating_add(size as usize))
}

/// The variable at `at`, with its state; `None` where free space starts or the store ends.
fn read_variable(volume: &[u8], at: usize) -> Result<Option<(u8, Variable)>, VarStoreError> {
    let Some(header) = wire::slice(volume, at, VARIABLE_HEADER) else {
        return Ok(None);
    };
    let field = |offset| wire::u32_at(header, offset).unwrap_or(0);
    match wire::u16_at(header, 0).unwrap_or(FREE) {
        VARIABLE_START => {}
        FREE => return Ok(None),
        found => return Err(VarStoreError::Garbage { at, found }),
    }
    let (name, data) = (field(36), field(40));
    let too_large = VarStoreError::Variable { at, name, data };
    let name_at = at.saturating_add(VARIABLE_HEADER);
    let name_bytes = wire::slice(volume, name_at, name as usize).ok_or(too_large)?;
    let data_at = name_at.saturating_add(name as usize);
    let data_bytes = wire::slice(volume, data_at, data as usize).ok_or(too_large)?;
    let variable = Variable {
        name: text(name_bytes),
        vendor: wire::array(header, 44).map_or(Guid::ZERO, Guid::from_bytes),
        attributes: field(4),
        data: data_at..data_at.saturating_add(data_bytes.len()),
    };
    let state = header.get(2).copied().unwrap_or(0);
    Ok(Some((state, variable)))
}

/// UTF-16 up to a NUL.
fn text(bytes: &[u8]) -> String {
    let (units, _) = bytes.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// Drops deleted variables, and those in transition whose replacement is complete.
fn existing(found: Vec<(u8, Variable)>) -> Vec<Variable> {
    let name = |v: &Variable| (*v.vendor.as_bytes(), v.name.clone());
    let in_transition = found.iter().any(|(state, _)| *state == ADDED_IN_TRANSITION);
    let added: BTreeSet<_> = found
        .iter()
        .filter(|(state, _)| in_transition && *state == ADDED)
        .map(|(_, v)| name(v))
        .collect();
    let exists = |state: u8, v: &Variable| match state {
        ADDED => true,
        ADDED_IN_TRANSITION => !added.contains(&name(v)),
        _ => false,
    };
    let kept = found.into_iter().filter(|(state, v)| exists(*state, v));
    kept.map(|(_, variable)| variable).collect()
}
