//! The floor: the KVM calls without which the guest cannot run, in a program that does nothing else.
//!
//! One VM with a split irqchip and 128 MiB, one vCPU with the host's CPUID, in real mode. A VMM that boots an
//! operating system needs each of these calls.

#![expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION gives the kernel a host address"
)]

use std::io::Write;
use std::process::ExitCode;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};

const RAM: usize = 128 << 20;
const CODE: usize = 0x1000;

/// `mov dx, 0x3f8; mov al, '!'; out dx, al; mov dx, 0x614; mov al, 0x20; out dx, al; hlt`, 16-bit.
const GUEST: [u8; 13] = [
    0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xba, 0x14, 0x06, 0xb0, 0x20, 0xee, 0xf4,
];

fn main() -> ExitCode {
    match guest() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn guest() -> anyhow::Result<()> {
    let kvm = Kvm::new()?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let vm = kvm.create_vm()?;
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = 24;
    vm.enable_cap(&split)?;
    let ram = vm_memory::MmapRegion::<()>::new(RAM)?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: RAM as u64,
        userspace_addr: ram.as_ptr() as u64,
    };
    // SAFETY: address and size are those of `ram`, which lives until this function returns. Only the vCPU below
    // uses the memory, and it runs in this function only. This program writes to it before that.
    unsafe { vm.set_user_memory_region(slot)? };
    vm_memory::VolatileMemory::get_slice(&ram, CODE, GUEST.len())?.copy_from(&GUEST);

    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&cpuid)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_bindings::kvm_regs {
        rip: CODE as u64,
        rflags: 2,
        ..Default::default()
    })?;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x3f8, bytes) => std::io::stdout().write_all(bytes)?,
            VcpuExit::IoOut(0x614, _) => return Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
        std::io::stdout().flush()?;
    }
}
