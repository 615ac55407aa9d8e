//! The kernel's TDX structures and numbers, under the kernel's own names.
//!
//! Source: `arch/x86/include/uapi/asm/kvm.h` and `include/uapi/linux/kvm.h` of Linux 7.3 (the TDX
//! part exists since 6.16). Structures that are not about TDX come from `kvm-bindings`. Each layout
//! is asserted here at compile time; `tests/abi_header.rs` compares all of it with the header that
//! a kernel installed. Two structures end in a `kvm_cpuid2`, whose entries follow the fixed part:
//! `wire` lays such buffers out.

use std::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `KVM_CREATE_VM` type of a Trust Domain.
pub const KVM_X86_TDX_VM: u64 = 5;

/// Sub-command: what KVM and the TDX module support.
pub const KVM_TDX_CAPABILITIES: u32 = 0;
/// Sub-command: create the TD with its parameters.
pub const KVM_TDX_INIT_VM: u32 = 1;
/// Sub-command: initialise a vCPU; `data` is the value of its RCX, not a pointer.
pub const KVM_TDX_INIT_VCPU: u32 = 2;
/// Sub-command, on a vCPU: copy pages into the TD and measure them where asked.
pub const KVM_TDX_INIT_MEM_REGION: u32 = 3;
/// Sub-command: close the measurement; from here the TD can run.
pub const KVM_TDX_FINALIZE_VM: u32 = 4;
/// Sub-command, on a vCPU: CPUID as the TDX module shows it to the guest.
pub const KVM_TDX_GET_CPUID: u32 = 5;
/// One past the last sub-command.
pub const KVM_TDX_CMD_NR_MAX: u32 = 6;

/// Flag of `KVM_TDX_INIT_MEM_REGION`: extend MRTD with the contents.
pub const KVM_TDX_MEASURE_MEMORY_REGION: u32 = 1 << 0;

/// Memory attribute: the range is private.
pub const KVM_MEMORY_ATTRIBUTE_PRIVATE: u64 = 1 << 3;
/// Memory slot flag: private pages come from a guest_memfd.
pub const KVM_MEM_GUEST_MEMFD: u32 = 1 << 2;
/// Flag of `KVM_EXIT_MEMORY_FAULT`: the guest meant the private page.
pub const KVM_MEMORY_EXIT_FLAG_PRIVATE: u64 = 1 << 3;

/// Exit reason: a hypercall that user space answers (MapGPA of a TD).
pub const KVM_EXIT_HYPERCALL: u32 = 3;
/// Exit reason: a system event (fatal error of a TD).
pub const KVM_EXIT_SYSTEM_EVENT: u32 = 24;
/// Exit reason: an access whose private or shared side does not fit the attribute.
pub const KVM_EXIT_MEMORY_FAULT: u32 = 39;
/// Exit reason: a TDVMCALL that user space answers.
pub const KVM_EXIT_TDX: u32 = 40;

/// TDVMCALL leaf: which optional leaves the VMM has.
pub const TDVMCALL_GET_TD_VM_CALL_INFO: u64 = 0x10000;
/// TDVMCALL leaf: turn a TDREPORT into a quote.
pub const TDVMCALL_GET_QUOTE: u64 = 0x10002;
/// TDVMCALL leaf: the interrupt vector for events of the VMM.
pub const TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 0x10004;

/// TDVMCALL status: done.
pub const TDVMCALL_STATUS_SUCCESS: u64 = 0;
/// TDVMCALL status: ask again.
pub const TDVMCALL_STATUS_RETRY: u64 = 1;
/// TDVMCALL status: an operand is not valid.
pub const TDVMCALL_STATUS_INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
/// TDVMCALL status: an address or size is not aligned.
pub const TDVMCALL_STATUS_ALIGN_ERROR: u64 = 0x8000_0000_0000_0002;
/// TDVMCALL status: the leaf is not supported.
pub const TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;

/// Hypercall number of MapGPA.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;
/// Bit of the attributes of MapGPA: to private; clear is to shared.
pub const KVM_MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;
/// Type of the system event that reports a TD's fatal error.
pub const KVM_SYSTEM_EVENT_TDX_FATAL: u32 = 7;

/// Capability: number of vCPUs; to be asked on the VM fd of a TD.
pub const KVM_CAP_MAX_VCPUS: u32 = 66;
/// Capability: I/O APIC in user space, local APICs in the kernel.
pub const KVM_CAP_SPLIT_IRQCHIP: u32 = 121;
/// Capability: 32-bit APIC ids in MSI routes.
pub const KVM_CAP_X2APIC_API: u32 = 129;
/// Capability: hypercalls that exit to user space, by bit.
pub const KVM_CAP_EXIT_HYPERCALL: u32 = 201;
/// Capability: TSC frequency for the whole VM.
pub const KVM_CAP_VM_TSC_CONTROL: u32 = 214;
/// Capability: `KVM_SET_USER_MEMORY_REGION2`.
pub const KVM_CAP_USER_MEMORY2: u32 = 231;
/// Capability: `KVM_EXIT_MEMORY_FAULT`.
pub const KVM_CAP_MEMORY_FAULT_INFO: u32 = 232;
/// Capability: `KVM_SET_MEMORY_ATTRIBUTES`.
pub const KVM_CAP_MEMORY_ATTRIBUTES: u32 = 233;
/// Capability: `KVM_CREATE_GUEST_MEMFD`.
pub const KVM_CAP_GUEST_MEMFD: u32 = 234;
/// Capability: bitmap of VM types.
pub const KVM_CAP_VM_TYPES: u32 = 235;
/// Capability: `KVM_PRE_FAULT_MEMORY`.
pub const KVM_CAP_PRE_FAULT_MEMORY: u32 = 236;
/// Capability: length of an APIC bus cycle.
pub const KVM_CAP_X86_APIC_BUS_CYCLES_NS: u32 = 237;

/// Most CPUID entries in any KVM call.
pub const KVM_MAX_CPUID_ENTRIES: usize = 256;
/// Flag of a CPUID entry: it answers for its own index only.
pub const KVM_CPUID_FLAG_SIGNIFCANT_INDEX: u32 = 1 << 0;

/// `_IOWR(KVMIO, 0xba, unsigned long)`. The size in the number is that of a pointer for historical
/// reasons; the argument of the TDX commands is a [`kvm_tdx_cmd`].
pub const KVM_MEMORY_ENCRYPT_OP: u64 = 0xc008_aeba;
/// `_IOW(KVMIO, 0x90, struct kvm_cpuid2)`.
pub const KVM_SET_CPUID2: u64 = 0x4008_ae90;
/// `_IO(KVMIO, 0xa2)`, the argument is the frequency itself.
pub const KVM_SET_TSC_KHZ: u64 = 0xaea2;
/// `_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)`.
pub const KVM_PRE_FAULT_MEMORY: u64 = 0xc040_aed5;

/// Header of every TDX command.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct kvm_tdx_cmd {
    /// Sub-command.
    pub id: u32,
    /// Flags of the sub-command, else 0.
    pub flags: u32,
    /// A pointer, or a value (`KVM_TDX_INIT_VCPU`).
    pub data: u64,
    /// In: 0, anything else is refused. Out: status of the TDX module, from commands on the VM fd.
    pub hw_error: u64,
}

/// One CPUID leaf or sub-leaf.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct kvm_cpuid_entry2 {
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
    /// [`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`].
    pub flags: u32,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
    /// Not used.
    pub padding: [u32; 3],
}

/// Header of a list of CPUID entries, which follow it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct kvm_cpuid2 {
    /// Number of entries; in calls that fill the list, its capacity.
    pub nent: u32,
    /// 0.
    pub padding: u32,
}

/// Fixed part of the answer of `KVM_TDX_CAPABILITIES`; masks of configurable CPUID bits follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct kvm_tdx_capabilities {
    /// TD attributes that both KVM and the module support.
    pub supported_attrs: u64,
    /// XFAM bits that both support.
    pub supported_xfam: u64,
    /// GetTdVmCallInfo leaf 1, R11: what the kernel answers by itself.
    pub kernel_tdvmcallinfo_1_r11: u64,
    /// GetTdVmCallInfo leaf 1, R11: what user space may answer.
    pub user_tdvmcallinfo_1_r11: u64,
    /// As above, R12.
    pub kernel_tdvmcallinfo_1_r12: u64,
    /// As above, R12.
    pub user_tdvmcallinfo_1_r12: u64,
    /// 0.
    pub reserved: [u64; 250],
    /// In: capacity; out: number of entries.
    pub cpuid: kvm_cpuid2,
}

/// Fixed part of the argument of `KVM_TDX_INIT_VM`; CPUID entries follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct kvm_tdx_init_vm {
    /// TD attributes.
    pub attributes: u64,
    /// Extended features available to the TD.
    pub xfam: u64,
    /// MRCONFIGID, 48 bytes as they are.
    pub mrconfigid: [u8; 48],
    /// MROWNER.
    pub mrowner: [u8; 48],
    /// MROWNERCONFIG.
    pub mrownerconfig: [u8; 48],
    /// 0.
    pub reserved: [u64; 12],
    /// Number of entries.
    pub cpuid: kvm_cpuid2,
}

/// Argument of `KVM_TDX_INIT_MEM_REGION`; the kernel writes the remaining work back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct kvm_tdx_init_mem_region {
    /// Host address of the first page to copy.
    pub source_addr: u64,
    /// Where it goes, without the shared bit.
    pub gpa: u64,
    /// Pages of 4 KiB.
    pub nr_pages: u64,
}

/// Argument of `KVM_PRE_FAULT_MEMORY`; the kernel writes the remaining work back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct kvm_pre_fault_memory {
    /// First address, without the shared bit.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// 0.
    pub flags: u64,
    /// 0.
    pub padding: [u64; 5],
}

const _: () = {
    assert!(size_of::<kvm_tdx_cmd>() == 24);
    assert!(offset_of!(kvm_tdx_cmd, flags) == 4);
    assert!(offset_of!(kvm_tdx_cmd, data) == 8);
    assert!(offset_of!(kvm_tdx_cmd, hw_error) == 16);

    assert!(size_of::<kvm_cpuid_entry2>() == 40);
    assert!(offset_of!(kvm_cpuid_entry2, flags) == 8);
    assert!(offset_of!(kvm_cpuid_entry2, eax) == 12);
    assert!(offset_of!(kvm_cpuid_entry2, edx) == 24);
    assert!(size_of::<kvm_cpuid2>() == 8);

    assert!(size_of::<kvm_tdx_capabilities>() == 2056);
    assert!(offset_of!(kvm_tdx_capabilities, supported_xfam) == 8);
    assert!(offset_of!(kvm_tdx_capabilities, user_tdvmcallinfo_1_r11) == 24);
    assert!(offset_of!(kvm_tdx_capabilities, reserved) == 48);
    assert!(offset_of!(kvm_tdx_capabilities, cpuid) == 2048);

    assert!(size_of::<kvm_tdx_init_vm>() == 264);
    assert!(offset_of!(kvm_tdx_init_vm, mrconfigid) == 16);
    assert!(offset_of!(kvm_tdx_init_vm, mrowner) == 64);
    assert!(offset_of!(kvm_tdx_init_vm, mrownerconfig) == 112);
    assert!(offset_of!(kvm_tdx_init_vm, reserved) == 160);
    assert!(offset_of!(kvm_tdx_init_vm, cpuid) == 256);

    assert!(size_of::<kvm_tdx_init_mem_region>() == 24);
    assert!(offset_of!(kvm_tdx_init_mem_region, gpa) == 8);
    assert!(offset_of!(kvm_tdx_init_mem_region, nr_pages) == 16);

    assert!(size_of::<kvm_pre_fault_memory>() == 64);
    assert!(offset_of!(kvm_pre_fault_memory, flags) == 16);
};
