//! What `tdvmm check` looks at on this host. The facts are gathered here and judged by the `tdx` crate.

use std::fs;
use std::io;

use rustix::process::{Resource, getrlimit};
use tdvmm_tdx::abi::{KVM_CAP_VM_TYPES, KVM_X86_TDX_VM};
use tdvmm_tdx::host::{Finding, HostFacts, QUERIED, judge};
use tdvmm_tdx::ioctl::KvmTd;
use tdvmm_tdx::td::{Td, VmSetup};

/// All conditions for running TDs on this host.
#[must_use]
pub fn findings() -> Vec<Finding> {
    judge(&gather())
}

fn gather() -> HostFacts {
    let text = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let mut facts = HostFacts {
        kernel_release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        cpu_flag: text("/proc/cpuinfo").is_some_and(|text| has_flag(&text, "tdx_host_platform")),
        module_parameter: text("/sys/module/kvm_intel/parameters/tdx"),
        // No AMD processor has TDX: a parameter of this name can only be the test fixture's.
        emulated: text("/sys/module/kvm_amd/parameters/tdx")
            .is_some_and(|on| on == "Y" || on == "1"),
        module_version: text("/sys/devices/faux/tdx_host/version"),
        key_ids: key_ids(),
        open_files: getrlimit(Resource::Nofile).maximum,
        ..HostFacts::default()
    };
    match kvm_ioctls::Kvm::new() {
        Err(errno) => facts.kvm_errno = Some(errno.errno()),
        Ok(kvm) => ask_kvm(&kvm, &mut facts),
    }
    facts
}

/// Asks a VM of type TDX where there can be one: it knows best what a TD can have.
fn ask_kvm(kvm: &kvm_ioctls::Kvm, facts: &mut HostFacts) {
    let number = |answer: i32| u32::try_from(answer).unwrap_or(0);
    let types = number(kvm.check_extension_raw(KVM_CAP_VM_TYPES.into()));
    let vm = kvm.create_vm_with_type(KVM_X86_TDX_VM).ok();
    facts.extensions = QUERIED
        .iter()
        .map(|&cap| match (&vm, cap) {
            (_, KVM_CAP_VM_TYPES) => (cap, types),
            (Some(vm), _) => (cap, number(vm.check_extension_raw(cap.into()))),
            (None, _) => (cap, number(kvm.check_extension_raw(cap.into()))),
        })
        .collect();
    facts.capabilities = vm.and_then(|vm| {
        let mut td = Td::create(KvmTd::new(vm), &VmSetup::default()).ok()?;
        td.capabilities().ok()
    });
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|word| word == flag))
}

/// Capacity and use of the resource `tdx` in the misc cgroup.
fn key_ids() -> Option<(u64, u64)> {
    let value = |file: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("tdx "))?;
        line.trim().parse().ok()
    };
    Some((value("misc.capacity")?, value("misc.current")?))
}

/// Writes `findings` as lines for people.
///
/// # Errors
///
/// If they cannot be written.
pub fn write(out: &mut impl io::Write, findings: &[Finding]) -> io::Result<()> {
    for finding in findings {
        writeln!(
            out,
            "{:4}  {}",
            format!("{:?}", finding.level).to_lowercase(),
            finding.what
        )?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "      -> {remedy}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_is_a_whole_word_of_the_flags_line() {
        let cpuinfo = "processor: 0\nflags\t\t: fpu tdx_host_platform_x\nbugs: tdx_host_platform\n";
        assert!(!has_flag(cpuinfo, "tdx_host_platform"));
        assert!(has_flag(cpuinfo, "fpu"));
    }

    #[test]
    fn this_host_gets_a_verdict() {
        let findings = findings();
        assert!(!findings.is_empty());
        let mut text = Vec::new();
        write(&mut text, &findings).unwrap();
        assert!(text.len() > 10);
    }
}
