//! The one field of a certificate that people know it by. Nothing is verified here: firmware does
//! that, and this only names what it was given.
//!
//! Source: RFC 5280, 4.1; ITU-T X.690 for the encoding.

use alloc::string::String;

use crate::text::printable;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const EXPLICIT_VERSION: u8 = 0xa0;
/// 2.5.4.3, commonName.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The common name of the subject of a DER certificate, safe to print whatever the certificate holds.
pub(super) fn subject_common_name(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (mut fields, _) = expect(SEQUENCE, certificate)?;
    if let Some((_, rest)) = expect(EXPLICIT_VERSION, fields) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer, validity come before the subject.
    for _ in 0..4 {
        (_, _, fields) = element(fields)?;
    }
    let (mut names, _) = expect(SEQUENCE, fields)?;
    while let Some((name, rest)) = expect(SET, names) {
        let (attribute, _) = expect(SEQUENCE, name)?;
        let (identifier, value) = expect(OBJECT_IDENTIFIER, attribute)?;
        if identifier == COMMON_NAME {
            let (_, text, _) = element(value)?;
            return Some(printable(&String::from_utf8_lossy(text)));
        }
        names = rest;
    }
    None
}

/// The contents of an element of this tag, and what follows it.
fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, contents, rest) = element(bytes)?;
    (found == tag).then_some((contents, rest))
}

/// Tag and contents of the first element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => {
            let (len, rest) = rest.split_first()?;
            (usize::from(*len), rest)
        }
        0x82 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((*tag, contents, rest))
}
