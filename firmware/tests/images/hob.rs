//! The hand-off blocks, read back block by block.

use proptest::prelude::*;
use tdvmm_arch::{Gpa, GpaRange, RamLayout};
use tdvmm_firmware::hob::{self, Extensions, HobError, ResourceKind};
use tdvmm_firmware::image::{Family, Image, SectionKind};
use tdvmm_firmware::td_shim::PayloadInfo;

use crate::synthetic::{self, Lead, row};
use crate::variables::Store;

const OVMF_LEN: usize = 4 << 20;
const SHIM_LEN: usize = 16 << 20;

/// OVMF's sections with a volume of variables, by which it is known.
fn ovmf() -> Vec<u8> {
    let mut file = synthetic::image(OVMF_LEN, Lead::Table, &synthetic::ovmf());
    file[..0x8_4000].copy_from_slice(&Store::new(0x8_4000).bytes);
    file
}

fn ram(size: u64) -> Vec<GpaRange> {
    RamLayout::new(size).unwrap().ranges().collect()
}

/// Type and fields after the header of each block.
fn blocks(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let kind = u16::from_le_bytes([rest[0], rest[1]]);
        let len = usize::from(u16::from_le_bytes([rest[2], rest[3]]));
        assert_eq!(rest[4..8], [0; 4], "reserved");
        assert_eq!(len % 8, 0);
        found.push((kind, rest[8..len].to_vec()));
        rest = &rest[len..];
    }
    found
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn hob_of_ovmf_describes_added_and_unaccepted_memory_in_order() {
    let file = ovmf();
    let image = Image::parse(&file).unwrap();
    assert_eq!(image.family(), Family::Ovmf);
    let hob = hob::build(&image, &ram(3 << 30), 2, &Extensions::default()).unwrap();

    let blocks = blocks(hob.bytes());
    let (kind, handoff) = &blocks[0];
    assert_eq!((*kind, handoff.len()), (1, 48));
    assert_eq!(handoff[..8], [9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(handoff[8..40], [0; 32]);
    assert_eq!(u64_at(handoff, 40), 0x80_9000 + hob.bytes().len() as u64);
    assert_eq!(*blocks.last().unwrap(), (0xffff, vec![]));

    let expected: &[(u64, u64, u32)] = &[
        (0, 0x80_0000, 7),
        (0x80_0000, 0x80_6000, 0),
        (0x80_6000, 0x80_9000, 7),
        (0x80_9000, 0x80_b000, 0),
        (0x80_b000, 0x80_d000, 0),
        (0x80_d000, 0x81_0000, 7),
        (0x81_0000, 0x82_0000, 0),
        (0x82_0000, 0x8000_0000, 7),
        (0x1_0000_0000, 0x1_4000_0000, 7),
    ];
    let described: Vec<_> = blocks[1..blocks.len() - 1]
        .iter()
        .map(|(kind, block)| {
            assert_eq!((*kind, block.len()), (3, 40));
            assert_eq!(block[..16], [0; 16]);
            assert_eq!(block[20..24], [7, 0, 0, 0]);
            let start = u64_at(block, 24);
            let kind = u32::from_le_bytes(block[16..20].try_into().unwrap());
            (start, start + u64_at(block, 32), kind)
        })
        .collect();
    assert_eq!(described, expected);
}

#[test]
fn hob_is_measured_without_end_block_by_ovmf_and_with_it_by_shim() {
    let file = ovmf();
    let image = Image::parse(&file).unwrap();
    let hob = hob::build(&image, &ram(1 << 30), 1, &Extensions::default()).unwrap();
    let len = hob.bytes().len();
    assert_eq!(hob.measured(Family::Ovmf), &hob.bytes()[..len - 8]);
    assert_eq!(hob.measured(Family::TdShim), hob.bytes());
}

#[test]
fn hob_for_shim_holds_payload_and_tables() {
    let file = synthetic::image(SHIM_LEN, Lead::Both, &synthetic::shim_boot_kernel());
    let image = Image::parse(&file).unwrap();
    let extensions = Extensions {
        payload: Some(PayloadInfo::RawVmlinux {
            entry: Gpa(0x86_1200),
        }),
        acpi_tables: &[b"APIC of 13 by", b"FACP"],
    };
    let hob = hob::build(&image, &ram(1 << 30), 64, &extensions).unwrap();
    let guided: Vec<_> = blocks(hob.bytes())
        .into_iter()
        .filter(|(kind, _)| *kind == 4)
        .map(|(_, block)| block)
        .collect();
    // b96fa412-461f-4be3-8c0d-ad805a497ac0
    assert_eq!(guided[0][..4], [0x12, 0xa4, 0x6f, 0xb9]);
    assert_eq!(guided[0][16..24], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(u64_at(&guided[0], 24), 0x86_1200);
    // 6a0c5870-d4ed-44f4-a135-dd238b6f0c8d
    assert_eq!(guided[1][..4], [0x70, 0x58, 0x0c, 0x6a]);
    assert_eq!(guided[1][16..], *b"APIC of 13 by\0\0\0");
    assert_eq!(guided[2][16..], *b"FACP\0\0\0\0");
    assert_eq!(guided.len(), 3);
    // The firmware's own memory below 4 GiB is no RAM.
    assert!(hob.memory().iter().all(|p| p.range.end() <= Gpa(1 << 30)));
}

#[test]
fn hob_larger_than_its_section_is_refused() {
    let mut rows = synthetic::shim_boot_kernel();
    rows[5].memory_size = 0x1000;
    let file = synthetic::image(SHIM_LEN, Lead::Both, &rows);
    let image = Image::parse(&file).unwrap();
    let table = [0; 0x1000];
    let extensions = Extensions {
        payload: None,
        acpi_tables: &[&table],
    };
    let refused = hob::build(&image, &ram(1 << 30), 1, &extensions);
    let Err(HobError::TooLarge { needed, room }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(room, 0x1000);
    assert!(needed > 0x1000);

    let table = [0; 0x1_0000];
    let extensions = Extensions {
        payload: None,
        acpi_tables: &[&table],
    };
    let refused = hob::build(&image, &ram(1 << 30), 1, &extensions);
    let (index, len) = (0, 0x1_0000);
    assert_eq!(refused, Err(HobError::Table { index, len }));
}

#[test]
fn too_little_memory_is_refused_with_what_needs_it() {
    let file = ovmf();
    let image = Image::parse(&file).unwrap();
    let build = |size, vcpus| hob::build(&image, &ram(size), vcpus, &Extensions::default());
    let expected = HobError::NotRam {
        index: 5,
        kind: SectionKind::TempMem,
        range: GpaRange::constant(0x80_0000, 0x6000),
    };
    assert_eq!(build(8 << 20, 1), Err(expected));

    assert!(build(9 << 20, 512).is_ok());
    let expected = HobError::ApStacks {
        vcpus: 513,
        needed: 10 << 20,
        largest: 8 << 20,
    };
    assert_eq!(build(9 << 20, 513), Err(expected));
}

#[test]
fn blocks_of_shim_are_refused_for_ovmf() {
    let file = ovmf();
    let image = Image::parse(&file).unwrap();
    let extensions = Extensions {
        payload: Some(PayloadInfo::BzImage),
        acpi_tables: &[],
    };
    let refused = hob::build(&image, &ram(1 << 30), 1, &extensions);
    assert_eq!(refused, Err(HobError::Extensions(Family::Ovmf)));
}

#[test]
fn image_that_declares_its_memory_gets_no_hob() {
    let file = synthetic::image(SHIM_LEN, Lead::Both, &synthetic::shim_custom());
    let image = Image::parse(&file).unwrap();
    let refused = hob::build(&image, &ram(1 << 30), 1, &Extensions::default());
    assert_eq!(refused, Err(HobError::NoSection));
    assert_eq!(image.hob_address(), Gpa(0));
}

#[test]
fn ram_out_of_order_is_refused() {
    let file = ovmf();
    let image = Image::parse(&file).unwrap();
    let mut ram = ram(3 << 30);
    ram.reverse();
    let refused = hob::build(&image, &ram, 1, &Extensions::default());
    assert_eq!(refused, Err(HobError::Order(ram[1])));
}

proptest! {
    #[test]
    fn memory_map_covers_ram_once(
        pages in (9 << 8)..(64_u64 << 18),
        places in proptest::collection::btree_set(0_u64..0x800, 0..20),
    ) {
        let mut rows = synthetic::ovmf();
        // Sections of one page anywhere below the ones that are there.
        rows.extend(places.iter().map(|page| row(3, (0, 0), (page * 0x1000, 0x1000), 0)));
        let file = synthetic::image(OVMF_LEN, Lead::Table, &rows);
        let image = Image::parse(&file).unwrap();
        let ram = ram(pages * 0x1000);
        let map = hob::memory_map(&image, &ram).unwrap();

        prop_assert!(map.windows(2).all(|p| p[0].range.end() <= p[1].range.start()));
        let total = |kind: Option<ResourceKind>| -> u64 {
            let pieces = map.iter().filter(|p| kind.is_none_or(|kind| p.kind == kind));
            pieces.map(|piece| piece.range.len()).sum()
        };
        prop_assert_eq!(total(None), pages * 0x1000);
        let added = 0x1_a000 + places.len() as u64 * 0x1000;
        prop_assert_eq!(total(Some(ResourceKind::Added)), added);
        prop_assert!(map.iter().all(|p| ram.iter().any(|r| r.contains_range(p.range))));
    }
}
