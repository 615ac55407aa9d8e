//! Every refusal of the parser, with the number it names.

use tdvmm_arch::{Gpa, GpaRange};
use tdvmm_firmware::image::{
    Contents, DescriptorError, Family, FoundBy, Image, LayoutError, ParseError, RegionError,
    SectionError, SectionKind,
};

use crate::synthetic::{self, Lead, Row, put32, row};
use crate::variables::Store;

const LEN: usize = 4 << 20;
const DESCRIPTOR: usize = LEN - 0x1000;

fn refusal(file: &[u8]) -> ParseError {
    Image::parse(file).expect_err("the image is not legal")
}

/// The refusal of OVMF's sections after `change`.
fn refusal_of_rows(change: impl FnOnce(&mut Vec<Row>)) -> ParseError {
    let mut rows = synthetic::ovmf();
    change(&mut rows);
    refusal(&synthetic::image(LEN, Lead::Table, &rows))
}

/// The refusal of one section after `change`.
fn refusal_of_section(index: usize, change: impl FnOnce(&mut Row)) -> SectionError {
    match refusal_of_rows(|rows| change(&mut rows[index])) {
        ParseError::Section {
            index: named,
            source,
            ..
        } if named == index => source,
        other => panic!("refused for another reason: {other}"),
    }
}

fn refusal_of_layout(change: impl FnOnce(&mut Vec<Row>)) -> LayoutError {
    match refusal_of_rows(change) {
        ParseError::Layout(source) => source,
        other => panic!("refused for another reason: {other}"),
    }
}

fn refusal_of_descriptor(change: impl FnOnce(&mut [u8])) -> DescriptorError {
    let mut file = synthetic::image(LEN, Lead::Table, &synthetic::ovmf());
    change(&mut file);
    match refusal(&file) {
        ParseError::Descriptor { source, .. } => source,
        other => panic!("refused for another reason: {other}"),
    }
}

#[test]
fn file_that_is_no_whole_number_of_pages_is_refused() {
    assert_eq!(refusal(&[]), ParseError::Size(0));
    assert_eq!(refusal(&[0; 0x1001]), ParseError::Size(0x1001));
}

#[test]
fn file_without_lead_to_a_descriptor_is_refused() {
    let file = synthetic::image(LEN, Lead::Neither, &synthetic::ovmf());
    let expected = ParseError::NoMetadata {
        pointer_at: LEN - 0x20,
        pointer: 0,
    };
    assert_eq!(refusal(&file), expected);
}

#[test]
fn pointer_to_something_else_is_no_lead() {
    for pointer in [u32::MAX, LEN as u32 - 2, 0x1234] {
        let mut file = synthetic::image(LEN, Lead::Pointer, &synthetic::ovmf());
        put32(&mut file, LEN - 0x20, pointer);
        let expected = ParseError::NoMetadata {
            pointer_at: LEN - 0x20,
            pointer,
        };
        assert_eq!(refusal(&file), expected);
    }
}

#[test]
fn descriptor_is_found_by_table_first_and_by_pointer_else() {
    let rows = synthetic::shim_elf_in_bfv();
    for (lead, found_by) in [
        (Lead::Table, FoundBy::GuidTable),
        (Lead::Both, FoundBy::GuidTable),
        (Lead::Pointer, FoundBy::Pointer),
    ] {
        let file = synthetic::image(16 << 20, lead, &rows);
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.found_by(), found_by);
        assert_eq!(image.sections().len(), rows.len());
        let shim = lead != Lead::Table;
        assert_eq!(image.family() == Family::TdShim, shim, "{lead:?}");
    }
}

#[test]
fn guid_table_that_does_not_fit_is_refused() {
    let mut file = synthetic::image(0x1000, Lead::Neither, &[]);
    let at = 0x1000 - 0x32;
    file[at + 2..at + 18].copy_from_slice(&synthetic::FOOTER);
    for len in [0, 17, 0xffff] {
        file[at..at + 2].copy_from_slice(&u16::to_le_bytes(len));
        assert_eq!(refusal(&file), ParseError::GuidTable { at, len });
    }
}

#[test]
fn entry_of_guid_table_that_does_not_fit_is_refused() {
    let mut file = synthetic::image(LEN, Lead::Table, &synthetic::ovmf());
    let end = LEN - 0x32;
    for len in [0, 17, 47, 0xffff] {
        file[end - 18..end - 16].copy_from_slice(&u16::to_le_bytes(len));
        assert_eq!(refusal(&file), ParseError::GuidEntry { end, len });
    }
}

#[test]
fn descriptor_outside_the_file_is_refused() {
    let tdx_entry_data = LEN - 0x32 - 24 - 22;
    for from_end in [0, 1, 3, LEN as u32 + 1, u32::MAX] {
        let source = refusal_of_descriptor(|file| put32(file, tdx_entry_data, from_end));
        assert_eq!(source, DescriptorError::OutOfFile { file: LEN });
    }
}

#[test]
fn descriptor_with_wrong_header_is_refused() {
    let source = refusal_of_descriptor(|file| put32(file, DESCRIPTOR, 1));
    assert_eq!(source, DescriptorError::Signature(1));
    let source = refusal_of_descriptor(|file| put32(file, DESCRIPTOR + 8, 2));
    assert_eq!(source, DescriptorError::Version(2));
    let source = refusal_of_descriptor(|file| put32(file, DESCRIPTOR + 12, 0x0800_0000));
    let (length, sections) = (16 + 32 * 6, 0x0800_0000);
    assert_eq!(source, DescriptorError::Length { length, sections });
    let source = refusal_of_descriptor(|file| {
        put32(file, DESCRIPTOR + 4, 16 + 32 * 129);
        put32(file, DESCRIPTOR + 12, 129);
    });
    assert_eq!(source, DescriptorError::TooManySections(129));
    let source = refusal_of_descriptor(|file| {
        put32(file, DESCRIPTOR + 4, 16 + 32 * 128);
        put32(file, DESCRIPTOR + 12, 128);
    });
    assert_eq!(source, DescriptorError::OutOfFile { file: LEN });
}

#[test]
fn section_of_unknown_type_is_refused() {
    let source = refusal_of_section(2, |row| row.kind = 9);
    assert_eq!(source, SectionError::Kind(9));
}

#[test]
fn attributes_that_the_type_cannot_have_are_refused() {
    for (index, attributes) in [(0, 2), (0, 3), (0, 4), (2, 2), (4, 1)] {
        let source = refusal_of_section(index, |row| row.attributes = attributes);
        assert_eq!(source, SectionError::Attributes(attributes));
    }
    // PermMem, which the guest accepts itself: nobody would add it.
    for attributes in [0, 1, 3] {
        let source = refusal_of_section(3, |row| (row.kind, row.attributes) = (4, attributes));
        assert_eq!(source, SectionError::Attributes(attributes));
    }
}

#[test]
fn memory_of_broken_pages_is_refused() {
    let source = refusal_of_section(3, |row| row.address += 0x10);
    let (at, len) = (Gpa(0x80_b010), 0x2000);
    assert_eq!(source, SectionError::Unaligned { at, len });
    let source = refusal_of_section(3, |row| row.memory_size -= 1);
    let (at, len) = (Gpa(0x80_b000), 0x1fff);
    assert_eq!(source, SectionError::Unaligned { at, len });
}

#[test]
fn memory_at_the_shared_bit_or_beyond_is_refused() {
    for address in [1 << 47, (1 << 47) - 0x1000, u64::MAX - 0xfff] {
        let source = refusal_of_section(3, |row| row.address = address);
        let (at, len) = (Gpa(address), 0x2000);
        assert_eq!(source, SectionError::Unreachable { at, len });
    }
}

#[test]
fn memory_size_that_the_type_cannot_have_is_refused() {
    let source = refusal_of_section(3, |row| row.memory_size = 0);
    assert_eq!(source, SectionError::MemorySize(0));
    let source = refusal_of_section(3, |row| row.kind = 7);
    assert_eq!(source, SectionError::MemorySize(0x2000));
}

#[test]
fn raw_data_that_the_type_cannot_have_is_refused() {
    let source = refusal_of_section(1, |row| row.raw_size = 0);
    assert_eq!(source, SectionError::RawSize(0));
    let source = refusal_of_section(3, |row| row.raw_size = 0x1000);
    assert_eq!(source, SectionError::RawSize(0x1000));
}

#[test]
fn more_raw_data_than_memory_is_refused() {
    let source = refusal_of_section(1, |row| row.raw_size += 1);
    let (raw, memory) = (0x8_4001, 0x8_4000);
    assert_eq!(source, SectionError::RawExceedsMemory { raw, memory });
}

#[test]
fn raw_data_outside_the_file_is_refused() {
    let file = LEN as u64;
    let source = refusal_of_section(0, |row| row.data_offset += 1);
    let end = file + 1;
    assert_eq!(source, SectionError::DataOutOfFile { end, file });
    let source = refusal_of_section(1, |row| row.data_offset = u32::MAX);
    let end = u64::from(u32::MAX) + 0x8_4000;
    assert_eq!(source, SectionError::DataOutOfFile { end, file });
}

#[test]
fn sections_that_share_memory_are_refused() {
    let refused = refusal_of_layout(|rows| rows[5].memory_size = 0xa000);
    let expected = LayoutError::MemoryOverlap {
        first: 4,
        second: 5,
        shared: GpaRange::constant(0x80_9000, 0x1000),
    };
    assert_eq!(refused, expected);
}

#[test]
fn sections_that_share_bytes_of_the_file_are_refused() {
    let refused = refusal_of_layout(|rows| {
        rows[1].address = 0x100_0000;
        rows[1].data_offset = 0x1000;
    });
    let expected = LayoutError::FileOverlap {
        first: 0,
        second: 1,
        at: 0x8_4000,
    };
    assert_eq!(refused, expected);
}

#[test]
fn second_section_of_a_single_type_is_refused() {
    let refused = refusal_of_layout(|rows| rows.push(row(2, (0, 0), (0x90_0000, 0x1000), 0)));
    let expected = LayoutError::Duplicate {
        index: 6,
        kind: SectionKind::TdHob,
    };
    assert_eq!(refused, expected);
}

#[test]
fn parameters_without_payload_are_refused() {
    let refused = refusal_of_layout(|rows| rows.push(row(6, (0, 0), (0x90_0000, 0x1000), 0)));
    assert_eq!(refused, LayoutError::OrphanParameters { index: 6 });
}

#[test]
fn image_without_reset_vector_is_refused() {
    let vector = Gpa(0xffff_fff0);
    let refused = refusal_of_layout(|rows| rows[0].address -= 0x100_0000);
    assert_eq!(refused, LayoutError::NoResetVector(vector));
}

#[test]
fn image_without_hob_and_declared_memory_is_refused() {
    let refused = refusal_of_layout(|rows| rows.truncate(4));
    assert_eq!(refused, LayoutError::NoMemoryMap);
}

#[test]
fn image_that_adds_more_memory_than_a_gibibyte_is_refused() {
    let refused = refusal_of_layout(|rows| {
        rows.push(row(3, (0, 0), (0x1_0000_0000, 1 << 30), 0));
    });
    let total = (1 << 30) + (4 << 20) + 0x1_a000;
    assert_eq!(refused, LayoutError::TooMuchMemory { total });
}

#[test]
fn code_without_variables_is_refused_as_such() {
    let whole = synthetic::image(LEN, Lead::Table, &synthetic::ovmf());
    let (file, image) = (0x37_c000, LEN as u64);
    let refused = refusal(&whole[0x8_4000..]);
    assert_eq!(refused, ParseError::CodeOnly { file, image });
}

#[test]
fn variables_alone_are_refused_as_such_and_a_file_that_only_starts_with_them_is_not() {
    let mut whole = synthetic::image(LEN, Lead::Table, &synthetic::ovmf());
    whole[..0x8_4000].copy_from_slice(&Store::new(0x8_4000).bytes);
    assert_eq!(refusal(&whole[..0x8_4000]), ParseError::VariablesOnly);

    let mut other_entry = whole.clone();
    let guid = LEN - 0x32 - 24 - 16;
    assert_eq!(whole[guid..guid + 16], synthetic::TDX);
    other_entry[guid] ^= 1;
    for file in [
        &whole[..LEN / 2],
        &whole[..LEN - 0x1000],
        &whole[..0x8_3000],
        &other_entry[..],
    ] {
        let refused = refusal(file);
        let expected = matches!(refused, ParseError::NoMetadata { .. });
        assert!(expected, "{:#x} bytes: {refused}", file.len());
    }
}

#[test]
fn contents_for_a_section_that_cannot_take_them_are_refused() {
    let file = synthetic::image(LEN, Lead::Table, &synthetic::ovmf());
    let image = Image::parse(&file).unwrap();
    let contents = Contents {
        payload: Some(&[1]),
        ..Contents::default()
    };
    let refused = image.regions(&contents).unwrap_err();
    assert_eq!(refused, RegionError::NoSection(SectionKind::Payload));

    let contents = Contents {
        hob: Some(&[0; 0x2001]),
        ..Contents::default()
    };
    let expected = RegionError::TooLong {
        index: 4,
        kind: SectionKind::TdHob,
        len: 0x2001,
        room: 0x2000,
    };
    assert_eq!(image.regions(&contents).unwrap_err(), expected);

    let file = synthetic::image(16 << 20, Lead::Pointer, &synthetic::shim_payload_section(1));
    let image = Image::parse(&file).unwrap();
    let contents = Contents {
        payload: Some(&[1]),
        ..Contents::default()
    };
    let (index, kind) = (6, SectionKind::Payload);
    let refused = image.regions(&contents).unwrap_err();
    assert_eq!(refused, RegionError::Occupied { index, kind });
}
