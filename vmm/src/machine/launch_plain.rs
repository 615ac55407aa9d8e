//! Launching an ordinary VM: the plan put into action, from top to bottom.

use std::fs::File;
use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use tdvmm_arch::boot::{BootError, InitialRegisters, Segment};
use tdvmm_arch::cpuid::{self, CpuidOptions};
use tdvmm_arch::{Gpa, VcpuId, msrs};
use tdvmm_devices::dma::DmaView;
use tdvmm_devices::power::PowerSink;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::board::{Board, BoardError};
use super::functions::Backends;
use crate::ending::EndingCell;
use crate::kvm::KvmError;
use crate::kvm::host::{self, Host};
use crate::kvm::slots::MemorySlots;
use crate::kvm::vm::Vm;
use crate::memory::ram::{self, RamError};
use crate::payload::{Initramfs, Kernel, KernelKind, PayloadFiles};
use crate::plan::boot::Entry;
use crate::plan::{BootPlan, KernelPlan, Plan};

/// Offset of the 64-bit entry point in a bzImage's protected-mode part. Linux: boot.rst, "64-bit Boot
/// Protocol".
const ENTRY_64: u64 = 0x200;

/// The VM cannot be launched.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// KVM refuses.
    #[error("cannot set up the virtual machine")]
    Kvm(#[from] KvmError),
    /// There is no memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A device cannot be wired.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The kernel's file cannot be loaded.
    #[error("--kernel: cannot load the file")]
    Kernel(#[source] loader::Error),
    /// The initramfs cannot be read.
    #[error("--initramfs: cannot load the file")]
    Initramfs(#[source] GuestMemoryError),
    /// The boot parameters cannot be made.
    #[error("cannot make the boot parameters")]
    Boot(#[source] BootError),
    /// The plan puts something where there is no RAM.
    #[error("the plan writes outside of RAM")]
    Write(#[source] GuestMemoryError),
}

/// A machine that has only to be started.
#[derive(Debug)]
pub struct ReadyMachine {
    /// The devices.
    pub board: Board,
    /// The vCPUs in order of their numbers.
    pub vcpus: Vec<VcpuFd>,
    /// The memory that they run on.
    pub slots: MemorySlots,
}

/// Does what `plan` says, on `host`; the devices lead to `backends`.
///
/// # Errors
///
/// If the host refuses something.
pub(super) fn launch(
    plan: &Plan,
    host: &Host,
    files: PayloadFiles,
    backends: Backends,
    endings: &Arc<EndingCell>,
) -> Result<ReadyMachine, LaunchError> {
    let (vm, mut handles) = Vm::create(host)?;
    let ram = ram::allocate(&plan.ram, plan.firmware().map(|firmware| firmware.range))?;
    handles.slots.add(&ram)?;
    let power: Arc<dyn PowerSink> = Arc::<EndingCell>::clone(endings);
    let memory = DmaView::all_shared(Arc::new(ram.clone()));
    let board = Board::wire(plan, backends, &handles, &memory, None, &power)?;
    let start = load(plan, files, &ram)?;
    let vcpus = create_vcpus(plan, &vm, host, &start)?;
    Ok(ReadyMachine {
        board,
        vcpus,
        slots: handles.slots,
    })
}

/// How the first vCPU starts.
enum Start {
    /// As a processor does after reset.
    Reset,
    /// In a kernel that finds everything set up.
    Kernel(InitialRegisters),
}

fn load(plan: &Plan, files: PayloadFiles, ram: &GuestMemoryMmap) -> Result<Start, LaunchError> {
    match (&plan.boot, files) {
        (BootPlan::Kernel(to), PayloadFiles::Kernel { kernel, initramfs }) => {
            let entry = load_kernel(to, kernel, ram)?;
            load_initramfs(to, initramfs, ram)?;
            let (writes, registers) = to.hand_over(entry, &plan.acpi).map_err(LaunchError::Boot)?;
            for write in &writes {
                put(ram, write.at, &write.bytes)?;
            }
            Ok(Start::Kernel(registers))
        }
        (BootPlan::Firmware(firmware), _) => {
            put(ram, firmware.range.start(), firmware.image())?;
            Ok(Start::Reset)
        }
        (BootPlan::Kernel(_), PayloadFiles::Firmware) => Ok(Start::Reset),
    }
}

fn put(ram: &GuestMemoryMmap, at: Gpa, bytes: &[u8]) -> Result<(), LaunchError> {
    ram.write_slice(bytes, GuestAddress(at.0))
        .map_err(LaunchError::Write)
}

fn load_kernel(
    plan: &KernelPlan,
    mut kernel: Kernel,
    ram: &GuestMemoryMmap,
) -> Result<Entry, LaunchError> {
    let file: &mut File = &mut kernel.file;
    match kernel.kind {
        KernelKind::BzImage { .. } => {
            let at = plan.load_at.map(|gpa| GuestAddress(gpa.0));
            let loaded = BzImage::load(ram, at, file, None).map_err(LaunchError::Kernel)?;
            Ok(Entry::Linux64(Gpa(loaded.kernel_load.0 + ENTRY_64)))
        }
        KernelKind::Elf { .. } => {
            let loaded = Elf::load(ram, None, file, None).map_err(LaunchError::Kernel)?;
            Ok(match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(at) => Entry::Pvh(Gpa(at.0)),
                _ => Entry::Linux64(Gpa(loaded.kernel_load.0)),
            })
        }
    }
}

fn load_initramfs(
    plan: &KernelPlan,
    initramfs: Option<Initramfs>,
    ram: &GuestMemoryMmap,
) -> Result<(), LaunchError> {
    let (Some(range), Some(mut initramfs)) = (plan.initramfs, initramfs) else {
        return Ok(());
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "usize has 64 bits on this target"
    )]
    let len = range.len() as usize;
    ram.read_exact_volatile_from(GuestAddress(range.start().0), &mut initramfs.file, len)
        .map_err(LaunchError::Initramfs)
}

fn create_vcpus(plan: &Plan, vm: &Vm, host: &Host, start: &Start) -> Result<Vec<VcpuFd>, KvmError> {
    let options = CpuidOptions::default();
    let mut vcpus = Vec::with_capacity(plan.topology.vcpus() as usize);
    for id in (0..plan.topology.vcpus()).map(VcpuId) {
        let vcpu = vm.create_vcpu(id)?;
        let table = cpuid::for_vcpu(host.supported_cpuid(), id, &plan.topology, &options);
        vcpu.set_cpuid2(&host::to_kvm(&table)?)
            .map_err(KvmError::call("KVM_SET_CPUID2"))?;
        if let Some((index, data)) = msrs::apic_base(id, &plan.topology)
            && !set_msr(&vcpu, index, data)?
        {
            return Err(KvmError::Lacks {
                what: "x2APIC mode from the start",
                remedy: "give the guest at most 255 vCPUs",
            });
        }
        if let Start::Kernel(registers) = start {
            // A register that the host does not have is left out, as on a processor that lacks it.
            for &(index, data) in msrs::boot_msrs() {
                set_msr(&vcpu, index, data)?;
            }
            if id == VcpuId(0) {
                set_registers(&vcpu, registers)?;
            }
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Sets one model-specific register; false where KVM does not know it.
fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<bool, KvmError> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let one = Msrs::from_entries(&[entry]).map_err(|_| KvmError::Lacks {
        what: "room for one model-specific register",
        remedy: "report it as a defect of this program",
    })?;
    vcpu.set_msrs(&one)
        .map(|set| set == 1)
        .map_err(KvmError::call("KVM_SET_MSRS"))
}

fn set_registers(vcpu: &VcpuFd, registers: &InitialRegisters) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    sregs.cs = segment(&registers.cs);
    let data = segment(&registers.data);
    [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] = [data; 5];
    sregs.tr = segment(&registers.tr);
    sregs.gdt.base = registers.gdt_base;
    sregs.gdt.limit = registers.gdt_limit;
    sregs.cr0 = registers.cr0;
    sregs.cr3 = registers.cr3;
    sregs.cr4 = registers.cr4;
    sregs.efer = registers.efer;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;
    let regs = kvm_bindings::kvm_regs {
        rip: registers.rip,
        rsp: registers.rsp,
        rsi: registers.rsi,
        rbx: registers.rbx,
        rflags: registers.rflags,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(KvmError::call("KVM_SET_REGS"))
}

fn segment(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind,
        present: from.present,
        dpl: from.dpl,
        db: from.db,
        s: from.s,
        l: from.l,
        g: from.g,
        ..Default::default()
    }
}
