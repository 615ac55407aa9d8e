//! Signatures of EFI programs, and the list of keys by which firmware judges them, as bytes. Pure.
//!
//! Sources: PE format, "Optional Header Data Directories" and "Attribute Certificate Table"; PKCS #7, 9.1; UEFI, 32.4.1
//! (EFI_SIGNATURE_LIST); EDK2 `MdeModulePkg/Include/Guid/VariableFormat.h`.

/// EFI_IMAGE_SECURITY_DATABASE_GUID, as stored, and the name `db` behind it in UTF-16.
const DB: [u8; 22] = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
    b'd', 0, b'b', 0, 0, 0,
];
/// EFI_CERT_X509_GUID, as stored.
const X509: [u8; 16] = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
const VARIABLE_HEADER: usize = 60;
const VENDOR_AT: usize = 44;
const ADDED: u8 = 0x3f;
const DELETED: u8 = 0x3d;

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*word)).ok()
}

/// Where the entry of the certificate table is in a PE32+ program, and the table's place and length.
fn certificate_table(program: &[u8]) -> Option<(usize, usize, usize)> {
    // Signature, file header, 112 bytes of optional header, then 8 bytes for each directory.
    let entry = u32_at(program, 0x3c)? + 24 + 112 + 4 * 8;
    let (at, len) = (u32_at(program, entry)?, u32_at(program, entry + 4)?);
    (len > 0).then_some((entry, at, len))
}

/// An EFI program without its certificate table, which is at its end.
pub fn without_signature(mut program: Vec<u8>) -> Option<Vec<u8>> {
    let (entry, at, len) = certificate_table(&program)?;
    if at.checked_add(len)? != program.len() {
        return None;
    }
    program.get_mut(entry..entry + 8)?.fill(0);
    program.truncate(at);
    Some(program)
}

/// The first certificate in the signature of an EFI program: that of the signer, where there is one only.
pub fn certificate(program: &[u8]) -> Option<&[u8]> {
    let (_, at, len) = certificate_table(program)?;
    // Length, revision and type come before the PKCS #7 structure.
    let (_, info, _) = element(program.get(at + 8..at + len)?)?;
    let (_, _, after_type) = element(info)?;
    let (_, explicit, _) = element(after_type)?;
    let (_, signed, _) = element(explicit)?;
    let (_, _, after_version) = element(signed)?;
    let (_, _, after_digests) = element(after_version)?;
    let (_, _, after_content) = element(after_digests)?;
    let (tag, certificates, _) = element(after_content)?;
    let (_, _, rest) = element(certificates)?;
    (tag == 0xa0).then(|| &certificates[..certificates.len() - rest.len()])
}

/// Tag, content, and what follows an element of DER.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0x80.. => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let len = digits
                .iter()
                .fold(0, |len, digit| len << 8 | usize::from(*digit));
            (len, rest)
        }
        _ => (usize::from(*first), rest),
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

/// A variable store whose `db` has one more certificate: the old variable is deleted and a new one appended.
pub fn with_key(mut store: Vec<u8>, certificate: &[u8]) -> Option<Vec<u8>> {
    let is_db = |at: usize| {
        let header = at.checked_sub(VENDOR_AT);
        header.is_some_and(|header| store.get(header + 2) == Some(&ADDED))
    };
    let found = store.windows(DB.len()).enumerate();
    let (at, _) = found
        .into_iter()
        .find(|(at, bytes)| *bytes == DB && is_db(*at))?;
    let header = at - VENDOR_AT;
    let data_len = u32_at(&store, header + 40)?;
    let data_at = at + DB.len();

    let mut variable = store.get(header..data_at + data_len)?.to_vec();
    variable.extend(X509);
    let (list, signature) = (28 + 16 + certificate.len(), 16 + certificate.len());
    for number in [list, 0, signature] {
        variable.extend(u32::try_from(number).ok()?.to_le_bytes());
    }
    variable.extend([0; 16]); // the owner, who is nobody
    variable.extend(certificate);
    let len = u32::try_from(data_len + list).ok()?;
    variable
        .get_mut(40..44)?
        .copy_from_slice(&len.to_le_bytes());

    let mut end = header;
    while store.get(end..end + 2)? == [0xaa, 0x55] {
        let (name, data) = (u32_at(&store, end + 36)?, u32_at(&store, end + 40)?);
        end = (end + VARIABLE_HEADER + name + data).next_multiple_of(4);
    }
    *store.get_mut(header + 2)? = DELETED;
    let free = store.get_mut(end..end + variable.len())?;
    if free.iter().any(|byte| *byte != 0xff) {
        return None;
    }
    free.copy_from_slice(&variable);
    Some(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; VARIABLE_HEADER];
        bytes[..3].copy_from_slice(&[0xaa, 0x55, ADDED]);
        bytes[36] = 6;
        bytes[40] = u8::try_from(data.len()).unwrap();
        bytes.truncate(VENDOR_AT);
        bytes.extend(DB);
        bytes.extend(data);
        bytes
    }

    #[test]
    fn key_is_appended_to_what_was_there_and_the_old_list_deleted() {
        let mut store = variable(b"old!!!");
        let old = store.len();
        store.resize(400, 0xff);
        let new = with_key(store, b"certificate").unwrap();
        assert_eq!(new[2], DELETED);
        let at = old.next_multiple_of(4);
        assert_eq!(new[at..at + 3], [0xaa, 0x55, ADDED]);
        assert_eq!(u32_at(&new, at + 40), Some(6 + 28 + 16 + 11));
        let data = at + VENDOR_AT + DB.len();
        assert_eq!(&new[data..data + 6], b"old!!!");
        assert!(new[data..].windows(11).any(|bytes| bytes == b"certificate"));
    }

    #[test]
    fn store_without_room_or_list_is_refused() {
        assert_eq!(with_key(variable(b"old!"), b"certificate"), None);
        assert_eq!(with_key(vec![0xff; 400], b"certificate"), None);
    }

    #[test]
    fn element_of_der_has_short_and_long_lengths() {
        assert_eq!(element(&[2, 1, 5, 9]), Some((2, &[5][..], &[9][..])));
        let long: Vec<u8> = [&[0x30, 0x82, 1, 0][..], &[7; 256]].concat();
        assert_eq!(element(&long).unwrap().1.len(), 256);
        assert_eq!(element(&[0x30, 0x82, 1]), None);
    }
}
