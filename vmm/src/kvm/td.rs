//! The VM of a TD, split like an ordinary one: the launch core, which alone creates vCPUs, goes to the `tdx`
//! crate; narrow handles for memory and interrupts stay here.

#![expect(unsafe_code, reason = "the VM's descriptor is duplicated")]

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_ioctls::{Cap, VcpuFd, VmFd};
use tdvmm_arch::GpaRange;
use tdvmm_tdx::abi::KVM_CAP_PRE_FAULT_MEMORY;
use tdvmm_tdx::abi::KVM_X86_TDX_VM;
use tdvmm_tdx::ioctl::{self, KvmTd};

use super::KvmError;
use super::doorbells::Doorbells;
use super::host::Host;
use super::routes::IrqRoutes;
use super::slots::MemorySlots;
use super::vm::VmHandles;
use crate::memory::prefault::Worker;

/// What a TD needs of KVM beside VM type 5, asked of the VM, since only a TD has some of it.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory2, "KVM_CAP_USER_MEMORY2"),
    (Cap::MemoryFaultInfo, "KVM_CAP_MEMORY_FAULT_INFO"),
    (Cap::MemoryAttributes, "KVM_CAP_MEMORY_ATTRIBUTES"),
    (Cap::GuestMemfd, "KVM_CAP_GUEST_MEMFD"),
    (Cap::ExitHypercall, "KVM_CAP_EXIT_HYPERCALL"),
];

/// Tries to provide memory in a row that may come to nothing.
const VAIN_MAX: u32 = 10_000;

/// `KVM_CAP_VM_TYPES`: a bit for each type of VM.
const VM_TYPES: u64 = 235;

/// Whether the KVM of this host makes TDs.
#[must_use]
pub fn is_supported(host: &Host) -> bool {
    host.kvm().check_extension_raw(VM_TYPES) & (1 << KVM_X86_TDX_VM) != 0
}

/// Refuses a host that cannot provide private memory in advance.
///
/// # Errors
///
/// If its KVM lacks the call.
pub fn check_prefault(host: &Host) -> Result<(), KvmError> {
    match host
        .kvm()
        .check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into())
    {
        0 => Err(KvmError::Lacks {
            what: "KVM_CAP_PRE_FAULT_MEMORY, by which --memory prefault=on provides a TD's memory",
            remedy: "use Linux 6.11 or newer, or leave prefault=on out",
        }),
        _ => Ok(()),
    }
}

/// Provides private memory of a launched TD through one of its vCPUs, which does not run yet.
#[derive(Debug)]
pub struct PrivateMemory<'a>(pub &'a VcpuFd);

impl Worker for PrivateMemory<'_> {
    fn provide(&mut self, piece: GpaRange) -> io::Result<()> {
        let mut rest = piece;
        let mut vain = 0;
        while !rest.is_empty() {
            let left = ioctl::pre_fault(self.0, rest)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
            // EAGAIN without progress is a race with another thread, over in a moment.
            vain = if left.len() == rest.len() {
                vain + 1
            } else {
                0
            };
            if vain > VAIN_MAX {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            rest = left;
        }
        Ok(())
    }
}

/// Creates the VM of a TD. Nothing of it is a TD yet.
///
/// # Errors
///
/// If the host has no TDX or its KVM lacks something.
pub fn create(host: &Host) -> Result<(KvmTd, VmHandles), KvmError> {
    if !is_supported(host) {
        return Err(KvmError::Lacks {
            what: "VMs of type TDX (KVM_CAP_VM_TYPES bit 5)",
            remedy: "run `tdvmm check`: it says which condition for TDX fails",
        });
    }
    let vm = host
        .kvm()
        .create_vm_with_type(KVM_X86_TDX_VM)
        .map_err(KvmError::call("KVM_CREATE_VM"))?;
    for &(cap, what) in NEEDED {
        if !vm.check_extension(cap) {
            return Err(KvmError::Lacks {
                what,
                remedy: "use Linux 6.16 or newer",
            });
        }
    }
    let other = Arc::new(duplicate(host, &vm)?);
    let handles = VmHandles {
        slots: MemorySlots::new(Arc::clone(&other)),
        doorbells: Arc::new(Doorbells::new(Arc::clone(&other))),
        routes: Arc::new(IrqRoutes::new(other)),
    };
    Ok((KvmTd::new(vm), handles))
}

/// A second descriptor of the same VM, for the handles: the core owns the first one alone.
fn duplicate(host: &Host, vm: &VmFd) -> Result<VmFd, KvmError> {
    let failed = |source| KvmError::Call {
        call: "dup",
        source,
    };
    // SAFETY: `vm` owns its descriptor, which is open as long as `vm` lives, past this call.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    let copy: OwnedFd = borrowed.try_clone_to_owned().map_err(failed)?;
    // SAFETY: the descriptor is a VM's, and its ownership is given away here.
    unsafe { host.kvm().create_vmfd_from_rawfd(copy.into_raw_fd()) }
        .map_err(KvmError::call("KVM_GET_VCPU_MMAP_SIZE"))
}
