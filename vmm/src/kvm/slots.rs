//! Memory slots: which host memory backs which guest-physical addresses.

#![expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION gives the kernel a host address"
)]

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

use super::KvmError;

/// The right to add memory to one VM. It keeps what it added mapped for as long as the VM lives.
#[derive(Debug)]
pub struct MemorySlots {
    vm: Arc<VmFd>,
    backing: Vec<GuestMemoryMmap>,
    next: u32,
}

impl MemorySlots {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            backing: Vec::new(),
            next: 0,
        }
    }

    /// Adds every region of `memory` to the guest.
    ///
    /// # Errors
    ///
    /// If KVM refuses one: too large for the host's physical addresses, or overlapping another.
    pub fn add(&mut self, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
        // Kept from here on, so that a slot never outlives its memory, even when a later one fails.
        self.backing.push(memory.clone());
        for region in memory.iter() {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| KvmError::Lacks {
                    what: "an address for guest memory",
                    remedy: "report it",
                })?;
            let GuestAddress(guest_phys_addr) = region.start_addr();
            let slot = kvm_userspace_memory_region {
                slot: self.next,
                flags: 0,
                guest_phys_addr,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: `userspace_addr` and `memory_size` are the bounds of a mapping that `backing` keeps
            // for as long as this object lives, and only vCPU threads let a guest use it, whose owner
            // (`VcpuThreads`) joins them before it drops this object. Guest memory is only reached through
            // volatile accesses, so the guest may write to it at any time. Slot numbers are not used twice,
            // so no slot in use is replaced.
            unsafe { self.vm.set_user_memory_region(slot) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
            self.next += 1;
        }
        Ok(())
    }
}
