//! Model-specific registers that must differ from their reset value when a kernel is entered without firmware.
//!
//! They are what firmware leaves on every processor. All vCPUs get them, not only the first: Linux compares
//! the MTRRs of its processors and blames the firmware for a difference.

use crate::{Topology, VcpuId, map};

/// `IA32_APIC_BASE`.
pub const IA32_APIC_BASE: u32 = 0x1b;

/// `IA32_MISC_ENABLE` (SDM volume 4, table 2-2).
pub const IA32_MISC_ENABLE: u32 = 0x1a0;

/// `IA32_MTRR_DEF_TYPE`.
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast string operations on; branch trace store and precise event sampling not available, as KVM itself
/// starts a vCPU.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;

/// MTRRs enabled, default type write-back.
const MTRR_DEF_TYPE: u64 = 1 << 11 | 6;

/// (index, value) for every vCPU of a guest that is booted without firmware.
#[must_use]
pub const fn boot_msrs() -> &'static [(u32, u64)] {
    &[
        (IA32_MISC_ENABLE, MISC_ENABLE),
        (IA32_MTRR_DEF_TYPE, MTRR_DEF_TYPE),
    ]
}

/// More vCPUs than this cannot all be reached in xAPIC mode: their ids need more than eight bits, of which
/// 0xff means all.
const XAPIC_VCPUS: u32 = 255;

/// (index, value) that puts the local APIC of `vcpu` into x2APIC mode, where the guest has more vCPUs than
/// xAPIC mode reaches. To be set after CPUID, on every vCPU of a guest that is booted without firmware.
///
/// Linux takes the MADT's x2APIC entries only if firmware has switched the mode (`acpi_parse_x2apic()` compares
/// with the highest id of the mode that it finds), and drops those processors with a warning otherwise. Smaller
/// guests start in xAPIC mode, as after reset, and switch by themselves.
#[must_use]
pub const fn apic_base(vcpu: VcpuId, topology: &Topology) -> Option<(u32, u64)> {
    const BSP: u64 = 1 << 8;
    const X2APIC: u64 = 1 << 10;
    const ENABLED: u64 = 1 << 11;
    if topology.vcpus() <= XAPIC_VCPUS {
        return None;
    }
    let bsp = if vcpu.0 == 0 { BSP } else { 0 };
    Some((
        IA32_APIC_BASE,
        map::LAPIC.start().0 | ENABLED | X2APIC | bsp,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_by_default() {
        assert!(boot_msrs().contains(&(0x2ff, 0x806)));
    }

    #[test]
    fn x2apic_mode_is_entered_past_255_vcpus_only() {
        let base = |id, vcpus| apic_base(VcpuId(id), &Topology::flat(vcpus).unwrap());
        assert_eq!(base(0, 255), None);
        assert_eq!(base(0, 256), Some((0x1b, 0xfee0_0d00)));
        assert_eq!(base(255, 256), Some((0x1b, 0xfee0_0c00)));
    }
}
