//! The seam between the order of a launch and the kernel: one method, one call, one try.
//!
//! `td` holds the order and the retries; an implementation of [`TdOps`] only marshals. The real one
//! is `ioctl::KvmTd`; `fake::FakeTd` follows the kernel's rules without a kernel.

use tdvmm_arch::addr::{Gpa, GpaRange, VcpuId};
use tdvmm_arch::cpuid::CpuidTable;

use crate::caps::Capabilities;
use crate::error::CallError;
use crate::log::Measure;
use crate::pages::PageSource;
use crate::params::{TdParams, TscFrequency};

/// A setting of the VM that must be made before its first vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmSetting {
    /// Local APICs in the kernel and an I/O APIC with this many pins in user space. Without it a TD
    /// gets no vCPU.
    SplitIrqchip(u32),
    /// Length of an APIC bus cycle. A TD's CPUID says 25 MHz, KVM's default is 1 GHz: with it the
    /// guest's timers would run 40 times too fast, and no call would fail.
    ApicBusCycleNs(u64),
    /// MapGPA exits to user space. Without it the guest's conversions fail.
    MapGpaExits,
    /// 32-bit APIC ids in MSI routes: for more than 255 vCPUs.
    X2apicIds,
    /// TSC frequency of the TD; it is fixed at INIT_VM.
    Tsc(TscFrequency),
}

/// How far a try of INIT_MEM_REGION got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All pages are in.
    Done,
    /// The kernel stopped early, and is to be called again with the rest.
    Stopped {
        /// Pages that are in, counted from the start of this try.
        pages: u64,
    },
    /// What the kernel wrote back does not follow from what it was given.
    Inconsistent,
}

/// The calls of a launch.
pub trait TdOps {
    /// A vCPU.
    type Vcpu: Send;

    /// Makes a setting.
    ///
    /// # Errors
    ///
    /// The failed call; so for all methods.
    fn set(&self, setting: VmSetting) -> Result<(), CallError>;

    /// Most vCPUs of this VM (`KVM_CAP_MAX_VCPUS` on the VM fd; `/dev/kvm` says too much).
    fn max_vcpus(&self) -> u32;

    /// `KVM_TDX_CAPABILITIES` with room for `capacity` CPUID entries; `E2BIG` if that is too few.
    fn capabilities(&self, capacity: usize) -> Result<Capabilities, CallError>;

    /// Lets guests of this process use a component of the extended state (AMX); once per process,
    /// before the first vCPU.
    fn permit_xstate(&self, component: u32) -> Result<(), CallError>;

    /// `KVM_TDX_INIT_VM`.
    fn init_vm(&self, params: &TdParams) -> Result<(), CallError>;

    /// `KVM_CREATE_VCPU`.
    fn create_vcpu(&self, id: VcpuId) -> Result<Self::Vcpu, CallError>;

    /// `KVM_TDX_GET_CPUID` with room for `capacity` entries; `E2BIG` if that is too few.
    fn td_cpuid(&self, vcpu: &Self::Vcpu, capacity: usize) -> Result<CpuidTable, CallError>;

    /// `KVM_SET_CPUID2`.
    fn set_cpuid(&self, vcpu: &Self::Vcpu, table: &CpuidTable) -> Result<(), CallError>;

    /// `KVM_TDX_INIT_VCPU`: `rcx` is the *value* that the vCPU starts with in RCX.
    fn init_vcpu(&self, vcpu: &Self::Vcpu, rcx: Gpa) -> Result<(), CallError>;

    /// `KVM_SET_MEMORY_ATTRIBUTES`: private.
    fn set_private(&self, range: GpaRange) -> Result<(), CallError>;

    /// `KVM_TDX_INIT_MEM_REGION`: one try.
    fn init_mem_region(
        &self,
        vcpu: &Self::Vcpu,
        source: PageSource<'_>,
        at: GpaRange,
        measure: Measure,
    ) -> Result<Progress, CallError>;

    /// `KVM_TDX_FINALIZE_VM`.
    fn finalize(&self) -> Result<(), CallError>;
}
