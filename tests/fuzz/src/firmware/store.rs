//! Stores of UEFI variables that are nearly legal.

use arbitrary::{Result, Unstructured};

use super::{interesting, put};

const VOLUME: [u8; 16] = [
    0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50,
];
const STORE: [u8; 16] = [
    0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92,
];
const GLOBAL: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];
/// A GUID as stored.
pub const SECURITY: [u8; 16] = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
];
/// A GUID as stored.
pub const X509: [u8; 16] = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
const SHA256: [u8; 16] = [
    0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28,
];

/// Bytes of the volume's header.
const HEADER: usize = 72;
/// Where the first variable is.
pub const FIRST: usize = 100;

/// A volume that is being written.
pub struct Store {
    /// The volume.
    pub bytes: Vec<u8>,
    next: usize,
}

/// A volume of `len` bytes without a variable.
#[must_use]
pub fn legal(len: usize) -> Store {
    let mut bytes = vec![0xff; len];
    put(&mut bytes, 0, &[0; HEADER]);
    put(&mut bytes, 16, &VOLUME);
    put(&mut bytes, 32, &(len as u64).to_le_bytes());
    put(&mut bytes, 40, b"_FVH");
    put(&mut bytes, 48, &(HEADER as u16).to_le_bytes());
    put(&mut bytes, HEADER, &STORE);
    put(&mut bytes, 88, &((len - HEADER) as u32).to_le_bytes());
    put(&mut bytes, 92, &[0x5a, 0xfe]);
    let mut store = Store { bytes, next: FIRST };
    store.sum_up();
    store
}

impl Store {
    fn sum_up(&mut self) {
        put(&mut self.bytes, 50, &[0; 2]);
        let words = self.bytes[..HEADER].chunks(2);
        let sum = words.fold(0_u16, |sum, word| {
            sum.wrapping_add(u16::from_le_bytes([word[0], word[1]]))
        });
        put(&mut self.bytes, 50, &sum.wrapping_neg().to_le_bytes());
    }

    fn add(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        const NAMES: [(&str, [u8; 16]); 6] = [
            ("PK", GLOBAL),
            ("KEK", GLOBAL),
            ("db", SECURITY),
            ("dbx", SECURITY),
            ("SecureBootEnable", STORE),
            ("Boot0000", GLOBAL),
        ];
        let (name, vendor) = *u.choose(&NAMES)?;
        let state = *u.choose(&[0x3f, 0x3f, 0x3f, 0x3e, 0x3d, 0x7f])?;
        let data = data(u)?;
        let name: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let len = |u: &mut Unstructured<'_>, len: usize| -> Result<u32> {
            if u.ratio(1, 24)? {
                u.arbitrary()
            } else {
                Ok(len as u32)
            }
        };
        let mut bytes = vec![0xaa, 0x55, state, 0];
        if u.ratio(1, 24)? {
            bytes[0] = 0;
        }
        bytes.resize(36, 0);
        bytes.extend(len(u, name.len())?.to_le_bytes());
        bytes.extend(len(u, data.len())?.to_le_bytes());
        bytes.extend(vendor);
        bytes.extend(&name);
        bytes.extend(&data);
        put(&mut self.bytes, self.next, &bytes);
        self.next = (self.next + bytes.len()).next_multiple_of(4);
        Ok(())
    }
}

/// Signature lists, or any few bytes.
fn data(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    for _ in 0..u.int_in_range(0..=2)? {
        let kind = *u.choose(&[X509, X509, SHA256, STORE])?;
        let contents = if kind == SHA256 {
            vec![7; 32]
        } else {
            der(u, 0)?
        };
        let entry = 16 + contents.len();
        data.extend(kind);
        for field in [28 + entry, 0, entry] {
            let field = if u.ratio(1, 24)? {
                u.arbitrary()?
            } else {
                field as u32
            };
            data.extend(field.to_le_bytes());
        }
        data.extend([3; 16]);
        data.extend(contents);
    }
    if u.ratio(1, 4)? {
        let tail = u.int_in_range(0..=8)?;
        data.extend(u.bytes(tail)?);
    }
    Ok(data)
}

/// A tree of DER elements with tags as certificates have them.
fn der(u: &mut Unstructured<'_>, depth: u32) -> Result<Vec<u8>> {
    let tag = *u.choose(&[0x30, 0x30, 0x30, 0x31, 0x06, 0x0c, 0xa0, 0x02])?;
    let mut contents = Vec::new();
    if depth < 5 && matches!(tag, 0x30 | 0x31 | 0xa0) {
        for _ in 0..u.int_in_range(0..=6)? {
            contents.extend(der(u, depth + 1)?);
        }
    } else if tag == 0x06 {
        contents.extend([0x55, 4, 3]);
    } else {
        let len = u.int_in_range(0..=4)?;
        contents.extend(u.bytes(len)?);
    }
    let len = contents.len() as u16;
    let len = if u.ratio(1, 24)? { u.arbitrary()? } else { len };
    let mut bytes = vec![tag, 0x82];
    bytes.extend(len.to_be_bytes());
    bytes.extend(contents);
    Ok(bytes)
}

/// A store made by the recipe in `u`.
pub fn build(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = usize::from(u.int_in_range(1..=4_u8)?) * 0x1000;
    let mut store = legal(len);
    for _ in 0..u.int_in_range(0..=6)? {
        store.add(u)?;
    }
    if u.ratio(1, 3)? {
        let value = interesting(u, len as u64)?.to_le_bytes();
        let (at, size) = *u.choose(&[
            (32, 8),
            (40, 4),
            (48, 2),
            (50, 2),
            (72, 8),
            (88, 4),
            (92, 2),
        ])?;
        put(&mut store.bytes, at, &value[..size]);
        if at != 50 && u.ratio(3, 4)? {
            store.sum_up();
        }
    }
    Ok(store.bytes)
}
