//! A system description table under construction: the common header and little-endian fields (5.2.6).

use alloc::vec::Vec;

/// Bytes of the header.
pub(super) const HEADER_SIZE: usize = 36;

/// Who made the tables. Constant, as all of them.
pub(super) const OEM_ID: [u8; 6] = *b"TDVMM ";

const OEM_TABLE_ID: [u8; 8] = *b"TDVMM   ";
const OEM_REVISION: u32 = 1;
const CREATOR_ID: [u8; 4] = *b"TDVM";
const CREATOR_REVISION: u32 = 1;

const LENGTH: usize = 4;

/// The bytes of a table; length and checksum are still zero.
#[derive(Debug)]
pub(super) struct Sdt {
    signature: [u8; 4],
    bytes: Vec<u8>,
}

impl Sdt {
    pub(super) fn new(signature: [u8; 4], revision: u8) -> Self {
        let mut table = Self {
            signature,
            bytes: Vec::with_capacity(512),
        };
        table.bytes(&signature);
        table.u32(0);
        table.u8(revision);
        table.u8(0);
        table.bytes(&OEM_ID);
        table.bytes(&OEM_TABLE_ID);
        table.u32(OEM_REVISION);
        table.bytes(&CREATOR_ID);
        table.u32(CREATOR_REVISION);
        table
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Zero bytes up to `offset` from the table's start, where the next field goes.
    pub(super) fn zero_to(&mut self, offset: usize) {
        debug_assert!(
            offset >= self.bytes.len(),
            "fields are written in ascending order"
        );
        self.bytes.resize(offset, 0);
    }

    /// A generic address structure (5.2.3.2) for an I/O port register of `width` bits.
    pub(super) fn port(&mut self, port: u16, width: u8) {
        const SYSTEM_IO: u8 = 1;
        let access_size = match width {
            8 => 1,
            16 => 2,
            _ => 3,
        };
        self.bytes(&[SYSTEM_IO, width, 0, access_size]);
        self.u64(port.into());
    }

    /// Signature and bytes, the length filled in.
    pub(super) fn finish(mut self) -> ([u8; 4], Vec<u8>) {
        // 4096 vCPUs make 64 KiB; no table comes near the limit of its length field.
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[LENGTH..LENGTH + 4].copy_from_slice(&len.to_le_bytes());
        (self.signature, self.bytes)
    }
}
