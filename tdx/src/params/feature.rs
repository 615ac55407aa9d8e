//! Features that a user may name and that no upstream launch has today: decided from what the host
//! reports, never from a list of kernel versions.

use std::fmt;

use super::attributes::TdAttributes;
use super::refusal::Refusal;
use crate::caps::Capabilities;

/// A feature beyond the plain TD that is more than an attribute ([`TdAttributes`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TdFeature {
    /// Starting from a snapshot, which is a migration from a file.
    Snapshot,
    /// Virtual machines inside the TD (TD partitioning).
    L2Vms,
    /// A BIOS for those virtual machines.
    L2Bios,
    /// A service TD bound to this one.
    ServiceTd,
    /// A virtual TPM in a service TD.
    Vtpm,
    /// vCPUs added while the TD runs.
    VcpuHotplug,
}

/// How a host would show that it has a feature.
enum Sign {
    /// An attribute, and then calls that this program does not know.
    AttributeAndCalls(TdAttributes, &'static str),
    /// `kvm_tdx_init_vm` has no field for it; a kernel that has one would say so in the words of
    /// CAPABILITIES that are reserved now.
    NoField(&'static str),
    /// The order of the launch forbids it: vCPU creation ends with FINALIZE.
    ClosedByFinalize,
}

impl TdFeature {
    const fn sign(self) -> Sign {
        match self {
            Self::Snapshot => Sign::AttributeAndCalls(
                TdAttributes::MIGRATABLE,
                "importing the state of a TD (TDH.IMPORT)",
            ),
            Self::L2Vms | Self::L2Bios => Sign::NoField("the number of L2 VMs (num-l2-vms)"),
            Self::ServiceTd | Self::Vtpm => Sign::NoField("binding a service TD"),
            Self::VcpuHotplug => Sign::ClosedByFinalize,
        }
    }

    /// `None` if the host has the feature.
    pub(crate) fn refusal(self, caps: &Capabilities) -> Option<Refusal> {
        match self.sign() {
            Sign::AttributeAndCalls(bit, calls) if caps.attributes.contains(bit) => {
                Some(Refusal::new(
                    self.to_string(),
                    format!(
                        "KVM_TDX_CAPABILITIES reports TD attribute {bit}, but this tdvmm knows no \
                         call of KVM for {calls}"
                    ),
                    "a newer tdvmm, if the kernel has such a call",
                ))
            }
            Sign::AttributeAndCalls(bit, _) => Some(Refusal::new(
                format!("{self} needs TD attribute {bit}"),
                format!(
                    "KVM_TDX_CAPABILITIES reports supported_attrs {:#x} without it, so this \
                     kernel or this TDX module lacks it",
                    caps.attributes.0
                ),
                "a kernel whose KVM passes the attribute on and a TDX module that offers it",
            )),
            Sign::NoField(field) => Some(Refusal::new(
                self.to_string(),
                format!(
                    "this kernel's KVM_TDX_INIT_VM has no field for {field}, and {}",
                    if caps.unknown_words {
                        "KVM_TDX_CAPABILITIES reports something that this tdvmm does not know"
                    } else {
                        "KVM_TDX_CAPABILITIES reports nothing of the kind"
                    }
                ),
                if caps.unknown_words {
                    "a newer tdvmm, if that is what the kernel reports"
                } else {
                    "a kernel with such an interface, and a tdvmm that knows it"
                },
            )),
            Sign::ClosedByFinalize => Some(Refusal::new(
                self.to_string(),
                "KVM creates no vCPU after KVM_TDX_FINALIZE_VM, and reports no capability to do so",
                "a kernel and TDX module that can; until then start with all vCPUs",
            )),
        }
    }
}

impl fmt::Display for TdFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "starting a TD from a snapshot",
            Self::L2Vms => "virtual machines inside a TD",
            Self::L2Bios => "a BIOS for virtual machines inside a TD",
            Self::ServiceTd => "a service TD",
            Self::Vtpm => "a virtual TPM for a TD",
            Self::VcpuHotplug => "adding vCPUs to a running TD",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    #[test]
    fn snapshot_is_refused_by_what_is_lacking_at_the_time() {
        let mut caps = fake::capabilities();
        let refusal = TdFeature::Snapshot.refusal(&caps).unwrap();
        assert!(refusal.what().contains("MIGRATABLE (bit 29)"));
        assert!(refusal.lacking().contains("supported_attrs 0x10000000"));
        caps.attributes = caps.attributes.with(TdAttributes::MIGRATABLE);
        let refusal = TdFeature::Snapshot.refusal(&caps).unwrap();
        assert!(refusal.lacking().contains("this tdvmm knows no call"));
        assert!(refusal.remedy().contains("newer tdvmm"));
    }

    #[test]
    fn feature_without_a_field_is_refused_and_says_where_it_would_come_from() {
        let mut caps = fake::capabilities();
        let refusal = TdFeature::L2Vms.refusal(&caps).unwrap();
        assert!(refusal.lacking().contains("num-l2-vms"));
        assert!(refusal.remedy().starts_with("a kernel"));
        caps.unknown_words = true;
        assert!(
            TdFeature::L2Vms
                .refusal(&caps)
                .unwrap()
                .remedy()
                .contains("newer tdvmm")
        );
    }
}
