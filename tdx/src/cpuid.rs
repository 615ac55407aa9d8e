//! CPUID of a TD's vCPU: what the TDX module shows, and what it leaves to the VMM.
//!
//! After INIT_VM the module alone decides what the guest sees in the leaves it owns
//! (`KVM_TDX_GET_CPUID` reads them). KVM keeps a table of its own per vCPU (`KVM_SET_CPUID2`), from
//! which it answers the leaves that the module turns into #VE, and in which it looks for features
//! itself: x2APIC before INIT_VCPU, the GPAW at the first run. [`merge`] makes that table.

use std::fmt;

use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};

use crate::abi::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use crate::params::{Gpaw, TdAttributes, TdParams, has_sub_leaves};

/// Leaf 1 ECX: x2APIC. INIT_VCPU fails without it (`kvm_apic_set_base`).
const X2APIC: u32 = 1 << 21;
/// Leaf 7.0 EBX: TSX; ECX: WAITPKG. KVM runs no TD with either.
const TSX: u32 = 1 << 4 | 1 << 11;
const WAITPKG: u32 = 1 << 5;
/// Leaf 0x40000001 EAX: what of KVM's own features works in a TD. The clock, steal time, PV EOI and
/// asynchronous page faults need MSRs that KVM does not emulate for a TD, and private memory.
const KVM_FEATURES: u32 = 1 << 1      // no I/O delay
    | 1 << 7    // unhalt
    | 1 << 9    // TLB flush
    | 1 << 11   // send IPI
    | 1 << 12   // poll control
    | 1 << 13   // yield
    | 1 << 15; // extended destination id of MSIs
/// Leaf 0x40000010 EBX: kHz of the APIC bus; 25 MHz, as the module's leaf 0x15 says and
/// `KVM_CAP_X86_APIC_BUS_CYCLES_NS` is set to.
const APIC_BUS_KHZ: u32 = 25_000;

/// A merged table, and what of the wish did not come true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// For `KVM_SET_CPUID2`.
    pub table: CpuidTable,
    /// Feature bits that were wanted and that the TD does not have.
    pub lost: Vec<LostFeatures>,
}

/// Feature bits of one register that a TD does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostFeatures {
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
    /// Name of the register.
    pub register: &'static str,
    /// The bits.
    pub bits: u32,
}

impl fmt::Display for LostFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            function,
            index,
            register,
            bits,
        } = self;
        write!(
            f,
            "CPUID {function:#x}.{index} {register} bits {bits:#010x}"
        )
    }
}

/// The table of one vCPU: `td` is what `KVM_TDX_GET_CPUID` gave, `wanted` what the machine wants
/// for this vCPU (its APIC id and topology included).
///
/// The module's word counts in each leaf that it reports; topology and APIC ids, leaves that it
/// does not report and those of the hypervisor come from `wanted`.
#[must_use]
pub fn merge(wanted: &CpuidTable, td: &CpuidTable, params: &TdParams) -> Merged {
    let mut lost = Vec::new();
    let mut entries: Vec<CpuidEntry> = td
        .iter()
        .filter(|entry| {
            let ours = is_topology(entry.function) && has_leaf(wanted, entry.function);
            !ours && !is_hypervisor(entry.function)
        })
        .map(|entry| {
            let mut entry = *entry;
            if let Some(wish) = wanted.find(entry.function, entry.index) {
                lost.extend(lost_in(wish, &entry));
                if entry.function == 1 {
                    // APIC id and number of logical processors are this vCPU's.
                    entry.ebx = (entry.ebx & 0x0000_ffff) | (wish.ebx & 0xffff_0000);
                }
            }
            entry
        })
        .collect();
    for entry in wanted.iter() {
        if !has(&entries, entry) {
            entries.push(*entry);
        }
    }
    if !entries.iter().any(|entry| entry.function == ADDRESS_SIZES) {
        entries.push(CpuidEntry {
            function: ADDRESS_SIZES,
            ..CpuidEntry::default()
        });
    }
    for entry in &mut entries {
        fit(entry, params);
    }
    Merged {
        table: CpuidTable(entries),
        lost,
    }
}

const ADDRESS_SIZES: u32 = 0x8000_0008;
const PERFMON_LEAF: u32 = 0xa;

/// What KVM demands or a TD cannot have, whatever the tables say.
fn fit(entry: &mut CpuidEntry, params: &TdParams) {
    if has_sub_leaves(entry.function) {
        entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    }
    match (entry.function, entry.index) {
        (1, _) => entry.ecx |= X2APIC,
        (7, 0) => {
            entry.ebx &= !TSX;
            entry.ecx &= !WAITPKG;
        }
        (PERFMON_LEAF, _) if !params.attributes().contains(TdAttributes::PERFMON) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        (0x4000_0001, _) => entry.eax &= KVM_FEATURES,
        (0x4000_0010, _) => entry.ebx = APIC_BUS_KHZ,
        (ADDRESS_SIZES, _) => entry.eax = params.gpaw().in_eax(entry.eax),
        _ => {}
    }
}

/// The GPAW that a table states.
#[must_use]
pub fn gpaw_of(table: &CpuidTable) -> Option<Gpaw> {
    let leaf = table.find(ADDRESS_SIZES, 0)?;
    Gpaw::from_bits(u64::from(leaf.eax >> 16 & 0xff))
}

/// Whether a table has x2APIC.
#[must_use]
pub fn has_x2apic(table: &CpuidTable) -> bool {
    table.find(1, 0).is_some_and(|leaf| leaf.ecx & X2APIC != 0)
}

/// Leaves that hold the APIC id: the module's metadata knows no single vCPU.
const fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

const fn is_hypervisor(function: u32) -> bool {
    matches!(function >> 28, 4)
}

fn has_leaf(table: &CpuidTable, function: u32) -> bool {
    table.iter().any(|entry| entry.function == function)
}

fn has(entries: &[CpuidEntry], wanted: &CpuidEntry) -> bool {
    entries.iter().any(|entry| {
        // A leaf whose sub-leaves the module lists is the module's as a whole: a sub-leaf that it
        // leaves out does not exist.
        entry.function == wanted.function
            && (entry.index == wanted.index || !is_topology(wanted.function))
    })
}

/// Feature registers; bits of other leaves are numbers, where "lost" has no meaning.
const FEATURES: &[(u32, u32, &str)] = &[
    (1, 0, "ECX"),
    (1, 0, "EDX"),
    (7, 0, "EBX"),
    (7, 0, "ECX"),
    (7, 0, "EDX"),
    (7, 1, "EAX"),
    (7, 2, "EDX"),
    (0xd, 1, "EAX"),
    (0x8000_0001, 0, "ECX"),
    (0x8000_0001, 0, "EDX"),
    (ADDRESS_SIZES, 0, "EBX"),
];

fn lost_in<'a>(
    wanted: &'a CpuidEntry,
    got: &'a CpuidEntry,
) -> impl Iterator<Item = LostFeatures> + use<'a> {
    let register = |entry: &CpuidEntry, name: &str| match name {
        "EAX" => entry.eax,
        "EBX" => entry.ebx,
        "ECX" => entry.ecx,
        _ => entry.edx,
    };
    FEATURES
        .iter()
        .filter(|(function, index, _)| *function == got.function && *index == got.index)
        .filter_map(move |(function, index, name)| {
            let bits = register(wanted, name) & !register(got, name);
            (bits != 0).then_some(LostFeatures {
                function: *function,
                index: *index,
                register: name,
                bits,
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        let flags = u32::from(has_sub_leaves(function));
        CpuidEntry {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
        }
    }

    fn merged(wanted: &[CpuidEntry], td: &[CpuidEntry]) -> Merged {
        merge(
            &CpuidTable(wanted.to_vec()),
            &CpuidTable(td.to_vec()),
            &fake::params(),
        )
    }

    #[test]
    fn module_decides_features_and_the_machine_decides_the_apic_id() {
        let got = merged(
            &[leaf(1, 0, [0x1234, 0x0304_0800, 0xff, 1 << 28])],
            &[leaf(1, 0, [0x806f8, 0x0001_4800, 0x0f, 1])],
        );
        let found = got.table.find(1, 0).unwrap();
        assert_eq!(
            [found.eax, found.ebx, found.ecx, found.edx],
            [0x806f8, 0x0304_4800, 0x0f | X2APIC, 1]
        );
        let lost = |register, bits| LostFeatures {
            function: 1,
            index: 0,
            register,
            bits,
        };
        assert_eq!(got.lost, [lost("ECX", 0xf0), lost("EDX", 1 << 28)]);
        assert_eq!(got.lost[0].to_string(), "CPUID 0x1.0 ECX bits 0x000000f0");
    }

    #[test]
    fn hypervisor_leaves_come_from_the_machine_without_the_clock() {
        let got = merged(
            &[
                leaf(0x4000_0000, 0, [0x4000_0010, 1, 2, 3]),
                leaf(0x4000_0001, 0, [u32::MAX, 0, 0, 0]),
                leaf(0x4000_0010, 0, [2_000_000, 1_000_000, 0, 0]),
            ],
            &[],
        );
        assert_eq!(got.table.find(0x4000_0001, 0).unwrap().eax, KVM_FEATURES);
        assert_eq!(
            got.table.find(0x4000_0001, 0).unwrap().eax & (1 | 1 << 3 | 1 << 24),
            0
        );
        assert_eq!(got.table.find(0x4000_0010, 0).unwrap().ebx, 25_000);
    }

    #[test]
    fn topology_comes_from_the_machine() {
        let mine = leaf(0x1f, 0, [1, 2, 0x100, 3]);
        let got = merged(
            &[mine],
            &[leaf(0x1f, 0, [9, 9, 9, 9]), leaf(0x1f, 1, [9, 9, 9, 9])],
        );
        let topology: Vec<_> = got.table.iter().filter(|e| e.function == 0x1f).collect();
        assert_eq!(topology, [&mine]);
    }

    #[test]
    fn sub_leaf_that_the_module_leaves_out_does_not_come_back() {
        let got = merged(
            &[leaf(0xd, 1, [1, 0, 0, 0]), leaf(0xd, 9, [8, 0, 0, 0])],
            &[leaf(0xd, 1, [1, 0, 0, 0])],
        );
        assert!(!got.table.iter().any(|e| e.function == 0xd && e.index == 9));
    }

    #[test]
    fn gpaw_of_the_params_is_in_the_table_even_without_the_leaf() {
        assert_eq!(
            gpaw_of(&merged(&[], &[]).table),
            Some(fake::params().gpaw())
        );
        let echo = leaf(ADDRESS_SIZES, 0, [0x00ff_3034, 0, 0, 0]);
        let got = merged(&[echo], &[]);
        assert_eq!(got.table.find(ADDRESS_SIZES, 0).unwrap().eax, 0x0030_3034);
    }

    #[test]
    fn tsx_waitpkg_and_perfmon_are_not_in_any_table() {
        let got = merged(
            &[
                leaf(7, 0, [0, TSX, WAITPKG, 0]),
                leaf(PERFMON_LEAF, 0, [7, 7, 7, 7]),
            ],
            &[],
        );
        let seven = got.table.find(7, 0).unwrap();
        assert_eq!((seven.ebx, seven.ecx), (0, 0));
        assert_eq!(got.table.find(PERFMON_LEAF, 0).unwrap().eax, 0);
    }
}
