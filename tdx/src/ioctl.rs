//! The calls of a launch, made for real: the only module of this crate with `unsafe`.
//!
//! [`KvmTd`] takes the VM descriptor of a TD for itself; it alone makes vCPUs of it. Each method is
//! one call and one try with a command built for it, as the kernel refuses a command that still
//! carries the `hw_error` of an earlier try. Order and retries are `td`'s. Below it: the few calls on
//! a running TD that the rust-vmm crates do not offer. Kernel: `tdx_vm_ioctl`,
//! `tdx_vcpu_unlocked_ioctl`, `tdx_vcpu_ioctl` in `arch/x86/kvm/vmx/tdx.c`.

#![expect(
    unsafe_code,
    reason = "ioctls whose argument holds the address of a buffer"
)]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_run};
use kvm_ioctls::{VcpuFd, VmFd};
use tdvmm_arch::addr::{Gpa, GpaRange, VcpuId};
use tdvmm_arch::cpuid::CpuidTable;

use crate::abi::{self, kvm_pre_fault_memory, kvm_tdx_cmd, kvm_tdx_init_mem_region};
use crate::caps::Capabilities;
use crate::error::{CallError, Command};
use crate::exit::{EXIT_REASON, RUN_BYTES, Reply};
use crate::log::Measure;
use crate::ops::{Progress, TdOps, VmSetting};
use crate::pages::PageSource;
use crate::params::TdParams;
use crate::wire;

/// A TD of the host's KVM.
#[derive(Debug)]
pub struct KvmTd {
    vm: VmFd,
}

impl KvmTd {
    /// From a VM created with type [`abi::KVM_X86_TDX_VM`]; with another the first command fails.
    #[must_use]
    pub const fn new(vm: VmFd) -> Self {
        Self { vm }
    }

    fn enable(&self, command: Command, cap: u32, arg: u64) -> Result<(), CallError> {
        let request = kvm_enable_cap {
            cap,
            args: [arg, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        self.vm
            .enable_cap(&request)
            .map_err(|error| CallError::new(command, error.errno(), 0))
    }
}

/// `KVM_X2APIC_API_USE_32BIT_IDS`. Its companion, which switches off the quirk of broadcasts to
/// APIC id 255, is set with it: with more than 255 vCPUs that id is one of them.
const X2APIC_API_BITS: u64 = 0b11;

impl TdOps for KvmTd {
    type Vcpu = VcpuFd;

    fn set(&self, setting: VmSetting) -> Result<(), CallError> {
        match setting {
            VmSetting::SplitIrqchip(pins) => {
                let command = Command::EnableSplitIrqchip;
                self.enable(command, abi::KVM_CAP_SPLIT_IRQCHIP, u64::from(pins))
            }
            VmSetting::ApicBusCycleNs(ns) => {
                let command = Command::EnableApicBusCycles;
                self.enable(command, abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS, ns)
            }
            VmSetting::MapGpaExits => {
                let bits = 1 << abi::KVM_HC_MAP_GPA_RANGE;
                self.enable(
                    Command::EnableExitHypercall,
                    abi::KVM_CAP_EXIT_HYPERCALL,
                    bits,
                )
            }
            VmSetting::X2apicIds => self.enable(
                Command::EnableX2apicApi,
                abi::KVM_CAP_X2APIC_API,
                X2APIC_API_BITS,
            ),
            VmSetting::Tsc(tsc) => {
                // SAFETY: KVM_SET_TSC_KHZ takes its argument as a number and reads no memory; the
                // descriptor is open as long as `self.vm` lives.
                let ret = unsafe {
                    libc::ioctl(
                        self.vm.as_raw_fd(),
                        abi::KVM_SET_TSC_KHZ,
                        libc::c_ulong::from(tsc.khz()),
                    )
                };
                done(ret).map_err(|errno| CallError::new(Command::SetTscKhz, errno, 0))
            }
        }
    }

    fn max_vcpus(&self) -> u32 {
        let max = self
            .vm
            .check_extension_raw(libc::c_ulong::from(abi::KVM_CAP_MAX_VCPUS));
        u32::try_from(max).unwrap_or(0)
    }

    fn capabilities(&self, capacity: usize) -> Result<Capabilities, CallError> {
        let mut buffer = wire::capabilities_buffer(capacity);
        let (result, hw_error) = with_words(&self.vm, abi::KVM_TDX_CAPABILITIES, &mut buffer);
        let error = |errno| CallError::new(Command::Capabilities, errno, hw_error);
        result.map_err(error)?;
        wire::parse_capabilities(&buffer).ok_or_else(|| error(libc::EFAULT))
    }

    fn permit_xstate(&self, component: u32) -> Result<(), CallError> {
        permit_guest_xstate(component)
    }

    fn init_vm(&self, params: &TdParams) -> Result<(), CallError> {
        let mut buffer = wire::init_vm_buffer(params);
        let (result, hw_error) = with_words(&self.vm, abi::KVM_TDX_INIT_VM, &mut buffer);
        result.map_err(|errno| CallError::new(Command::InitVm, errno, hw_error))
    }

    fn create_vcpu(&self, id: VcpuId) -> Result<VcpuFd, CallError> {
        self.vm
            .create_vcpu(u64::from(id.0))
            .map_err(|error| CallError::new(Command::CreateVcpu, error.errno(), 0))
    }

    fn td_cpuid(&self, vcpu: &VcpuFd, capacity: usize) -> Result<CpuidTable, CallError> {
        let mut buffer = wire::empty_cpuid_buffer(capacity);
        let (result, _) = with_words(vcpu, abi::KVM_TDX_GET_CPUID, &mut buffer);
        let error = |errno| CallError::new(Command::GetCpuid, errno, 0);
        result.map_err(error)?;
        wire::parse_cpuid(&buffer).ok_or_else(|| error(libc::EFAULT))
    }

    fn set_cpuid(&self, vcpu: &VcpuFd, table: &CpuidTable) -> Result<(), CallError> {
        let buffer = wire::cpuid_buffer(table);
        // SAFETY: the argument is a `kvm_cpuid2`, which the kernel only reads. `buffer` holds the
        // header and as many entries as the header's `nent` says (`wire::cpuid_buffer`), is
        // aligned to 8, which is more than the structure's 4, and outlives the call.
        let ret = unsafe { libc::ioctl(vcpu.as_raw_fd(), abi::KVM_SET_CPUID2, buffer.as_ptr()) };
        done(ret).map_err(|errno| CallError::new(Command::SetCpuid2, errno, 0))
    }

    fn init_vcpu(&self, vcpu: &VcpuFd, rcx: Gpa) -> Result<(), CallError> {
        // `data` is the value of RCX itself.
        let mut cmd = wire::command(abi::KVM_TDX_INIT_VCPU, 0, rcx.0);
        // SAFETY: of this command the kernel reads `data` as a number, so it points nowhere.
        let result = unsafe { encrypt_op(vcpu, &mut cmd) };
        result.map_err(|errno| CallError::new(Command::InitVcpu, errno, 0))
    }

    fn set_private(&self, range: GpaRange) -> Result<(), CallError> {
        let request = kvm_memory_attributes {
            address: range.start().0,
            size: range.len(),
            attributes: abi::KVM_MEMORY_ATTRIBUTE_PRIVATE,
            flags: 0,
        };
        self.vm
            .set_memory_attributes(request)
            .map_err(|error| CallError::new(Command::SetMemoryAttributes, error.errno(), 0))
    }

    fn init_mem_region(
        &self,
        vcpu: &VcpuFd,
        source: PageSource<'_>,
        at: GpaRange,
        measure: Measure,
    ) -> Result<Progress, CallError> {
        let before = wire::mem_region(source, at);
        let mut region: kvm_tdx_init_mem_region = before;
        let data = std::ptr::from_mut(&mut region).expose_provenance() as u64;
        let mut cmd = wire::mem_region_command(measure, data);
        // SAFETY: `data` is the address of `region`, which the kernel reads and writes within its
        // 24 bytes and which is read again only after the call. `region.source_addr` and `nr_pages`
        // are those of `source`, memory that is borrowed for longer than the call; the kernel only
        // reads it.
        let result = unsafe { encrypt_op(vcpu, &mut cmd) };
        wire::progress(&before, &region, result)
    }

    fn finalize(&self) -> Result<(), CallError> {
        let mut cmd = wire::command(abi::KVM_TDX_FINALIZE_VM, 0, 0);
        // SAFETY: this command has no data: the kernel does not look at the field.
        let result = unsafe { encrypt_op(&self.vm, &mut cmd) };
        result.map_err(|errno| CallError::new(Command::FinalizeVm, errno, cmd.hw_error))
    }
}

/// Makes a command whose data is a buffer of `wire`; also gives the module's status.
fn with_words(fd: &impl AsRawFd, id: u32, buffer: &mut [u64]) -> (Result<(), i32>, u64) {
    let data = buffer.as_mut_ptr().expose_provenance() as u64;
    let mut cmd = wire::command(id, 0, data);
    // SAFETY: `data` is the address of `buffer`, which is borrowed mutably for longer than the
    // call. The three commands that come here (CAPABILITIES, INIT_VM, GET_CPUID) read and write
    // their fixed part and at most `nent` entries; `wire` lays the buffer out with exactly that
    // many behind the fixed part. It is aligned to 8, as the structures want.
    let result = unsafe { encrypt_op(fd, &mut cmd) };
    (result, cmd.hw_error)
}

/// `KVM_MEMORY_ENCRYPT_OP`.
///
/// # Safety
///
/// `cmd.data` must be what `cmd.id` wants: a number, or the address of memory that is valid for all
/// that the kernel reads and writes there.
unsafe fn encrypt_op(fd: &impl AsRawFd, cmd: &mut kvm_tdx_cmd) -> Result<(), i32> {
    let cmd: *mut kvm_tdx_cmd = cmd;
    // SAFETY: `cmd` comes from a mutable reference, so it is valid for its 24 bytes, which the
    // kernel reads and writes (`hw_error`); what `data` points at is the caller's to warrant.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), abi::KVM_MEMORY_ENCRYPT_OP, cmd) };
    done(ret)
}

fn done(ret: libc::c_int) -> Result<(), i32> {
    if ret < 0 {
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        Ok(())
    }
}

/// Lets guests of this process use a component of the extended state: 18 is AMX tile data.
///
/// Before the first vCPU of the process, and before `KVM_GET_SUPPORTED_CPUID` too, which leaves AMX
/// out until then. A second call changes nothing.
///
/// # Errors
///
/// The failed call: the processor or the kernel has no such component.
pub fn permit_guest_xstate(component: u32) -> Result<(), CallError> {
    const ARCH_REQ_XCOMP_GUEST_PERM: libc::c_ulong = 0x1025;
    // SAFETY: this arch_prctl takes two numbers and touches no memory of this process. It
    // widens what its guests may use and changes nothing for its own threads.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_GUEST_PERM,
            libc::c_ulong::from(component),
        )
    };
    let ret = libc::c_int::try_from(ret).unwrap_or(-1);
    done(ret).map_err(|errno| CallError::new(Command::PermitXstate, errno, 0))
}

/// Creates private memory of `size` bytes for a VM. No flags: a TD takes none that is of use.
///
/// # Errors
///
/// The call's errno.
pub fn create_guest_memfd(vm: &VmFd, size: u64) -> io::Result<OwnedFd> {
    let request = kvm_create_guest_memfd {
        size,
        ..kvm_create_guest_memfd::default()
    };
    let fd = vm
        .create_guest_memfd(request)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    // SAFETY: the call has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Maps a part of `range` into the guest (`KVM_PRE_FAULT_MEMORY`) and gives the rest, empty when all
/// is done. Private pages become *pending*: the guest still has to accept them. Stops on a signal.
///
/// # Errors
///
/// The failed call; before FINALIZE that is EOPNOTSUPP. EINTR and EAGAIN are no errors here.
pub fn pre_fault(vcpu: &VcpuFd, range: GpaRange) -> Result<GpaRange, CallError> {
    let mut request = kvm_pre_fault_memory {
        gpa: range.start().0,
        size: range.len(),
        flags: 0,
        padding: [0; 5],
    };
    let argument: *mut kvm_pre_fault_memory = &raw mut request;
    // SAFETY: `argument` points at `request`, of the size and layout that the call wants, which the
    // kernel writes back and which is read only after the call.
    let ret = unsafe { libc::ioctl(vcpu.as_raw_fd(), abi::KVM_PRE_FAULT_MEMORY, argument) };
    let error = |errno| CallError::new(Command::PreFaultMemory, errno, 0);
    match done(ret) {
        Ok(()) | Err(libc::EINTR | libc::EAGAIN) => {}
        Err(errno) => return Err(error(errno)),
    }
    GpaRange::from_len(Gpa(request.gpa), request.size)
        .filter(|rest| range.contains_range(*rest) && rest.end() == range.end())
        .ok_or_else(|| error(libc::EPROTO))
}

/// The bytes of a vCPU's `kvm_run`, for [`exit::decode`](crate::exit::decode): a copy, so that
/// nothing of it is read twice. What lies before the exit reason is left 0: it goes to the kernel, and one
/// byte of it, `immediate_exit`, other threads may write at any time.
#[must_use]
pub fn exit_bytes(vcpu: &mut VcpuFd) -> [u8; RUN_BYTES] {
    let run: *const kvm_run = vcpu.get_kvm_run();
    // SAFETY: `run` comes from a reference to the vCPU's mapping, which holds a whole `kvm_run`, and the
    // offset lies in that (both asserted below).
    let told = unsafe { run.cast::<u8>().add(EXIT_REASON) };
    // SAFETY: the mapping has RUN_BYTES - EXIT_REASON bytes from `told` on (asserted below), all of them
    // initialised memory of the kernel; bytes need no alignment. Nothing writes to these: the kernel does in
    // KVM_RUN only, which the exclusive borrow of the vCPU excludes, and the one field that other threads
    // write, `immediate_exit`, lies before them (asserted below).
    let told = unsafe { told.cast::<[u8; RUN_BYTES - EXIT_REASON]>().read_volatile() };
    let mut bytes = [0; RUN_BYTES];
    for (to, from) in bytes.iter_mut().skip(EXIT_REASON).zip(told) {
        *to = from;
    }
    bytes
}

const _: () = assert!(size_of::<kvm_run>() >= RUN_BYTES);
const _: () = assert!(offset_of!(kvm_run, exit_reason) == EXIT_REASON);
const _: () = assert!(offset_of!(kvm_run, immediate_exit) < EXIT_REASON);

/// An answer that does not belong to the exit it was given for. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("answer {reply:?} does not belong to exit {reason}")]
pub struct ReplyMismatch {
    reply: Reply,
    reason: u32,
}

/// Puts the answer to the last exit of a vCPU where the next `KVM_RUN` looks for it.
///
/// # Errors
///
/// If the answer does not belong to the exit.
pub fn answer(vcpu: &mut VcpuFd, reply: Reply) -> Result<(), ReplyMismatch> {
    /// Offset of the TDVMCALL's number in `KVM_EXIT_TDX`.
    const NR: usize = 40;
    let reason = vcpu.get_kvm_run().exit_reason;
    let nr = exit_bytes(vcpu)
        .get(NR..)
        .and_then(|rest| rest.first_chunk())
        .copied();
    let words = reply
        .words(reason, nr.map_or(0, u64::from_le_bytes))
        .ok_or(ReplyMismatch { reply, reason })?;
    let run: *mut kvm_run = vcpu.get_kvm_run();
    let run = run.cast::<u8>();
    for (offset, value) in words {
        debug_assert!(
            offset.saturating_add(8) <= RUN_BYTES,
            "answers lie in the union"
        );
        // SAFETY: the offsets of `Reply::words` are constants that lie, with 8 bytes behind them,
        // in the first RUN_BYTES of the mapping, so the result points into it.
        let field = unsafe { run.add(offset) };
        // SAFETY: `field` has 8 bytes of the mapping behind it, of which any bytes are a valid
        // value; it lies in the union, to which other threads have no way, and the exclusive borrow
        // of the vCPU excludes KVM_RUN.
        unsafe { field.cast::<u64>().write_unaligned(value) };
    }
    Ok(())
}
