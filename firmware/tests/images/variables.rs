//! Stores of variables, written here and read back.

use tdvmm_firmware::guid::Guid;
use tdvmm_firmware::image::{Image, ParseError};
use tdvmm_firmware::inspect;
use tdvmm_firmware::measure::{Order, mrtd};
use tdvmm_firmware::varstore::{
    KeyKind, ReplaceError, SecureBoot, VarStoreError, VariableStore, replace_variables,
    variables_range,
};

use crate::synthetic::{self, Lead};

const GLOBAL: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];
const SECURITY: [u8; 16] = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
];
const SWITCH: [u8; 16] = [
    0xc7, 0x0b, 0xa3, 0xf0, 0x08, 0xaf, 0x56, 0x45, 0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44,
];
const X509: [u8; 16] = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
const SHA256: [u8; 16] = [
    0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28,
];
const ADDED: u8 = 0x3f;

/// A volume whose free space is all ones, and where the next variable goes.
pub struct Store {
    pub bytes: Vec<u8>,
    next: usize,
}

impl Store {
    pub fn new(len: usize) -> Self {
        let mut bytes = vec![0xff; len];
        bytes[..16].fill(0);
        bytes[16..32].copy_from_slice(&[
            0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b,
            0x4f, 0x50,
        ]);
        bytes[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        bytes[40..44].copy_from_slice(b"_FVH");
        bytes[44..72].fill(0);
        bytes[48] = 72;
        bytes[55] = 2;
        bytes[72..88].copy_from_slice(&[
            0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3,
            0x77, 0x92,
        ]);
        bytes[88..92].copy_from_slice(&(len as u32 - 72).to_le_bytes());
        bytes[92..94].copy_from_slice(&[0x5a, 0xfe]);
        let mut store = Self { bytes, next: 100 };
        store.sum_up();
        store
    }

    /// Makes the checksum right.
    fn sum_up(&mut self) {
        self.bytes[50..52].fill(0);
        let words = self.bytes[..72].chunks(2);
        let sum = words.fold(0_u16, |sum, word| {
            sum.wrapping_add(u16::from_le_bytes([word[0], word[1]]))
        });
        self.bytes[50..52].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    }

    fn add(&mut self, state: u8, vendor: [u8; 16], name: &str, data: &[u8]) -> &mut Self {
        let name: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let mut variable = vec![0xaa, 0x55, state, 0, 0x27, 0, 0, 0];
        variable.resize(36, 0);
        variable.extend((name.len() as u32).to_le_bytes());
        variable.extend((data.len() as u32).to_le_bytes());
        variable.extend(vendor);
        variable.extend(name);
        variable.extend(data);
        self.bytes[self.next..][..variable.len()].copy_from_slice(&variable);
        self.next = (self.next + variable.len()).next_multiple_of(4);
        self
    }
}

/// A signature list with one entry per element of `entries`, all of one length.
fn list(kind: [u8; 16], entries: &[&[u8]]) -> Vec<u8> {
    let entry = 16 + entries[0].len();
    let mut bytes = kind.to_vec();
    for field in [28 + entry * entries.len(), 0, entry] {
        bytes.extend((field as u32).to_le_bytes());
    }
    for data in entries {
        bytes.extend([0x77; 16]);
        bytes.extend_from_slice(data);
    }
    bytes
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let mut bytes = vec![tag];
    match contents.len() {
        len @ ..0x80 => bytes.push(len as u8),
        len @ ..0x100 => bytes.extend([0x81, len as u8]),
        len => bytes.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    bytes.extend(contents);
    bytes
}

/// As much of a certificate as it takes to name its subject.
fn certificate(name: &str) -> Vec<u8> {
    let attribute = |id: u8, text: &str| {
        let id = der(0x06, &[&[0x55, 0x04, id]]);
        der(0x31, &[&der(0x30, &[&id, &der(0x0c, &[text.as_bytes()])])])
    };
    let issuer = der(0x30, &[&attribute(3, "the issuer")]);
    let subject = der(0x30, &[&attribute(6, "XX"), &attribute(3, name)]);
    let fields = der(
        0x30,
        &[
            &der(0xa0, &[&der(0x02, &[&[2]])]),
            &der(0x02, &[&[1]]),
            &der(0x30, &[]),
            &issuer,
            &der(0x30, &[&[0; 200]]),
            &subject,
        ],
    );
    der(0x30, &[&fields, &[0; 300]])
}

fn refusal(change: impl FnOnce(&mut Store)) -> VarStoreError {
    let mut store = Store::new(0x1000);
    change(&mut store);
    VariableStore::parse(&store.bytes).expect_err("the store is not legal")
}

#[test]
fn variables_that_exist_are_read_and_others_are_not() {
    let mut written = Store::new(0x1000);
    written
        .add(ADDED, GLOBAL, "Boot0000", &[1, 2, 3])
        .add(0x3d, GLOBAL, "Deleted", &[1])
        .add(0x7f, GLOBAL, "HeaderOnly", &[1])
        .add(0x3e, GLOBAL, "Replaced", &[1])
        .add(0x3e, GLOBAL, "Kept", &[2])
        .add(ADDED, GLOBAL, "Replaced", &[3]);
    let store = VariableStore::parse(&written.bytes).unwrap();
    let found: Vec<_> = store
        .variables()
        .iter()
        .map(|v| (v.name.as_str(), store.data(v)))
        .collect();
    let expected: [(&str, &[u8]); 3] =
        [("Boot0000", &[1, 2, 3]), ("Kept", &[2]), ("Replaced", &[3])];
    assert_eq!(found, expected);
    let vendor = Guid::from_bytes(GLOBAL);
    assert_eq!(store.find(vendor, "Replaced"), Some(&[3][..]));
    assert_eq!(store.find(Guid::ZERO, "Replaced"), None);
    assert_eq!(store.variables()[0].attributes, 0x27);
}

#[test]
fn secure_boot_is_enforced_with_platform_key_unless_switched_off() {
    let state = |key: bool, switch: Option<u8>| {
        let mut written = Store::new(0x1000);
        if key {
            written.add(ADDED, GLOBAL, "PK", &list(X509, &[b"a key"]));
        }
        if let Some(value) = switch {
            written.add(ADDED, SWITCH, "SecureBootEnable", &[value]);
        }
        VariableStore::parse(&written.bytes).unwrap().secure_boot()
    };
    assert_eq!(state(true, None), SecureBoot::Enforced);
    assert_eq!(state(true, Some(1)), SecureBoot::Enforced);
    assert_eq!(state(true, Some(0)), SecureBoot::SwitchedOff);
    assert_eq!(state(false, None), SecureBoot::SetupMode);
    assert_eq!(state(false, Some(1)), SecureBoot::SetupMode);
}

#[test]
fn keys_are_listed_with_the_name_of_their_subject() {
    let mut db = list(X509, &[&certificate("A Signer")]);
    db.extend(list(X509, &[b"no certificate"]));
    db.extend(list(SHA256, &[&[0xab; 32], &[0xcd; 32]]));
    db.extend(list([9; 16], &[&[1]]));
    let mut written = Store::new(0x1000);
    written.add(ADDED, SECURITY, "db", &db);
    // Of the wrong namespace, so no list of secure boot.
    written.add(ADDED, GLOBAL, "dbx", &db);
    let keys = VariableStore::parse(&written.bytes).unwrap().keys();
    let subjects: Vec<_> = keys.db.iter().map(|key| key.subject.as_deref()).collect();
    assert_eq!(subjects, [Some("A Signer"), None, None, None, None]);
    let kinds: Vec<_> = keys.db.iter().map(|key| key.kind).collect();
    let other = KeyKind::Other(Guid::from_bytes([9; 16]));
    let expected = [
        KeyKind::X509,
        KeyKind::X509,
        KeyKind::Sha256,
        KeyKind::Sha256,
        other,
    ];
    assert_eq!(kinds, expected);
    assert_eq!(keys.db[3].sha256, "cd".repeat(32));
    assert_eq!(keys.db[0].owner, Guid::from_bytes([0x77; 16]));
    assert!(keys.pk.is_empty() && keys.kek.is_empty() && keys.dbx.is_empty());
}

#[test]
fn digest_of_another_length_is_not_passed_off_as_one() {
    let mut db = list(SHA256, &[&[0xab; 32]]);
    db.extend(list(SHA256, &[&[0xcd; 31], &[0xee; 31]]));
    db.extend(list(SHA256, &[&[0xef; 400]]));
    let mut written = Store::new(0x1000);
    written.add(ADDED, SECURITY, "db", &db);
    let keys = VariableStore::parse(&written.bytes).unwrap().keys().db;
    let other = KeyKind::Other(Guid::from_bytes(SHA256));
    let kinds: Vec<_> = keys.iter().map(|key| key.kind).collect();
    assert_eq!(kinds, [KeyKind::Sha256, other, other, other]);
    assert!(keys.iter().all(|key| key.sha256.len() == 64), "{keys:?}");
    assert_eq!(keys[0].sha256, "ab".repeat(32));
}

#[test]
fn name_that_a_certificate_holds_cannot_steer_a_terminal() {
    let mut written = Store::new(0x1000);
    let evil = certificate("\u{1b}[2J\nMicrosoft");
    written.add(ADDED, SECURITY, "db", &list(X509, &[&evil]));
    let keys = VariableStore::parse(&written.bytes).unwrap().keys();
    let expected = "\u{fffd}[2J\u{fffd}Microsoft";
    assert_eq!(keys.db[0].subject.as_deref(), Some(expected));
}

#[test]
fn name_of_a_variable_cannot_steer_a_terminal_or_forge_a_line() {
    let mut written = Store::new(0x8_4000);
    written
        .add(ADDED, GLOBAL, "x\nMRTD           00", &[1])
        .add(ADDED, GLOBAL, "\u{1b}[2J\r\u{9b}1A\u{202e}tooB", &[2]);
    let mut file = synthetic::image(4 << 20, Lead::Table, &synthetic::ovmf());
    replace_variables(&mut file, &written.bytes).unwrap();
    let report = inspect::report(&file).unwrap();
    let names: Vec<_> = report.variables.iter().flat_map(|v| &v.list).collect();
    assert_eq!(names[0].name, "x\u{fffd}MRTD           00");
    assert_eq!(names[1].name, "\u{fffd}[2J\u{fffd}\u{fffd}1A\u{fffd}tooB");
    let text = report.to_string();
    let forged = |line: &str| line.starts_with("MRTD           00");
    assert!(!text.lines().any(forged), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'));
    assert!(!serde_json::to_string(&report).unwrap().contains('\u{9b}'));
}

#[test]
fn list_that_breaks_off_gives_the_entries_before() {
    let whole = list(SHA256, &[&[0xab; 32]]);
    for broken in [
        &whole[..40],
        &[SHA256.as_slice(), &[0; 12]].concat(),
        &[
            SHA256.as_slice(),
            &[28, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 48, 0, 0, 0],
        ]
        .concat(),
    ] {
        let mut written = Store::new(0x1000);
        written.add(ADDED, SECURITY, "dbx", &[&whole, broken].concat());
        let keys = VariableStore::parse(&written.bytes).unwrap().keys();
        assert_eq!(keys.dbx.len(), 1);
    }
}

#[test]
fn bytes_that_are_no_usable_store_are_refused() {
    assert!(matches!(
        VariableStore::parse(&[]),
        Err(VarStoreError::NotAVolume)
    ));
    assert_eq!(refusal(|s| s.bytes[40] = 0), VarStoreError::NotAVolume);
    let (header, volume, given) = (72, 0x1001, 0x1000);
    let expected = VarStoreError::VolumeSize {
        header,
        volume,
        given,
    };
    assert_eq!(refusal(|s| s.bytes[32] = 1), expected);
    let (header, volume) = (0xff48, 0x1000);
    let expected = VarStoreError::VolumeSize {
        header,
        volume,
        given,
    };
    assert_eq!(refusal(|s| s.bytes[49] = 0xff), expected);
    assert_eq!(refusal(|s| s.bytes[0] = 5), VarStoreError::Checksum(5));
    let refused = refusal(|s| s.bytes[72..88].fill(1));
    assert_eq!(refused, VarStoreError::Format(Guid::from_bytes([1; 16])));
    let (size, state) = (0xfb9, [0x5a, 0xfe]);
    let refused = refusal(|s| s.bytes[88] += 1);
    assert_eq!(refused, VarStoreError::Store { size, state });
    let (size, state) = (0xfb8, [0x5a, 0xff]);
    let refused = refusal(|s| s.bytes[93] = 0xff);
    assert_eq!(refused, VarStoreError::Store { size, state });
}

#[test]
fn variable_that_does_not_fit_is_refused() {
    let refused = refusal(|s| {
        s.add(ADDED, GLOBAL, "x", &[1]);
        s.bytes[100 + 40..100 + 44].fill(0xff);
    });
    let (name, data) = (4, u32::MAX);
    assert_eq!(
        refused,
        VarStoreError::Variable {
            at: 100,
            name,
            data
        }
    );
    let refused = refusal(|s| s.bytes[100] = 0);
    let (at, found) = (100, 0xff00);
    assert_eq!(refused, VarStoreError::Garbage { at, found });
}

#[test]
fn store_full_to_the_last_byte_is_read() {
    let mut written = Store::new(0x1000);
    written.add(ADDED, GLOBAL, "x", &[1; 0x1000 - 100 - 64]);
    let store = VariableStore::parse(&written.bytes).unwrap();
    assert_eq!(store.variables().len(), 1);
}

#[test]
fn other_variables_take_the_place_of_the_sections_own_and_keep_mrtd() {
    let mut file = synthetic::image(4 << 20, Lead::Table, &synthetic::ovmf());
    let measure = |file: &[u8]| {
        let image = Image::parse(file).unwrap();
        let regions = image.regions(&Default::default()).unwrap();
        mrtd(Order::PerPage, &regions).unwrap()
    };
    let before = measure(&file);
    assert_eq!(variables_range(&file), Ok(0..0x8_4000));
    let blank = Store::new(0x8_4000).bytes;
    replace_variables(&mut file, &blank).unwrap();
    assert_eq!(file[..0x8_4000], blank);
    assert_eq!(measure(&file), before);
}

#[test]
fn variables_of_another_size_or_of_nothing_are_refused() {
    let own = synthetic::image(4 << 20, Lead::Table, &synthetic::ovmf());
    let mut file = own.clone();
    let refused = replace_variables(&mut file, &Store::new(0x4_0000).bytes);
    let expected = ReplaceError::Size {
        given: 0x4_0000,
        own: 0x8_4000,
    };
    assert_eq!(refused, Err(expected));
    let refused = replace_variables(&mut file, &[0; 0x8_4000]);
    assert_eq!(
        refused,
        Err(ReplaceError::Unusable(VarStoreError::NotAVolume))
    );
    assert_eq!(file, own);
}

#[test]
fn variables_of_an_image_without_metadata_are_the_volume_it_starts_with() {
    let mut file = vec![0; 4 << 20];
    file[..0x8_4000].copy_from_slice(&Store::new(0x8_4000).bytes);
    assert_eq!(variables_range(&file), Ok(0..0x8_4000));
    // A variable store alone is no firmware.
    let alone = Store::new(0x8_4000).bytes;
    let expected = ReplaceError::NoVariables(Some(ParseError::VariablesOnly));
    assert_eq!(variables_range(&alone), Err(expected));
}
