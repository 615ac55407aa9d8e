//! A small image of OVMF's kind: variables, code with the reset vector, a place for the hand-off blocks.

/// Bytes of the file.
pub const LEN: usize = 0x1_0000;
/// Bytes of its variable store, with which it begins.
pub const VARS: usize = 0x4000;

/// Type, file offset, bytes in the file, address, bytes of memory, attributes. A measured section comes last.
type Row = (u32, u32, u32, u64, u64, u32);
const ROWS: [Row; 4] = [
    (1, 0, 0x4000, 0xffff_0000, 0x4000, 0),
    (2, 0, 0, 0x80_9000, 0x2000, 0),
    (3, 0, 0, 0x81_0000, 0x1000, 0),
    (0, 0x4000, 0xc000, 0xffff_4000, 0xc000, 1),
];

/// 96b582de-1fb2-45f7-baea-a366c55a082d: the end of the table of GUIDs.
const FOOTER: [u8; 16] = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";
/// e47a6535-984a-4798-865e-4685a7bf8ec2: where the descriptor is.
const DESCRIPTOR: [u8; 16] = *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2";
/// fff12b8d-7696-4c8b-a985-2747075b4f50: a volume of variables.
const VARIABLES: [u8; 16] = *b"\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50";

/// The image.
pub fn image() -> Vec<u8> {
    let mut file: Vec<u8> = (0..LEN).map(|at| (at / 251).to_le_bytes()[0]).collect();
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &VARIABLES);
    put(40, b"_FVH");
    let at = LEN - 0x1000;
    put(at, b"TDVF");
    put(at + 4, &(16 + 32 * 4_u32).to_le_bytes());
    put(at + 8, &1_u32.to_le_bytes());
    put(at + 12, &4_u32.to_le_bytes());
    for (index, (kind, offset, raw, address, memory, attributes)) in ROWS.into_iter().enumerate() {
        let at = at + 16 + 32 * index;
        put(at, &offset.to_le_bytes());
        put(at + 4, &raw.to_le_bytes());
        put(at + 8, &address.to_le_bytes());
        put(at + 16, &memory.to_le_bytes());
        put(at + 24, &kind.to_le_bytes());
        put(at + 28, &attributes.to_le_bytes());
    }
    put(LEN - 0x20, &[0; 4]);
    put(LEN - 0x30, &FOOTER);
    put(LEN - 0x32, &(18 + 22_u16).to_le_bytes());
    put(LEN - 0x42, &DESCRIPTOR);
    put(LEN - 0x44, &22_u16.to_le_bytes());
    put(LEN - 0x48, &0x1000_u32.to_le_bytes());
    file
}
