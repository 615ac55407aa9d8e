//! A small image of OVMF's kind: variables, code with the reset vector, a place for the hand-off blocks.

/// Bytes of the file.
pub const LEN: usize = 0x1_0000;
/// Bytes of its variable store, with which it begins.
pub const VARS: usize = 0x4000;

/// Where its temporary memory is, unless asked for elsewhere.
pub const IN_RAM: u64 = 0x81_0000;

/// Type, file offset, bytes in the file, address, bytes of memory, attributes. A measured section comes last.
type Row = (u32, u32, u32, u64, u64, u32);
const TEMPORARY: u32 = 3;
const ROWS: [Row; 4] = [
    (1, 0, 0x4000, 0xffff_0000, 0x4000, 0),
    (2, 0, 0, 0x80_9000, 0x2000, 0),
    (TEMPORARY, 0, 0, IN_RAM, 0x1000, 0),
    (0, 0x4000, 0xc000, 0xffff_4000, 0xc000, 1),
];

/// 96b582de-1fb2-45f7-baea-a366c55a082d: the end of the table of GUIDs.
const FOOTER: [u8; 16] = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";
/// e47a6535-984a-4798-865e-4685a7bf8ec2: where the descriptor is.
const DESCRIPTOR: [u8; 16] = *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2";
/// fff12b8d-7696-4c8b-a985-2747075b4f50: a volume of variables.
const VARIABLES: [u8; 16] = *b"\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50";
/// aaf32c78-947b-439a-a180-2e144ec37792: a store of authenticated variables.
const AUTHENTICATED: [u8; 16] =
    *b"\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92";

/// The image.
pub fn image() -> Vec<u8> {
    image_after(0, IN_RAM)
}

/// The same with `front` bytes in front of it that no section loads, and its temporary memory at `temporary`.
pub fn image_after(front: usize, temporary: u64) -> Vec<u8> {
    let mut file = vec![0; front];
    file.extend((0..LEN).map(|at| (at / 251).to_le_bytes()[0]));
    file[front..front + VARS].copy_from_slice(&variables(0x11));
    let len = file.len();
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let at = len - 0x1000;
    put(at, b"TDVF");
    put(at + 4, &(16 + 32 * 4_u32).to_le_bytes());
    put(at + 8, &1_u32.to_le_bytes());
    put(at + 12, &4_u32.to_le_bytes());
    for (index, (kind, offset, raw, address, memory, attributes)) in ROWS.into_iter().enumerate() {
        let at = at + 16 + 32 * index;
        let offset = offset + u32::try_from(if raw == 0 { 0 } else { front }).unwrap();
        let address = if kind == TEMPORARY {
            temporary
        } else {
            address
        };
        put(at, &offset.to_le_bytes());
        put(at + 4, &raw.to_le_bytes());
        put(at + 8, &address.to_le_bytes());
        put(at + 16, &memory.to_le_bytes());
        put(at + 24, &kind.to_le_bytes());
        put(at + 28, &attributes.to_le_bytes());
    }
    put(len - 0x20, &[0; 4]);
    put(len - 0x30, &FOOTER);
    put(len - 0x32, &(18 + 22_u16).to_le_bytes());
    put(len - 0x42, &DESCRIPTOR);
    put(len - 0x44, &22_u16.to_le_bytes());
    put(len - 0x48, &0x1000_u32.to_le_bytes());
    file
}

/// A volume without variables, whose part for other things is full of `fill`.
pub fn variables(fill: u8) -> Vec<u8> {
    const VOLUME_HEADER: usize = 72;
    const STORE: usize = 0x2000;
    let mut volume = vec![fill; VARS];
    volume[..STORE].fill(0xff);
    volume[..VOLUME_HEADER].fill(0);
    let mut put = |at: usize, bytes: &[u8]| volume[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &VARIABLES);
    put(32, &(VARS as u64).to_le_bytes());
    put(40, b"_FVH");
    put(48, &[72]);
    put(55, &[2]);
    put(72, &AUTHENTICATED);
    put(
        88,
        &u32::try_from(STORE - VOLUME_HEADER).unwrap().to_le_bytes(),
    );
    put(92, &[0x5a, 0xfe]);
    let words = volume[..VOLUME_HEADER].as_chunks::<2>().0.iter();
    let sum = words.fold(0_u16, |sum, word| {
        sum.wrapping_add(u16::from_le_bytes(*word))
    });
    volume[50..52].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    volume
}
