//! Which keys secure boot goes by, and whether it enforces them.
//!
//! Source: UEFI 2.10, 3.3 and 32.4 (EFI_SIGNATURE_LIST); for the switch, EDK2
//! `SecurityPkg/Library/AuthVariableLib`: it is on where a platform key is and it was never set.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{VariableStore, x509};
use crate::guid::Guid;
use crate::wire;

const GLOBAL: Guid = Guid::new(
    0x8be4_df61,
    0x93ca,
    0x11d2,
    [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c],
);
const IMAGE_SECURITY: Guid = Guid::new(
    0xd719_b2cb,
    0x3d3a,
    0x4596,
    [0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f],
);
/// EDK2 `gEfiSecureBootEnableDisableGuid`.
const SWITCH: Guid = Guid::new(
    0xf0a3_0bc7,
    0xaf08,
    0x4556,
    [0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44],
);

const X509: Guid = Guid::new(
    0xa5c0_59a1,
    0x94e4,
    0x4aa7,
    [0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72],
);
const SHA256: Guid = Guid::new(
    0xc1c4_1626,
    0x504c,
    0x4092,
    [0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28],
);

/// Whether the firmware starts only what its keys allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecureBoot {
    /// There is a platform key, and enforcement is not switched off.
    Enforced,
    /// There is a platform key, but enforcement is switched off.
    SwitchedOff,
    /// There is no platform key: everything starts.
    SetupMode,
}

impl fmt::Display for SecureBoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Enforced => "enforced",
            Self::SwitchedOff => "switched off",
            Self::SetupMode => "setup mode (no platform key)",
        })
    }
}

/// What a signature list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// A certificate.
    X509,
    /// The SHA-256 of one program.
    Sha256,
    /// Another type of signature, by its GUID, or what claims to be a SHA-256 and has another length.
    Other(Guid),
}

/// An entry of a signature list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// What it is.
    pub kind: KeyKind,
    /// Who put it there.
    pub owner: Guid,
    /// The common name of a certificate's subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The digest that is listed, else SHA-256 of what is: 64 hex digits.
    pub sha256: String,
}

/// The lists that secure boot goes by; each is empty where its variable is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyLists {
    /// The platform key.
    #[serde(rename = "PK")]
    pub pk: Vec<Key>,
    /// Keys that may change `db` and `dbx`.
    #[serde(rename = "KEK")]
    pub kek: Vec<Key>,
    /// What may start.
    pub db: Vec<Key>,
    /// What may not, whatever `db` says.
    pub dbx: Vec<Key>,
}

impl VariableStore<'_> {
    /// The keys of secure boot. A list that breaks off gives the entries before the break.
    #[must_use]
    pub fn keys(&self) -> KeyLists {
        let list = |vendor, name| self.find(vendor, name).map(read_lists).unwrap_or_default();
        KeyLists {
            pk: list(GLOBAL, "PK"),
            kek: list(GLOBAL, "KEK"),
            db: list(IMAGE_SECURITY, "db"),
            dbx: list(IMAGE_SECURITY, "dbx"),
        }
    }

    /// Whether firmware with these variables enforces secure boot.
    #[must_use]
    pub fn secure_boot(&self) -> SecureBoot {
        let has_platform_key = self.find(GLOBAL, "PK").is_some_and(|data| !data.is_empty());
        match (has_platform_key, self.find(SWITCH, "SecureBootEnable")) {
            (false, _) => SecureBoot::SetupMode,
            (true, Some([0, ..])) => SecureBoot::SwitchedOff,
            (true, _) => SecureBoot::Enforced,
        }
    }
}

const LIST_HEADER: usize = 28;
const OWNER: usize = 16;
/// Bytes of a SHA-256 digest.
const DIGEST: usize = 32;

/// The entries of all lists in a variable.
fn read_lists(mut data: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((list, rest)) = split_list(data) {
        keys.extend(list);
        data = rest;
    }
    keys
}

fn split_list(data: &[u8]) -> Option<(impl Iterator<Item = Key>, &[u8])> {
    let kind = Guid::from_bytes(wire::array(data, 0)?);
    let size = wire::u32_at(data, 16)? as usize;
    let header = wire::u32_at(data, 20)? as usize;
    let entry = wire::u32_at(data, 24)? as usize;
    let (list, rest) = data.split_at_checked(size)?;
    let entries = list.get(LIST_HEADER.checked_add(header)?..)?;
    if entry <= OWNER {
        return None;
    }
    let keys = entries
        .chunks_exact(entry)
        .filter_map(move |bytes| read_key(kind, bytes));
    Some((keys, rest))
}

fn read_key(kind: Guid, entry: &[u8]) -> Option<Key> {
    let (owner, bytes) = entry.split_first_chunk::<OWNER>()?;
    let (kind, subject, digest) = match kind {
        X509 => (
            KeyKind::X509,
            x509::subject_common_name(bytes),
            hex(&Sha256::digest(bytes)),
        ),
        SHA256 if bytes.len() == DIGEST => (KeyKind::Sha256, None, hex(bytes)),
        other => (KeyKind::Other(other), None, hex(&Sha256::digest(bytes))),
    };
    Some(Key {
        kind,
        owner: Guid::from_bytes(*owner),
        subject,
        sha256: digest,
    })
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::new();
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
