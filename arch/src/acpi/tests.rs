use proptest::prelude::*;

use super::*;
use crate::map;

const AT: Gpa = Gpa(0xe_0000);

fn tables(vcpus: u32) -> AcpiTables {
    build(&AcpiInput::new(vcpus), AT)
}

fn table(tables: &AcpiTables, signature: &[u8; 4]) -> Vec<u8> {
    let span = tables
        .tables
        .iter()
        .find(|table| table.signature == *signature)
        .unwrap();
    tables.blob[span.offset..span.offset + span.len].to_vec()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

/// The (type, body) pairs of a MADT, walked by their length bytes.
fn entries(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while let [kind, len, ..] = *rest {
        let (entry, after) = rest.split_at(usize::from(len));
        found.push((kind, entry[2..].to_vec()));
        rest = after;
    }
    assert!(rest.is_empty());
    found
}

/// Walks from the RSDP as an operating system does; gives the signatures that it finds.
fn walk(tables: &AcpiTables) -> Vec<[u8; 4]> {
    let at = |address: u64| {
        let offset = usize::try_from(address - tables.blob_at.0).unwrap();
        let len = word(&tables.blob, offset + 4) as usize;
        let bytes = &tables.blob[offset..offset + len];
        assert_eq!(sum(bytes), 0, "{:?}", &bytes[..4]);
        assert!(address.is_multiple_of(64));
        bytes
    };
    assert_eq!((sum(&tables.rsdp[..20]), sum(&tables.rsdp)), (0, 0));
    let xsdt = at(long(&tables.rsdp, RSDP_XSDT));
    let mut found = vec![xsdt[..4].try_into().unwrap()];
    for entry in xsdt[36..].chunks_exact(8) {
        let table = at(long(entry, 0));
        found.push(table[..4].try_into().unwrap());
        if &table[..4] == b"FACP" {
            found.push(at(long(table, fadt::X_DSDT))[..4].try_into().unwrap());
        }
    }
    found
}

#[test]
fn all_tables_are_reached_from_the_root_with_good_checksums() {
    for vcpus in [1, 2, 255, 256, 4096] {
        let found = walk(&tables(vcpus));
        assert_eq!(found, [*b"XSDT", *b"FACP", *b"DSDT", *b"APIC", *b"MCFG"]);
    }
}

#[test]
fn tables_of_4096_vcpus_fit_the_area_that_kernels_search() {
    assert!(map::ACPI_AREA.contains_range(tables(4096).range()));
}

#[test]
fn fadt_is_hardware_reduced_and_names_its_registers() {
    let fadt = table(&tables(1), b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    assert_eq!(word(&fadt, 112), 0x0010_0475);
    // No firmware waking vector, no SCI, no PM1 blocks.
    assert_eq!(
        (
            word(&fadt, 36),
            word(&fadt, 44),
            word(&fadt, 56),
            word(&fadt, 64)
        ),
        (0, 0, 0, 0)
    );
    assert_eq!(
        fadt[116..129],
        [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 6]
    );
    assert_eq!(fadt[208..220], [1, 32, 0, 3, 8, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x14, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x15, 6, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn madt_describes_ids_below_255_as_apics_and_the_rest_as_x2apics() {
    let madt = table(&tables(4096), b"APIC");
    let entries = entries(&madt);
    let apics: Vec<u32> = entries
        .iter()
        .filter(|e| e.0 == 0)
        .map(|e| e.1[1].into())
        .collect();
    let x2apics: Vec<u32> = entries
        .iter()
        .filter(|e| e.0 == 9)
        .map(|e| word(&e.1, 2))
        .collect();
    assert!(apics.iter().copied().eq(0..255));
    assert!(x2apics.iter().copied().eq(255..4096));
    assert!(
        entries
            .iter()
            .filter(|e| e.0 == 9)
            .all(|e| word(&e.1, 10) == word(&e.1, 2))
    );
    assert_eq!(entries.iter().filter(|e| e.0 == 10).count(), 1);
}

#[test]
fn madt_of_255_vcpus_needs_no_x2apic_entry() {
    let entries = entries(&table(&tables(255), b"APIC"));
    assert!(entries.iter().all(|e| e.0 != 9 && e.0 != 10));
    assert_eq!(word(&table(&tables(255), b"APIC"), 40), 0, "no 8259");
}

#[test]
fn wakeup_mailbox_is_in_the_madt_when_there_is_one() {
    let input = AcpiInput {
        vcpus: 2,
        wakeup_mailbox: Some(Gpa(0x1234_5000)),
    };
    let entries = entries(&table(&build(&input, AT), b"APIC"));
    let mailbox: Vec<u64> = entries
        .iter()
        .filter(|e| e.0 == 16)
        .map(|e| long(&e.1, 6))
        .collect();
    assert_eq!(mailbox, [0x1234_5000]);
}

#[test]
fn unlinked_tables_do_not_depend_on_their_place() {
    let here = tables(3);
    let there = build(&AcpiInput::new(3), Gpa(0x7fff_0000));
    assert_ne!(here.blob, there.blob);
    assert_eq!(here.unlinked(), there.unlinked());
}

#[test]
fn loader_that_follows_the_relocations_makes_the_linked_tables() {
    let linked = tables(300);
    let (mut rsdp, mut blob) = linked.unlinked();
    for pointer in &linked.relocations {
        assert_eq!(pointer.size, 8);
        let target = long(&blob, pointer.pointer_offset) + linked.blob_at.0;
        put_u64(&mut blob, pointer.pointer_offset, target);
    }
    for table in &linked.tables {
        let bytes = &blob[table.offset..table.offset + table.len];
        assert_eq!(bytes[CHECKSUM], 0);
        let value = 0u8.wrapping_sub(sum(bytes));
        blob[table.checksum_offset()] = value;
    }
    let xsdt = long(&rsdp, RSDP_XSDT) + linked.blob_at.0;
    put_u64(&mut rsdp, RSDP_XSDT, xsdt);
    rsdp[RSDP_CHECKSUM] = 0u8.wrapping_sub(sum(&rsdp[..RSDP_V1_SIZE]));
    rsdp[RSDP_EXTENDED_CHECKSUM] = 0u8.wrapping_sub(sum(&rsdp));
    assert_eq!((rsdp, blob), (linked.rsdp, linked.blob));
}

proptest! {
    #[test]
    fn tables_lie_apart_and_only_the_madt_knows_the_vcpus(vcpus in 1u32..=4096) {
        let (few, many) = (tables(1), tables(vcpus));
        prop_assert!(many.tables.windows(2).all(|w| w[0].offset + w[0].len <= w[1].offset));
        let last = many.tables.last().unwrap();
        prop_assert_eq!(last.offset + last.len, many.blob.len());
        for signature in [b"DSDT", b"FACP", b"MCFG"] {
            prop_assert_eq!(table(&few, signature), table(&many, signature));
        }
        prop_assert!(many.range().contains_range(GpaRange::from_len(many.rsdp_at, 36).unwrap()));
    }
}
