//! One VM, split at creation into the core that alone can create vCPUs and narrow handles for the rest.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use tdvmm_arch::VcpuId;
use tdvmm_arch::map::{self, gsi::IOAPIC_PINS};

use super::KvmError;
use super::doorbells::Doorbells;
use super::host::Host;
use super::routes::IrqRoutes;
use super::slots::MemorySlots;

/// The core of a VM: creates vCPUs. Not `Clone`; there is one.
#[derive(Debug)]
pub struct Vm {
    vm: Arc<VmFd>,
}

/// What else a VM has, each part offering its own calls only.
#[derive(Debug)]
pub struct VmHandles {
    /// Guest memory.
    pub slots: MemorySlots,
    /// Interrupts.
    pub routes: Arc<IrqRoutes>,
    /// Kicks of virtio queues.
    pub doorbells: Arc<Doorbells>,
}

impl Vm {
    /// Creates an ordinary VM with a split irqchip: local APICs in the kernel, the I/O APIC here.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn create(host: &Host) -> Result<(Self, VmHandles), KvmError> {
        let vm = host
            .kvm()
            .create_vm()
            .map_err(KvmError::call("KVM_CREATE_VM"))?;
        // Needed on processors without unrestricted guest, and before the first vCPU; others ignore it.
        vm.set_identity_map_address(map::KVM_IDENTITY_MAP.start().0)
            .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "usize has 64 bits on this target"
        )]
        vm.set_tss_address(map::KVM_TSS.start().0 as usize)
            .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        enable(
            &vm,
            KVM_CAP_SPLIT_IRQCHIP,
            u64::from(IOAPIC_PINS),
            "KVM_CAP_SPLIT_IRQCHIP",
        )?;
        // Destinations above 255, and no broadcast for destination 255 in x2APIC mode.
        let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        enable(
            &vm,
            KVM_CAP_X2APIC_API,
            u64::from(x2apic),
            "KVM_CAP_X2APIC_API",
        )?;
        let vm = Arc::new(vm);
        let handles = VmHandles {
            slots: MemorySlots::new(Arc::clone(&vm)),
            routes: Arc::new(IrqRoutes::new(Arc::clone(&vm))),
            doorbells: Arc::new(Doorbells::new(Arc::clone(&vm))),
        };
        Ok((Self { vm }, handles))
    }

    /// Creates the vCPU with number (and APIC id) `id`.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<VcpuFd, KvmError> {
        self.vm
            .create_vcpu(u64::from(id.0))
            .map_err(KvmError::call("KVM_CREATE_VCPU"))
    }
}

fn enable(vm: &VmFd, cap: u32, argument: u64, call: &'static str) -> Result<(), KvmError> {
    let mut wanted = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    wanted.args[0] = argument;
    vm.enable_cap(&wanted).map_err(KvmError::call(call))
}
