//! Features: what is announced beyond KVM's report, what is taken away, and the hypervisor leaves.

use super::{CpuidEntry, CpuidOptions, CpuidTable, Vendor};
use crate::Topology;

/// Leaf 1, ECX.
mod leaf1_ecx {
    pub const VMX: u32 = 1 << 5;
    pub const X2APIC: u32 = 1 << 21;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const OSXSAVE: u32 = 1 << 27;
    pub const HYPERVISOR: u32 = 1 << 31;
}

/// Leaf 7: SGX in EBX and its launch control in ECX. No enclave memory is given to a guest.
const SGX_EBX: u32 = 1 << 2;
const SGX_LC_ECX: u32 = 1 << 30;

/// SVM in ECX of leaf 0x80000001.
const SVM_ECX: u32 = 1 << 2;

const SGX_LEAF: u32 = 0x12;
const TSC_LEAF: u32 = 0x15;
const SVM_LEAF: u32 = 0x8000_000a;
/// Memory encryption. KVM reports SEV where the host can run such guests; a kernel that reads the bit reads
/// `MSR_AMD64_SEV` next, which an ordinary guest does not have.
const MEMORY_ENCRYPTION_LEAF: u32 = 0x8000_001f;
const KVM_SIGNATURE_LEAF: u32 = 0x4000_0000;
const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
const TIMING_LEAF: u32 = 0x4000_0010;

/// Features of leaf 0x40000001 (Linux: arch/x86/include/uapi/asm/kvm_para.h) that need nothing of the VMM.
/// Left out: asynchronous page faults (bits 4, 10, 14), which only matter to a host that swaps guest memory
/// and whose tokens a hostile host could forge; the page encryption hypercall and migration control (16, 17),
/// which the VMM would have to serve.
const KVM_FEATURES_KEPT: u32 = 1 << 0 // clock source
    | 1 << 1 // no I/O delay needed
    | 1 << 3 // clock source with newer MSRs
    | 1 << 5 // steal time
    | 1 << 6 // paravirtual end of interrupt
    | 1 << 7 // unhalt
    | 1 << 9 // TLB flush
    | 1 << 11 // send IPIs
    | 1 << 12 // host-side halt polling control
    | 1 << 13 // yield
    | 1 << 24; // clock source is stable

/// `KVM_FEATURE_MSI_EXT_DEST_ID`: interrupts of the I/O APIC and MSIs carry 15-bit destinations.
const KVM_MSI_EXT_DEST_ID: u32 = 1 << 15;

/// An 8-bit destination reaches this many vCPUs (0xff is broadcast in x2APIC mode too, with 8 bits).
const SHORT_DESTINATIONS: u32 = 255;

/// KVM's local APIC timer counts nanoseconds (`APIC_BUS_CYCLE_NS_DEFAULT`).
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Adjusts everything that is the same for all vCPUs of a guest.
pub(super) fn adjust(table: &mut CpuidTable, topology: &Topology, options: &CpuidOptions) {
    if let Some(leaf) = table.find_mut(1, 0) {
        leaf.ecx |= leaf1_ecx::HYPERVISOR | leaf1_ecx::X2APIC;
        // KVM sets it as the guest's CR4 says.
        leaf.ecx &= !leaf1_ecx::OSXSAVE;
        if options.tsc_deadline {
            leaf.ecx |= leaf1_ecx::TSC_DEADLINE;
        } else {
            leaf.ecx &= !leaf1_ecx::TSC_DEADLINE;
        }
        if !options.nested {
            leaf.ecx &= !leaf1_ecx::VMX;
        }
    }
    if let Some(leaf) = table.find_mut(7, 0) {
        leaf.ebx &= !SGX_EBX;
        leaf.ecx &= !SGX_LC_ECX;
    }
    table.remove(SGX_LEAF);
    table.remove(MEMORY_ENCRYPTION_LEAF);
    if !options.nested {
        if let Some(leaf) = table.find_mut(0x8000_0001, 0) {
            leaf.ecx &= !SVM_ECX;
        }
        table.remove(SVM_LEAF);
    }
    if let Some(leaf) = table.find_mut(KVM_FEATURES_LEAF, 0) {
        leaf.eax &= KVM_FEATURES_KEPT;
        if topology.vcpus() > SHORT_DESTINATIONS {
            leaf.eax |= KVM_MSI_EXT_DEST_ID;
        }
    }
    if let Some(khz) = options.tsc_khz {
        state_frequency(table, khz);
    }
}

/// States the TSC frequency where kernels look for it.
fn state_frequency(table: &mut CpuidTable, khz: u32) {
    table.raise_highest(KVM_SIGNATURE_LEAF, TIMING_LEAF);
    table.replace(
        TIMING_LEAF,
        [CpuidEntry {
            function: TIMING_LEAF,
            eax: khz,
            ebx: APIC_BUS_KHZ,
            ..CpuidEntry::default()
        }],
    );
    if table.vendor() != Vendor::Intel {
        return;
    }
    table.remove(TSC_LEAF);
    // The crystal is stated as the APIC timer's clock, for Linux derives that timer's period from it
    // (native_calibrate_tsc()). The same function multiplies crystal and numerator in 32 bits: a frequency
    // whose reduced fraction is too large for that is left to the other leaves.
    let divisor = gcd(khz, APIC_BUS_KHZ);
    let (numerator, denominator) = (khz / divisor, APIC_BUS_KHZ / divisor);
    if numerator != 0 && numerator.checked_mul(APIC_BUS_KHZ).is_some() {
        table.raise_highest(0, TSC_LEAF);
        table.0.push(CpuidEntry {
            function: TSC_LEAF,
            eax: denominator,
            ebx: numerator,
            ecx: APIC_BUS_KHZ * 1000,
            ..CpuidEntry::default()
        });
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
