//! The host that a fake kernel runs on: what its CAPABILITIES report and what its module shows.

use tdvmm_arch::addr::{Gpa, VcpuId};
use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};

use crate::abi::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use crate::caps::{CALL_INFO_EVENT_NOTIFY, Capabilities};
use crate::params::{Gpaw, TdAttributes, TdParams, TdRequest, Xfam, has_sub_leaves};

/// A host with TDX.
#[derive(Clone, Debug)]
pub struct FakeHost {
    /// What KVM and module support.
    pub capabilities: Capabilities,
    /// Key ids that are free.
    pub key_ids: u32,
    /// Most vCPUs of a TD.
    pub max_vcpus: u32,
    /// Whether the host has 5-level EPT, for 52 address bits.
    pub five_level_ept: bool,
    /// Whether the process may give AMX to a guest.
    pub amx_permitted: bool,
    /// The frequency of its TSC in kHz.
    pub tsc_khz: u32,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self {
            capabilities: capabilities(),
            key_ids: 8,
            max_vcpus: 64,
            five_level_ept: false,
            amx_permitted: true,
            tsc_khz: 2_000_000,
        }
    }
}

/// The capabilities of a small host on Linux 7.3: SEPT_VE_DISABLE only, event notify, some CPUID.
#[must_use]
pub fn capabilities() -> Capabilities {
    let mask = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        function,
        index,
        flags: 0,
        eax,
        ebx,
        ecx,
        edx,
    };
    let mut masks = vec![mask(1, 0, [0, 0x00ff_0000, 0x3100_1000, 0xb840_0000])];
    masks.extend((0..4).map(|i| mask(4, i, [0xffff_c3ff, 0xffff_f000, u32::MAX, 7])));
    masks.push(mask(7, 0, [0, 0x0008_0328, 0x0040_060c, 0x10]));
    masks.extend((0..4).map(|i| mask(0x1f, i, [0x1f, 0xffff, 0xffff, 0])));
    masks.push(mask(0x8000_0006, 0, [0, 0, u32::MAX, 0]));
    masks.push(mask(0x8000_0008, 0, [0x00ff_0000, 0x200, 0, 0]));
    Capabilities {
        attributes: TdAttributes::SEPT_VE_DISABLE,
        xfam: Xfam(0x207),
        kernel_r11: 0,
        user_r11: CALL_INFO_EVENT_NOTIFY,
        kernel_r12: 0,
        user_r12: 0,
        unknown_words: false,
        cpuid: CpuidTable(masks),
    }
}

/// What a machine on such a host wants a vCPU's CPUID to be.
#[must_use]
pub fn wanted_cpuid(vcpu: VcpuId) -> CpuidTable {
    let id = vcpu.0;
    let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        function,
        index,
        flags: if has_sub_leaves(function) {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax,
        ebx,
        ecx,
        edx,
    };
    CpuidTable(vec![
        leaf(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        leaf(
            1,
            0,
            [
                0x000c_06f2,
                id << 24 | 0x0010_0800,
                0xb7fa_3203,
                0xbfeb_fbff,
            ],
        ),
        leaf(4, 0, [0x0400_0121, 0x02c0_003f, 0x3f, 0]),
        leaf(7, 0, [2, 0xf1bf_27eb, 0x1b41_5f6e, 0xbc81_4410]),
        leaf(0xb, 0, [0, 1, 0x100, id]),
        leaf(0xb, 1, [4, 16, 0x201, id]),
        leaf(0xd, 0, [0x207, 0xa88, 0xa88, 0]),
        leaf(0xd, 1, [0xf, 0, 0, 0]),
        leaf(0x1f, 0, [0, 1, 0x100, id]),
        leaf(0x1f, 1, [4, 16, 0x201, id]),
        leaf(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        leaf(0x8000_0008, 0, [0x3934, 0x200, 0, 0]),
    ])
}

/// Parameters that a [`FakeHost`] takes.
#[must_use]
pub fn params() -> TdParams {
    TdRequest::new(wanted_cpuid(VcpuId(0)), Gpa(1 << 32))
        .resolve(&capabilities())
        .expect("the fake host grants what it reports")
}

/// What the module shows a TD with these configured values.
pub(super) fn td_cpuid(configured: &CpuidTable, xfam: Xfam, gpaw: Gpaw, khz: u32) -> CpuidTable {
    let set = |function, index| {
        configured
            .find(function, index)
            .copied()
            .unwrap_or_default()
    };
    let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        function,
        index,
        flags: if has_sub_leaves(function) {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax,
        ebx,
        ecx,
        edx,
    };
    let [one, seven, sizes] = [set(1, 0), set(7, 0), set(0x8000_0008, 0)];
    let mut table = vec![
        leaf(0, 0, [0x23, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        leaf(
            1,
            0,
            [
                0x000c_06f2,
                one.ebx | 0x800,
                one.ecx | 0x86fa_2213,
                one.edx | 0x07ab_fbff,
            ],
        ),
        leaf(
            7,
            0,
            [
                2,
                seven.ebx | 0x21b4_04c1,
                seven.ecx | 0x1900_0000,
                seven.edx | 0xbc00_0400,
            ],
        ),
        leaf(7, 1, [0, 0, 0, 0]),
        leaf(0xa, 0, [0, 0, 0, 0]),
        leaf(
            0xd,
            0,
            [
                u32::try_from(xfam.0 & 0xffff_ffff).unwrap_or(0),
                0x240,
                0xa88,
                0,
            ],
        ),
        leaf(0xd, 1, [0x7, 0, 0, 0]),
        leaf(
            0x15,
            0,
            [1, khz.checked_div(25_000).unwrap_or(0), 25_000_000, 0],
        ),
        leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        leaf(0x8000_0008, 0, [gpaw.in_eax(0x3034), sizes.ebx, 0, 0]),
    ];
    for function in [4, 0x1f] {
        table.extend(configured.iter().filter(|entry| entry.function == function));
    }
    CpuidTable(table)
}
