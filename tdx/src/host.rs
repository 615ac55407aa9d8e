//! Whether a host can run TDs, and what to do if not. Pure: facts in, findings out.
//!
//! The facts are gathered elsewhere (files under `/sys` and `/proc`, `KVM_CHECK_EXTENSION`); here
//! they are judged, in the order in which a host is set up, so that the first failure is the one to
//! mend first. A launch on a host that cannot run TDs shows exactly that line ([`first_failure`]).

use serde::Serialize;

use crate::abi;
use crate::caps::Capabilities;
use crate::params::TdAttributes;

/// What was found on a host. `None` is "could not be found out".
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// Errno of opening `/dev/kvm`; `None` if it opened.
    pub kvm_errno: Option<i32>,
    /// `uname -r`.
    pub kernel_release: String,
    /// Whether `/proc/cpuinfo` has the flag `tdx_host_platform`.
    pub cpu_flag: bool,
    /// `/sys/module/kvm_intel/parameters/tdx`.
    pub module_parameter: Option<String>,
    /// Whether the KVM modules emulate TDX: no security, for tests only.
    pub emulated: bool,
    /// `KVM_CHECK_EXTENSION` by number, for [`QUERIED`]; on a VM of type TDX where there is one.
    pub extensions: Vec<(u32, u32)>,
    /// Version of the TDX module: `/sys/devices/faux/tdx_host/version`.
    pub module_version: Option<String>,
    /// Key ids of TDX in the misc cgroup: capacity and how many are in use.
    pub key_ids: Option<(u64, u64)>,
    /// The answer of `KVM_TDX_CAPABILITIES`.
    pub capabilities: Option<Capabilities>,
    /// Hard limit of open files; the soft one is raised as needed. `None` where there is none.
    pub open_files: Option<u64>,
}

/// How a condition is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Met.
    Ok,
    /// Met, or not needed for a launch, but worth a look.
    Warn,
    /// Not met: no TD can run.
    Fail,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it is met.
    pub level: Level,
    /// The condition, and what was found.
    pub what: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// A capability of KVM that a TD needs, or can use.
struct Extension {
    number: u32,
    name: &'static str,
    /// Bits that must be set; 0: any value but 0 will do.
    bits: u32,
    without: Level,
}

const fn needs(number: u32, name: &'static str, bits: u32) -> Extension {
    Extension {
        number,
        name,
        bits,
        without: Level::Fail,
    }
}

const fn uses(number: u32, name: &'static str) -> Extension {
    Extension {
        number,
        name,
        bits: 0,
        without: Level::Warn,
    }
}

const EXTENSIONS: &[Extension] = &[
    needs(abi::KVM_CAP_USER_MEMORY2, "KVM_CAP_USER_MEMORY2", 0),
    needs(
        abi::KVM_CAP_MEMORY_FAULT_INFO,
        "KVM_CAP_MEMORY_FAULT_INFO",
        0,
    ),
    needs(
        abi::KVM_CAP_MEMORY_ATTRIBUTES,
        "KVM_CAP_MEMORY_ATTRIBUTES",
        1 << 3,
    ),
    needs(abi::KVM_CAP_GUEST_MEMFD, "KVM_CAP_GUEST_MEMFD", 0),
    needs(abi::KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", 0),
    needs(
        abi::KVM_CAP_EXIT_HYPERCALL,
        "KVM_CAP_EXIT_HYPERCALL",
        1 << 12,
    ),
    needs(
        abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS,
        "KVM_CAP_X86_APIC_BUS_CYCLES_NS",
        0,
    ),
    uses(abi::KVM_CAP_PRE_FAULT_MEMORY, "KVM_CAP_PRE_FAULT_MEMORY"),
    uses(abi::KVM_CAP_VM_TSC_CONTROL, "KVM_CAP_VM_TSC_CONTROL"),
];

/// The capabilities to ask for, as [`HostFacts::extensions`].
pub const QUERIED: &[u32] = &[
    abi::KVM_CAP_VM_TYPES,
    abi::KVM_CAP_MAX_VCPUS,
    abi::KVM_CAP_USER_MEMORY2,
    abi::KVM_CAP_MEMORY_FAULT_INFO,
    abi::KVM_CAP_MEMORY_ATTRIBUTES,
    abi::KVM_CAP_GUEST_MEMFD,
    abi::KVM_CAP_SPLIT_IRQCHIP,
    abi::KVM_CAP_EXIT_HYPERCALL,
    abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    abi::KVM_CAP_PRE_FAULT_MEMORY,
    abi::KVM_CAP_VM_TSC_CONTROL,
];

/// Files that a TD with a few devices and vCPUs has open.
const FEW_FILES: u64 = 1024;

/// All conditions, in the order in which they are to be mended.
#[must_use]
pub fn judge(facts: &HostFacts) -> Vec<Finding> {
    if let Some(errno) = facts.kvm_errno {
        return vec![no_kvm(errno)];
    }
    let has_tdx = facts.extension(abi::KVM_CAP_VM_TYPES) >> abi::KVM_X86_TDX_VM & 1 != 0;
    let mut findings = vec![ok("/dev/kvm opens")];
    if facts.emulated {
        findings.push(warn(
            "TDX is emulated by this host's KVM modules",
            "it protects nothing: use it for tests only",
        ));
    }
    if has_tdx {
        findings.push(ok(format!(
            "KVM offers VMs of type TDX (kernel {})",
            facts.kernel_release
        )));
    } else {
        findings.extend(facts.why_no_tdx());
    }
    findings.extend(
        EXTENSIONS
            .iter()
            .map(|extension| facts.judge_extension(extension)),
    );
    if has_tdx {
        findings.extend(facts.judge_module());
    }
    match facts.open_files {
        Some(limit) if limit < FEW_FILES => findings.push(warn(
            format!("hard limit of open files is {limit}"),
            format!("raise it to {FEW_FILES} or more (ulimit -Hn)"),
        )),
        Some(limit) => findings.push(ok(format!("hard limit of open files is {limit}"))),
        None => {}
    }
    findings
}

/// The first condition that is not met.
#[must_use]
pub fn first_failure(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().find(|finding| finding.level == Level::Fail)
}

impl HostFacts {
    fn extension(&self, number: u32) -> u32 {
        self.extensions
            .iter()
            .find(|(known, _)| *known == number)
            .map_or(0, |(_, value)| *value)
    }

    /// KVM says why by what it lacks; the first of these is the cause.
    fn why_no_tdx(&self) -> Vec<Finding> {
        let parameter = self.module_parameter.as_deref().map(str::trim);
        let (what, remedy) = match (self.cpu_flag, parameter, release(&self.kernel_release)) {
            (_, _, Some(version)) if version < (6, 16) => (
                format!("kernel {} has no TDX host support", self.kernel_release),
                "use Linux 6.16 or later with CONFIG_INTEL_TDX_HOST and CONFIG_KVM_INTEL_TDX",
            ),
            (false, ..) => (
                "this processor, or its BIOS settings, has no TDX (no flag tdx_host_platform)"
                    .to_owned(),
                "on a processor with TDX: enable TDX, TME-MT and SEAM loader in the BIOS, and use a \
                 kernel with CONFIG_INTEL_TDX_HOST",
            ),
            (true, None, _) => (
                "kvm_intel has no parameter tdx".to_owned(),
                "load kvm_intel, from a kernel with CONFIG_KVM_INTEL_TDX",
            ),
            (true, Some("Y" | "1"), _) => (
                "kvm_intel has tdx on, but KVM offers no VM of type TDX".to_owned(),
                "see the kernel log for `tdx`: the TDX module may be missing or older than the \
                 kernel wants",
            ),
            (true, Some(_), _) => (
                "kvm_intel.tdx is off".to_owned(),
                "load it with `modprobe kvm_intel tdx=1`, or boot with kvm_intel.tdx=1",
            ),
        };
        vec![fail(what, remedy)]
    }

    fn judge_extension(&self, extension: &Extension) -> Finding {
        let value = self.extension(extension.number);
        let Extension {
            number,
            name,
            bits,
            without,
        } = *extension;
        if value != 0 && value & bits == bits {
            return ok(format!("{name} ({number}) is {value:#x}"));
        }
        let wanted = if bits == 0 {
            String::new()
        } else {
            format!(", {bits:#x} is needed")
        };
        Finding {
            level: without,
            what: format!("{name} ({number}) is {value:#x}{wanted}"),
            remedy: Some("a kernel of 6.16 or later offers it".to_owned()),
        }
    }

    fn judge_module(&self) -> Vec<Finding> {
        let version = match &self.module_version {
            Some(version) => ok(format!("TDX module {}", version.trim())),
            None => warn(
                "version of the TDX module is unknown",
                "Linux 7.0 and later tell it",
            ),
        };
        let keys = match self.key_ids {
            Some((capacity, used)) if used >= capacity => fail(
                format!("all {capacity} TDX key ids are in use"),
                "end a TD, or give TDX more key ids in the BIOS",
            ),
            Some((capacity, used)) => ok(format!(
                "{} of {capacity} TDX key ids are free",
                capacity.saturating_sub(used)
            )),
            None => warn(
                "number of free TDX key ids is unknown",
                "mount cgroup2 with the misc controller to see it",
            ),
        };
        let max = self.extension(abi::KVM_CAP_MAX_VCPUS);
        let vcpus = ok(format!("a TD can have {max} vCPUs"));
        let attributes = self.capabilities.as_ref().map(|caps| {
            if caps.attributes.contains(TdAttributes::SEPT_VE_DISABLE) {
                ok(format!(
                    "TD attributes: {}; extended features: {}",
                    caps.attributes, caps.xfam
                ))
            } else {
                warn(
                    format!("TD attributes are {} only", caps.attributes),
                    "Linux guests want SEPT_VE_DISABLE: update the kernel or the TDX module",
                )
            }
        });
        [version, keys, vcpus]
            .into_iter()
            .chain(attributes)
            .collect()
    }
}

fn no_kvm(errno: i32) -> Finding {
    let error = std::io::Error::from_raw_os_error(errno);
    let remedy = match errno {
        libc::ENOENT => "enable virtualization in the BIOS and load kvm_intel",
        libc::EACCES | libc::EPERM => "add this user to the group that owns /dev/kvm",
        _ => "see the kernel log",
    };
    fail(format!("/dev/kvm does not open: {error}"), remedy)
}

/// Major and minor number of a kernel release.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn ok(what: impl Into<String>) -> Finding {
    Finding {
        level: Level::Ok,
        what: what.into(),
        remedy: None,
    }
}

fn warn(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        level: Level::Warn,
        what: what.into(),
        remedy: Some(remedy.into()),
    }
}

fn fail(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        level: Level::Fail,
        what: what.into(),
        remedy: Some(remedy.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    /// A host on which TDs run.
    fn good() -> HostFacts {
        HostFacts {
            kernel_release: "7.3.4-1-amd64".to_owned(),
            cpu_flag: true,
            module_parameter: Some("Y\n".to_owned()),
            extensions: QUERIED
                .iter()
                .map(|number| {
                    (
                        *number,
                        if *number == abi::KVM_CAP_VM_TYPES {
                            0x21
                        } else {
                            0x1009
                        },
                    )
                })
                .collect(),
            module_version: Some("1.5.16\n".to_owned()),
            key_ids: Some((31, 2)),
            capabilities: Some(fake::capabilities()),
            open_files: Some(1 << 20),
            ..HostFacts::default()
        }
    }

    fn failure(facts: &HostFacts) -> Finding {
        first_failure(&judge(facts))
            .expect("a condition fails")
            .clone()
    }

    #[test]
    fn good_host_has_no_failure_and_no_warning() {
        let findings = judge(&good());
        assert!(
            findings.iter().all(|finding| finding.level == Level::Ok),
            "{findings:#?}"
        );
        assert!(
            findings
                .iter()
                .any(|finding| finding.what == "29 of 31 TDX key ids are free")
        );
    }

    #[test]
    fn missing_kvm_is_the_only_finding() {
        let facts = HostFacts {
            kvm_errno: Some(libc::EACCES),
            ..good()
        };
        let findings = judge(&facts);
        assert_eq!(findings.len(), 1);
        assert!(failure(&facts).remedy.unwrap().contains("group"));
    }

    #[test]
    fn cause_of_missing_tdx_is_named() {
        let mut facts = good();
        facts
            .extensions
            .retain(|(number, _)| *number != abi::KVM_CAP_VM_TYPES);
        facts.module_parameter = Some("N\n".to_owned());
        assert_eq!(failure(&facts).what, "kvm_intel.tdx is off");
        facts.module_parameter = Some("Y\n".to_owned());
        assert!(failure(&facts).remedy.unwrap().contains("kernel log"));
        facts.cpu_flag = false;
        assert!(failure(&facts).what.contains("tdx_host_platform"));
        facts.kernel_release = "6.12.1-amd64".to_owned();
        assert!(failure(&facts).remedy.unwrap().contains("6.16"));
    }

    #[test]
    fn exhausted_key_ids_fail() {
        let facts = HostFacts {
            key_ids: Some((4, 4)),
            ..good()
        };
        assert_eq!(failure(&facts).what, "all 4 TDX key ids are in use");
    }

    #[test]
    fn private_bit_is_needed_in_memory_attributes() {
        let mut facts = good();
        for (number, value) in &mut facts.extensions {
            if *number == abi::KVM_CAP_MEMORY_ATTRIBUTES {
                *value = 1;
            }
        }
        assert!(
            failure(&facts)
                .what
                .contains("KVM_CAP_MEMORY_ATTRIBUTES (233) is 0x1, 0x8")
        );
    }

    #[test]
    fn emulation_is_named_as_such() {
        let findings = judge(&HostFacts {
            emulated: true,
            ..good()
        });
        assert_eq!(findings[1].level, Level::Warn);
        assert!(findings[1].what.contains("emulated"));
        assert!(first_failure(&findings).is_none());
    }

    #[test]
    fn optional_capability_only_warns() {
        let mut facts = good();
        facts
            .extensions
            .retain(|(number, _)| *number != abi::KVM_CAP_PRE_FAULT_MEMORY);
        let findings = judge(&facts);
        assert!(first_failure(&findings).is_none());
        assert!(findings.iter().any(|finding| finding.level == Level::Warn));
    }

    #[test]
    fn every_needed_capability_is_queried() {
        assert!(
            EXTENSIONS
                .iter()
                .all(|extension| QUERIED.contains(&extension.number))
        );
    }
}
