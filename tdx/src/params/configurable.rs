//! The CPUID list of `KVM_TDX_INIT_VM`: exactly what CAPABILITIES lets the VMM configure.
//!
//! KVM looks each configurable leaf up in the list and then demands that every entry was used, so
//! an entry that is not configurable, or a second one for the same leaf, fails the call
//! (`setup_tdparams_cpuids`). An entry without the significant-index flag answers for *every*
//! index of its leaf, so leaves with sub-leaves must have it. The module refuses a 1 in a bit
//! outside of the mask. CAPABILITIES itself never sets flags and reports masks, not values.

use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};

use super::gpaw::Gpaw;
use crate::abi::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use crate::caps::Capabilities;

/// The leaf whose EAX[23:16] is the GPAW; the rest of it is the module's.
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// The part of `wanted` that can be configured, with the GPAW put in.
pub(super) fn intersect(wanted: &CpuidTable, caps: &Capabilities, gpaw: Gpaw) -> CpuidTable {
    let mut entries: Vec<_> = caps
        .cpuid
        .iter()
        .filter(|mask| mask.function != ADDRESS_SIZES)
        .filter_map(|mask| {
            let value = wanted.find(mask.function, mask.index)?;
            Some(masked(value, mask))
        })
        .collect();
    // It must be there even if nothing else of it is wanted: without it KVM knows no GPAW.
    let mask = caps.mask(ADDRESS_SIZES, 0).copied().unwrap_or_default();
    let value = wanted.find(ADDRESS_SIZES, 0).copied().unwrap_or_default();
    let mut sizes = masked(
        &value,
        &CpuidEntry {
            function: ADDRESS_SIZES,
            index: 0,
            ..mask
        },
    );
    sizes.eax = gpaw.in_eax(sizes.eax);
    entries.push(sizes);
    CpuidTable(entries)
}

fn masked(value: &CpuidEntry, mask: &CpuidEntry) -> CpuidEntry {
    let mut entry = CpuidEntry {
        function: mask.function,
        index: mask.index,
        flags: if has_sub_leaves(mask.function) {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: value.eax & mask.eax,
        ebx: value.ebx & mask.ebx,
        ecx: value.ecx & mask.ecx,
        edx: value.edx & mask.edx,
    };
    if entry.function == 7 && entry.index == 0 {
        // KVM refuses a TD with TSX or WAITPKG whatever the mask says (tdx_unsupported_cpuid).
        entry.ebx &= !(HLE | RTM);
        entry.ecx &= !WAITPKG;
    }
    entry
}

/// Leaf 7.0 EBX: hardware lock elision.
pub(crate) const HLE: u32 = 1 << 4;
/// Leaf 7.0 EBX: restricted transactional memory.
pub(crate) const RTM: u32 = 1 << 11;
/// Leaf 7.0 ECX: user-level wait.
pub(crate) const WAITPKG: u32 = 1 << 5;

/// Whether the answer of a leaf depends on ECX (Intel SDM, CPUID; `cpuid_function_is_indexed` in
/// the kernel).
#[must_use]
pub const fn has_sub_leaves(function: u32) -> bool {
    matches!(
        function,
        4 | 7
            | 0xb
            | 0xd
            | 0xf
            | 0x10
            | 0x12
            | 0x14
            | 0x17
            | 0x18
            | 0x1d
            | 0x1e
            | 0x1f
            | 0x20
            | 0x23
            | 0x24
            | 0x8000_001d
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::fake;

    fn entry(function: u32, index: u32, all: u32) -> CpuidEntry {
        let flags = u32::from(has_sub_leaves(function));
        CpuidEntry {
            function,
            index,
            flags,
            eax: all,
            ebx: all,
            ecx: all,
            edx: all,
        }
    }

    #[test]
    fn leaf_beyond_capabilities_is_left_out() {
        let wanted = CpuidTable(vec![entry(1, 0, u32::MAX), entry(0x4000_0000, 0, 1)]);
        let list = intersect(&wanted, &fake::capabilities(), Gpaw::Bits48);
        assert!(list.find(0x4000_0000, 0).is_none());
        assert!(list.find(1, 0).is_some());
    }

    #[test]
    fn address_sizes_are_always_there_with_the_gpaw_and_not_the_echo() {
        let list = intersect(&CpuidTable::default(), &fake::capabilities(), Gpaw::Bits52);
        assert_eq!(list.find(ADDRESS_SIZES, 0).unwrap().eax, 52 << 16);
        assert_eq!(list.iter().count(), 1);
    }

    #[test]
    fn tsx_and_waitpkg_are_cleared_even_if_reported() {
        let mut caps = fake::capabilities();
        caps.cpuid = CpuidTable(vec![entry(7, 0, u32::MAX)]);
        let wanted = CpuidTable(vec![entry(7, 0, u32::MAX)]);
        let list = intersect(&wanted, &caps, Gpaw::Bits48);
        let leaf = list.find(7, 0).unwrap();
        assert_eq!((leaf.ebx & (HLE | RTM), leaf.ecx & WAITPKG), (0, 0));
        assert_ne!(leaf.ebx, 0);
    }

    fn any_leaf() -> impl Strategy<Value = CpuidEntry> {
        let function = prop_oneof![
            Just(1u32),
            Just(4),
            Just(7),
            Just(0xd),
            Just(0x1f),
            Just(0x4000_0000),
            Just(0x8000_0006),
            Just(ADDRESS_SIZES)
        ];
        (function, 0u32..4, any::<[u32; 4]>()).prop_map(
            |(function, index, [eax, ebx, ecx, edx])| {
                let sub = has_sub_leaves(function);
                let index = if sub { index } else { 0 };
                CpuidEntry {
                    function,
                    index,
                    flags: u32::from(sub),
                    eax,
                    ebx,
                    ecx,
                    edx,
                }
            },
        )
    }

    proptest! {
        // What KVM and the module check, for any wanted table and any masks.
        #[test]
        fn every_list_is_one_that_kvm_takes(
            wanted in proptest::collection::vec(any_leaf(), 0..40),
            masks in proptest::collection::vec(any_leaf(), 0..40),
        ) {
            let mut seen = HashSet::new();
            let masks: Vec<_> = masks
                .into_iter()
                .map(|mask| CpuidEntry { flags: 0, ..mask })
                .filter(|mask| seen.insert((mask.function, mask.index)))
                .collect();
            let mut caps = fake::capabilities();
            caps.cpuid = CpuidTable(masks);
            let list = intersect(&CpuidTable(wanted), &caps, Gpaw::Bits48);
            let mut seen = HashSet::new();
            for entry in list.iter() {
                prop_assert!(seen.insert((entry.function, entry.index)));
                prop_assert_eq!(entry.flags, u32::from(has_sub_leaves(entry.function)));
                if entry.function == ADDRESS_SIZES {
                    prop_assert_eq!(entry.eax >> 16 & 0xff, 48);
                    continue;
                }
                let mask = caps.mask(entry.function, entry.index).unwrap();
                prop_assert_eq!(entry.eax & !mask.eax, 0);
                prop_assert_eq!(entry.ebx & !mask.ebx, 0);
                prop_assert_eq!(entry.ecx & !mask.ecx, 0);
                prop_assert_eq!(entry.edx & !mask.edx, 0);
            }
        }
    }
}
