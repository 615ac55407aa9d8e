//! What can go wrong in a call, with all that a reader needs: command, errno, module status, knob.
//!
//! [`CallError`] is one failed call; [`TdxError`] is a failed step of the launch. The errno is the
//! *source* of a [`CallError`] and is not repeated in its message.

use std::error::Error;
use std::fmt;
use std::io;

use tdvmm_arch::addr::GpaRange;

use crate::status::TdxStatus;

/// A call to KVM that the launch of a TD makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the call its name gives")]
pub enum Command {
    Capabilities,
    InitVm,
    InitVcpu,
    InitMemRegion,
    FinalizeVm,
    GetCpuid,
    CreateVcpu,
    SetCpuid2,
    SetMemoryAttributes,
    SetTscKhz,
    PreFaultMemory,
    EnableSplitIrqchip,
    EnableApicBusCycles,
    EnableExitHypercall,
    EnableX2apicApi,
    PermitXstate,
}

impl Command {
    /// The kernel's name of the call.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "KVM_TDX_CAPABILITIES",
            Self::InitVm => "KVM_TDX_INIT_VM",
            Self::InitVcpu => "KVM_TDX_INIT_VCPU",
            Self::InitMemRegion => "KVM_TDX_INIT_MEM_REGION",
            Self::FinalizeVm => "KVM_TDX_FINALIZE_VM",
            Self::GetCpuid => "KVM_TDX_GET_CPUID",
            Self::CreateVcpu => "KVM_CREATE_VCPU",
            Self::SetCpuid2 => "KVM_SET_CPUID2",
            Self::SetMemoryAttributes => "KVM_SET_MEMORY_ATTRIBUTES",
            Self::SetTscKhz => "KVM_SET_TSC_KHZ",
            Self::PreFaultMemory => "KVM_PRE_FAULT_MEMORY",
            Self::EnableSplitIrqchip => "KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)",
            Self::EnableApicBusCycles => "KVM_ENABLE_CAP(KVM_CAP_X86_APIC_BUS_CYCLES_NS)",
            Self::EnableExitHypercall => "KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL)",
            Self::EnableX2apicApi => "KVM_ENABLE_CAP(KVM_CAP_X2APIC_API)",
            Self::PermitXstate => "arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A call that failed.
#[derive(Debug)]
pub struct CallError {
    command: Command,
    errno: io::Error,
    status: Option<TdxStatus>,
}

impl CallError {
    /// `command` failed with `errno`, and the module's status word was `hw_error` (0: none).
    #[must_use]
    pub fn new(command: Command, errno: i32, hw_error: u64) -> Self {
        Self {
            command,
            errno: io::Error::from_raw_os_error(errno),
            status: TdxStatus::from_raw(hw_error),
        }
    }

    /// The call.
    #[must_use]
    pub const fn command(&self) -> Command {
        self.command
    }

    /// The errno.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno.raw_os_error().unwrap_or(0)
    }

    /// The TDX module's status; `None` where KVM itself refused, and from calls on a vCPU fd, which
    /// do not hand it on.
    #[must_use]
    pub const fn status(&self) -> Option<TdxStatus> {
        self.status
    }

    /// The knob to turn.
    #[must_use]
    pub fn knob(&self) -> Option<&'static str> {
        self.status
            .and_then(TdxStatus::hint)
            .or_else(|| knob(self.command, self.errno()))
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed", self.command)?;
        if let Some(status) = self.status {
            write!(f, " (TDX module status {status})")?;
        }
        if let Some(knob) = self.knob() {
            write!(f, ": {knob}")?;
        }
        Ok(())
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.errno)
    }
}

/// What an errno means at a call, in the words of who has to act. Each line follows a check of
/// `arch/x86/kvm/vmx/tdx.c`.
fn knob(command: Command, errno: i32) -> Option<&'static str> {
    use Command as C;
    Some(match (command, errno) {
        (C::InitVm, libc::ENOSPC) => {
            "no TDX key id is free: end another TD, or raise the number of TDX key ids in the BIOS"
        }
        (C::InitVm, libc::EBUSY) => {
            "the limit of `tdx` key ids of this process's misc cgroup, or of one above it, is \
             reached: raise misc.max there, or end another TD in it"
        }
        (C::InitVm, libc::EINVAL) => {
            "KVM itself refused the parameters: compare attributes, XFAM, CPUID and GPAW (52 needs \
             a host with 5-level EPT) with what KVM_TDX_CAPABILITIES reports"
        }
        (C::InitVm, libc::EIO) => {
            "the TDX module failed, or a CPU package has no CPU online: see the host's kernel log"
        }
        (C::InitVm | C::CreateVcpu | C::FinalizeVm, libc::ENOMEM) => {
            "the host has no memory left for the TD's control pages"
        }
        (C::Capabilities | C::GetCpuid, libc::ENOTTY) => {
            "this VM is no TD, or the kernel's KVM is built without TDX"
        }
        (C::Capabilities, libc::EIO) => {
            "this kernel is too old for what the TDX module demands: update the kernel"
        }
        (C::CreateVcpu, libc::EIO) => "vCPUs can be created after INIT_VM and before FINALIZE only",
        (C::CreateVcpu, libc::EINVAL) => {
            "the split irqchip is missing, or the vCPU number is above KVM_CAP_MAX_VCPUS of this VM"
        }
        (C::SetCpuid2, libc::EPERM) => {
            "AMX in the CPUID table needs ARCH_REQ_XCOMP_GUEST_PERM before the first vCPU"
        }
        (C::InitVcpu, libc::EINVAL) => {
            "the vCPU's CPUID lacks x2APIC, or the vCPU is initialised already"
        }
        (C::InitMemRegion, libc::EINVAL) => {
            "the range must be private, page aligned, and backed by guest_memfd"
        }
        (C::InitMemRegion, libc::EIO) => {
            "a page was added twice, or the TDX module failed: this TD is lost"
        }
        (C::FinalizeVm, libc::EIO) => "the TDX module failed: this TD is lost",
        (C::EnableApicBusCycles, libc::ENXIO) => "the split irqchip has to be enabled first",
        (C::EnableSplitIrqchip, libc::EEXIST) => "the VM has an irqchip or a vCPU already",
        (C::SetTscKhz, libc::EINVAL) => {
            "KVM cannot give the guest this TSC frequency, or a vCPU exists already"
        }
        (C::PreFaultMemory, libc::EOPNOTSUPP) => "memory can be prefaulted after FINALIZE only",
        (C::PermitXstate, _) => {
            "the host kernel does not let this process give AMX to a guest (Linux >= 5.17 needed)"
        }
        _ => return None,
    })
}

/// A step of the launch that failed. The TD is gone with it.
#[derive(Debug, thiserror::Error)]
pub enum TdxError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A call kept asking to be repeated.
    #[error("{command} asked {tries} times to be repeated and did not get on")]
    NoProgress {
        /// The call.
        command: Command,
        /// How often it was tried since it last got on.
        tries: u32,
    },
    /// A list did not fit in the largest buffer that KVM knows.
    #[error("{command} reports more than {limit} CPUID entries")]
    TooManyEntries {
        /// The call.
        command: Command,
        /// The limit.
        limit: usize,
    },
    /// The host cannot have that many vCPUs in one TD.
    #[error(
        "{asked} vCPUs asked for, but KVM gives this TD {max} at most (KVM_CAP_MAX_VCPUS: the \
         number of CPUs present in this host)"
    )]
    TooManyVcpus {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        max: u32,
    },
    /// Source and target of a region differ in size, or the target is not made of pages.
    #[error("a region of {source_len:#x} bytes cannot be added at {at}")]
    RegionSize {
        /// The target.
        at: GpaRange,
        /// Bytes at the source.
        source_len: u64,
    },
    /// The target reaches into the shared half of the address space.
    #[error("region {at} lies above the private half of a TD with GPAW {gpaw}")]
    RegionShared {
        /// The target.
        at: GpaRange,
        /// Width of guest-physical addresses.
        gpaw: u8,
    },
    /// A region holds pages that an earlier one added.
    #[error("region {at} overlaps region {earlier}, whose pages were added before")]
    RegionTwice {
        /// The target.
        at: GpaRange,
        /// The region added before.
        earlier: GpaRange,
    },
    /// The kernel's account of what is left contradicts itself.
    #[error("KVM_TDX_INIT_MEM_REGION wrote back a state that does not follow from {at}")]
    InconsistentProgress {
        /// The range of the call.
        at: GpaRange,
    },
}

impl TdxError {
    /// The failed call, where one failed.
    #[must_use]
    pub const fn call(&self) -> Option<&CallError> {
        match self {
            Self::Call(call) => Some(call),
            _ => None,
        }
    }
}

/// An error with its causes, as the one line that is said of it.
#[must_use]
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_call_names_command_status_and_knob_and_leaves_errno_to_the_chain() {
        let error = CallError::new(Command::InitVm, libc::EINVAL, 0xc000_0100_0000_0045);
        let text = error.to_string();
        assert!(text.starts_with(
            "KVM_TDX_INIT_VM failed (TDX module status 0xc000010000000045 OPERAND_INVALID, operand \
             CPUID_CONFIG): a CPUID value"
        ));
        assert!(!text.contains("os error"));
        assert_eq!(
            error.source().unwrap().to_string(),
            "Invalid argument (os error 22)"
        );
    }

    #[test]
    fn refusal_by_kvm_itself_has_no_status() {
        let error = CallError::new(Command::InitVm, libc::EINVAL, 0);
        assert_eq!(error.status(), None);
        assert!(error.to_string().contains("KVM itself refused"));
    }

    #[test]
    fn exhausted_key_ids_are_named() {
        let error = CallError::new(Command::InitVm, libc::ENOSPC, 0);
        assert!(error.knob().unwrap().contains("key id"));
    }
}
