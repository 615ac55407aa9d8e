//! CPUID for one vCPU: what KVM supports, less what this machine does not have, plus the vCPU's place in
//! the topology.
//!
//! [`for_vcpu`] takes the table of `KVM_GET_SUPPORTED_CPUID`, which describes a processor without
//! neighbours, and gives the one for `KVM_SET_CPUID2`. It adds no feature that KVM does not report, but for
//! those that KVM emulates without reporting them or that are the VMM's to announce: the hypervisor bit,
//! x2APIC and the TSC deadline timer (with the local APIC in the kernel), and extended MSI destination ids.

mod features;
mod topology;

use alloc::vec::Vec;

use serde::Serialize;

use crate::{Topology, VcpuId};

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the leaf has subleaves and `index` selects one.
pub const SIGNIFICANT_INDEX: u32 = 1;

/// One leaf or subleaf, with the fields of `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuidEntry {
    /// EAX of the query: the leaf.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub function: u32,
    /// ECX of the query: the subleaf, if [`SIGNIFICANT_INDEX`] is set.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub index: u32,
    /// [`SIGNIFICANT_INDEX`] or 0.
    pub flags: u32,
    /// Answer.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub eax: u32,
    /// Answer.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub ebx: u32,
    /// Answer.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub ecx: u32,
    /// Answer.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub edx: u32,
}

/// A processor's whole CPUID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CpuidTable(pub Vec<CpuidEntry>);

impl CpuidTable {
    /// The entry that answers a query for `function` and `index`, if there is one.
    #[must_use]
    pub fn find(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.0.iter().find(|entry| entry.answers(function, index))
    }

    /// As [`find`](Self::find), to be changed.
    pub fn find_mut(&mut self, function: u32, index: u32) -> Option<&mut CpuidEntry> {
        self.0
            .iter_mut()
            .find(|entry| entry.answers(function, index))
    }

    /// All entries.
    pub fn iter(&self) -> core::slice::Iter<'_, CpuidEntry> {
        self.0.iter()
    }

    /// All entries of `function`, to be changed.
    fn leaf_mut(&mut self, function: u32) -> impl Iterator<Item = &mut CpuidEntry> {
        self.0
            .iter_mut()
            .filter(move |entry| entry.function == function)
    }

    fn remove(&mut self, function: u32) {
        self.0.retain(|entry| entry.function != function);
    }

    /// Puts `entries` in the place of all subleaves of `function`.
    fn replace(&mut self, function: u32, entries: impl IntoIterator<Item = CpuidEntry>) {
        self.remove(function);
        self.0.extend(entries);
    }

    /// Makes the highest leaf of the range that starts at `base` at least `leaf`.
    fn raise_highest(&mut self, base: u32, leaf: u32) {
        if let Some(entry) = self.find_mut(base, 0) {
            entry.eax = entry.eax.max(leaf);
        }
    }

    fn vendor(&self) -> Vendor {
        match self.find(0, 0).map(|leaf| (leaf.ebx, leaf.edx, leaf.ecx)) {
            // "Genu" "ineI" "ntel"
            Some((0x756e_6547, 0x4965_6e69, 0x6c65_746e)) => Vendor::Intel,
            // "Auth" "enti" "cAMD", and "Hygo" "nGen" "uine" of the same design
            Some(
                (0x6874_7541, 0x6974_6e65, 0x444d_4163) | (0x6f67_7948, 0x6e65_476e, 0x656e_6975),
            ) => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}

impl<'a> IntoIterator for &'a CpuidTable {
    type Item = &'a CpuidEntry;
    type IntoIter = core::slice::Iter<'a, CpuidEntry>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl CpuidEntry {
    const fn answers(&self, function: u32, index: u32) -> bool {
        self.function == function && (self.flags & SIGNIFICANT_INDEX == 0 || self.index == index)
    }
}

/// Whose leaves a processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
    Other,
}

/// What the table depends on besides the processor and the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CpuidOptions {
    /// TSC frequency in kHz, to be stated in leaves 0x15 and 0x40000010. Without it a guest reads the
    /// frequency from its kvmclock page.
    pub tsc_khz: Option<u32>,
    /// Announce the TSC deadline timer (`KVM_CAP_TSC_DEADLINE_TIMER`; KVM need not report the bit).
    pub tsc_deadline: bool,
    /// Keep VMX and SVM where KVM offers them, so that the guest can run guests.
    pub nested: bool,
}

impl Default for CpuidOptions {
    fn default() -> Self {
        Self {
            tsc_khz: None,
            tsc_deadline: true,
            nested: false,
        }
    }
}

/// The table for `vcpu`, from what `KVM_GET_SUPPORTED_CPUID` reports.
///
/// Entries keep KVM's order; leaves that are added come last.
#[must_use]
pub fn for_vcpu(
    supported: &CpuidTable,
    vcpu: VcpuId,
    topology: &Topology,
    options: &CpuidOptions,
) -> CpuidTable {
    let mut table = supported.clone();
    features::adjust(&mut table, topology, options);
    topology::place(&mut table, vcpu, topology);
    table
}

#[cfg(test)]
mod tests;
