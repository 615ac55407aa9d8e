//! The few AML encodings that the DSDT needs (chapter 20), and resource descriptors (6.4).
//!
//! Names and values are ours and constant, so every function just encodes: nothing can fail.

use alloc::vec;
use alloc::vec::Vec;

/// `Name (name, value)`.
pub(super) fn name(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x08], name, value].concat()
}

/// `Scope (path) { body }`.
pub(super) fn scope(path: &[u8], body: &[Vec<u8>]) -> Vec<u8> {
    packaged(&[0x10], &[path, &body.concat()].concat())
}

/// `Device (name) { body }`.
pub(super) fn device(name: &[u8; 4], body: &[Vec<u8>]) -> Vec<u8> {
    packaged(&[0x5b, 0x82], &[name.as_slice(), &body.concat()].concat())
}

/// `Package () { elements }`.
pub(super) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let count = u8::try_from(elements.len()).unwrap_or(u8::MAX);
    packaged(&[0x12], &[&[count], elements.concat().as_slice()].concat())
}

/// A constant integer in its shortest form.
pub(super) fn integer(value: u32) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    match value {
        0 | 1 => vec![bytes[0]],
        2..=0xff => vec![0x0a, bytes[0]],
        0x100..=0xffff => vec![0x0b, bytes[0], bytes[1]],
        _ => [&[0x0c], bytes.as_slice()].concat(),
    }
}

/// `EisaId ("PNPxxxx")`, with the four digits as a number (19.3.4).
pub(super) fn pnp_id(product: u16) -> Vec<u8> {
    let letter = |letter: u8| u16::from(letter - b'@');
    let vendor = letter(b'P') << 10 | letter(b'N') << 5 | letter(b'P');
    let [vendor_high, vendor_low] = vendor.to_be_bytes();
    let [high, low] = product.to_be_bytes();
    integer(u32::from_le_bytes([vendor_high, vendor_low, high, low]))
}

/// `ResourceTemplate () { descriptors }`: a buffer, ended by the end tag with a checksum of zero, which says
/// that there is none (6.4.2.9).
pub(super) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    let bytes = [descriptors.concat(), vec![0x79, 0]].concat();
    let len = integer(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    // A buffer's size is an ordinary integer object; sizes 0 and 1 do not occur.
    packaged(&[0x11], &[len, bytes].concat())
}

/// `IO (Decode16, first, first, 1, len)` (6.4.2.5).
pub(super) fn io(first: u16, len: u8) -> Vec<u8> {
    let [low, high] = first.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, len]
}

/// `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }` (6.4.3.6).
pub(super) fn edge_interrupt(gsi: u32) -> Vec<u8> {
    [&[0x89, 6, 0, 0b11, 1], gsi.to_le_bytes().as_slice()].concat()
}

/// `Memory32Fixed (ReadWrite, base, len)` (6.4.3.4).
pub(super) fn memory32_fixed(base: u32, len: u32) -> Vec<u8> {
    [
        &[0x86, 9, 0, 1],
        base.to_le_bytes().as_slice(),
        len.to_le_bytes().as_slice(),
    ]
    .concat()
}

/// What an address space descriptor describes, with its type-specific flags.
#[derive(Clone, Copy, Debug)]
pub(super) enum Window {
    /// 32-bit memory, read and write, not cacheable.
    Memory,
    /// I/O ports, both ISA and non-ISA ranges.
    Io,
    /// Bus numbers.
    Bus,
}

impl Window {
    const fn type_and_flags(self) -> [u8; 2] {
        match self {
            Self::Memory => [0, 1],
            Self::Io => [1, 3],
            Self::Bus => [2, 0],
        }
    }
}

/// Resource producer, minimum and maximum fixed, positive decode.
const PRODUCER_FIXED: u8 = 0b1100;

/// `WordIO` or `WordBusNumber` from `first` to `last` (6.4.3.5.3).
pub(super) fn word_window(window: Window, first: u16, last: u16) -> Vec<u8> {
    let [kind, flags] = window.type_and_flags();
    let mut bytes = vec![0x88, 13, 0, kind, PRODUCER_FIXED, flags];
    // Granularity, minimum, maximum, translation, length. No window has 65,536 numbers.
    for field in [0, first, last, 0, last - first + 1] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes
}

/// `DWordMemory` from `first` to `last` (6.4.3.5.2).
pub(super) fn dword_window(window: Window, first: u32, last: u32) -> Vec<u8> {
    let [kind, flags] = window.type_and_flags();
    let mut bytes = vec![0x87, 23, 0, kind, PRODUCER_FIXED, flags];
    for field in [0, first, last, 0, last - first + 1] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes
}

/// `op`, the length of all that follows it, `body` (20.2.4).
fn packaged(op: &[u8], body: &[u8]) -> Vec<u8> {
    [op, package_length(body.len()).as_slice(), body].concat()
}

/// The length of a package of `body` bytes, its own bytes included: up to 63 in one byte, else four bits in
/// the first byte and eight in each of one to three more.
fn package_length(body: usize) -> Vec<u8> {
    if body < 0x3f {
        return body.wrapping_add(1).to_le_bytes()[..1].to_vec();
    }
    let more = if body + 2 <= 0xfff {
        1u8
    } else if body + 3 <= 0xf_ffff {
        2
    } else {
        3
    };
    let total = body + 1 + usize::from(more);
    let [low, ..] = (total & 0xf).to_le_bytes();
    let mut bytes = vec![more << 6 | low];
    bytes.extend_from_slice(&(total >> 4).to_le_bytes()[..usize::from(more)]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pnp_ids_are_compressed_as_the_specification_shows() {
        // 19.3.4: EisaId ("PNP0C02") is 0x020cd041.
        assert_eq!(pnp_id(0x0c02), [0x0c, 0x41, 0xd0, 0x0c, 0x02]);
        assert_eq!(pnp_id(0x0a03), [0x0c, 0x41, 0xd0, 0x0a, 0x03]);
    }

    #[test]
    fn package_lengths_at_the_edges_of_each_form() {
        assert_eq!(package_length(0), [1]);
        assert_eq!(package_length(62), [63]);
        assert_eq!(package_length(63), [0x41, 4]);
        assert_eq!(package_length(0xfff - 2), [0x4f, 0xff]);
        assert_eq!(package_length(0xfff - 1), [0x81, 0x00, 0x01]);
        assert_eq!(package_length(0xf_ffff - 3), [0x8f, 0xff, 0xff]);
        assert_eq!(package_length(0xf_ffff - 2), [0xc1, 0x00, 0x00, 0x01]);
    }

    #[test]
    fn integers_take_their_shortest_form() {
        assert_eq!(integer(0), [0]);
        assert_eq!(integer(1), [1]);
        assert_eq!(integer(2), [0x0a, 2]);
        assert_eq!(integer(0x100), [0x0b, 0, 1]);
        assert_eq!(integer(0x1_0000), [0x0c, 0, 0, 1, 0]);
    }
}
