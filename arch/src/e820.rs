//! The memory map as firmware interfaces state it: address ranges with a type (ACPI 6.5, 15.3).
//!
//! Two maps are made: one for a kernel that is entered directly, which names everything below 4 GiB that is
//! not free, and one for firmware (`etc/e820`), which places its own data itself.

use alloc::vec::Vec;

use serde::Serialize;

use crate::{GpaRange, RamLayout, map};

/// Bytes of an entry in its wire form: base, length, type.
pub const ENTRY_SIZE: usize = 20;

/// What a range is used for; the discriminants are the wire values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum E820Kind {
    /// Free for the operating system.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables; free once they have been read.
    Acpi = 3,
    /// Firmware data to be kept across sleep.
    Nvs = 4,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct E820Entry {
    /// The addresses; never empty.
    pub range: GpaRange,
    /// Their use.
    pub kind: E820Kind,
}

impl E820Entry {
    /// The 20 bytes of the entry: base and length as u64, type as u32, little endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..8].copy_from_slice(&self.range.start().0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.range.len().to_le_bytes());
        bytes[16..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes
    }
}

/// Entries back to back in their wire form, as `etc/e820` holds them.
#[must_use]
pub fn to_bytes(entries: &[E820Entry]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_bytes()).collect()
}

/// The pages at the top of the hole that KVM uses on some processors, and the address they end at.
const KVM_PAGES: GpaRange = match GpaRange::new(map::KVM_IDENTITY_MAP.start(), map::KVM_TSS.end()) {
    Some(range) => range,
    None => panic!("the identity map page lies below the task state segment"),
};

/// The map for a kernel entered directly: RAM without the BIOS hole and without `acpi`, the range that
/// holds the ACPI tables. Sorted, without overlaps.
#[must_use]
pub fn boot_map(ram: &RamLayout, acpi: GpaRange) -> Vec<E820Entry> {
    let mut entries = Vec::with_capacity(8);
    let mut add = |range: GpaRange, kind| {
        if !range.is_empty() {
            entries.push(E820Entry { range, kind });
        }
    };
    for range in ram.ranges() {
        for below_or_above in cut(range, map::BIOS_HOLE)
            .into_iter()
            .flat_map(|part| cut(part, acpi))
        {
            add(below_or_above, E820Kind::Ram);
        }
    }
    for part in cut(map::BIOS_HOLE, acpi) {
        add(part, E820Kind::Reserved);
    }
    add(acpi, E820Kind::Acpi);
    add(map::ECAM, E820Kind::Reserved);
    add(KVM_PAGES, E820Kind::Reserved);
    entries.sort_by_key(|entry| entry.range.start());
    entries
}

/// The map for firmware: all RAM, and what the hole holds that firmware must not hand out.
#[must_use]
pub fn firmware_map(ram: &RamLayout) -> Vec<E820Entry> {
    let mut entries: Vec<E820Entry> = ram
        .ranges()
        .map(|range| E820Entry {
            range,
            kind: E820Kind::Ram,
        })
        .collect();
    entries.push(E820Entry {
        range: KVM_PAGES,
        kind: E820Kind::Reserved,
    });
    entries.sort_by_key(|entry| entry.range.start());
    entries
}

/// What is left of `range` below and above `hole`; either may be empty.
fn cut(range: GpaRange, hole: GpaRange) -> [GpaRange; 2] {
    if !range.overlaps(hole) {
        return [range, GpaRange::default()];
    }
    let part = |start, end| GpaRange::new(start, end).unwrap_or_default();
    [
        part(range.start(), hole.start()),
        part(hole.end(), range.end()),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::PAGE_SIZE;

    fn total(entries: &[E820Entry], kind: E820Kind) -> u64 {
        entries
            .iter()
            .filter(|e| e.kind == kind)
            .map(|e| e.range.len())
            .sum()
    }

    #[test]
    fn entry_wire_form_is_base_length_type() {
        let entry = E820Entry {
            range: GpaRange::constant(0x1000, 0x2000),
            kind: E820Kind::Acpi,
        };
        let mut expected = [0u8; 20];
        expected[1] = 0x10;
        expected[9] = 0x20;
        expected[16] = 3;
        assert_eq!(entry.to_bytes(), expected);
        assert_eq!(to_bytes(&[entry, entry]).len(), 40);
    }

    #[test]
    fn boot_map_of_three_gib_names_every_hole() {
        let ram = RamLayout::new(3 << 30).unwrap();
        let map: Vec<(u64, u64, E820Kind)> = boot_map(&ram, map::ACPI_AREA)
            .iter()
            .map(|e| (e.range.start().0, e.range.end().0, e.kind))
            .collect();
        assert_eq!(
            map,
            [
                (0, 0xa_0000, E820Kind::Ram),
                (0xa_0000, 0xe_0000, E820Kind::Reserved),
                (0xe_0000, 0xf_f000, E820Kind::Acpi),
                (0xf_f000, 0x10_0000, E820Kind::Reserved),
                (0x10_0000, 0x8000_0000, E820Kind::Ram),
                (0xe000_0000, 0xf000_0000, E820Kind::Reserved),
                (0xfeff_c000, 0xff00_0000, E820Kind::Reserved),
                (0x1_0000_0000, 0x1_4000_0000, E820Kind::Ram),
            ]
        );
    }

    #[test]
    fn firmware_map_leaves_all_ram_to_the_firmware() {
        let ram = RamLayout::new(3 << 30).unwrap();
        let map = firmware_map(&ram);
        assert_eq!(total(&map, E820Kind::Ram), 3 << 30);
        assert_eq!(map.len(), 3);
    }

    proptest! {
        #[test]
        fn boot_map_is_sorted_and_disjoint_and_accounts_for_all_ram(
            pages in 256u64..(1 << 30),
            acpi_page in 0u64..(1 << 20),
            acpi_pages in 1u64..64,
        ) {
            let ram = RamLayout::new(pages * PAGE_SIZE).unwrap();
            let acpi = GpaRange::constant(acpi_page * PAGE_SIZE, acpi_pages * PAGE_SIZE);
            prop_assume!(ram.contains_range(acpi));
            let map = boot_map(&ram, acpi);
            prop_assert!(map.windows(2).all(|w| w[0].range.end() <= w[1].range.start()));
            prop_assert!(map.iter().all(|e| !e.range.is_empty()));
            let inside: u64 = map.iter()
                .filter(|e| ram.contains_range(e.range))
                .map(|e| e.range.len()).sum();
            prop_assert_eq!(inside, ram.size());
            prop_assert_eq!(total(&map, E820Kind::Acpi), acpi.len());
            prop_assert!(map.iter().all(|e| e.kind != E820Kind::Ram || !e.range.overlaps(map::BIOS_HOLE)));
        }
    }
}
