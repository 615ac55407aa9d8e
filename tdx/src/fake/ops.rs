//! The fake kernel behind the seam of the launch.

use std::sync::{Arc, Mutex, MutexGuard};

use tdvmm_arch::addr::{Gpa, GpaRange, PAGE_SIZE, VcpuId};
use tdvmm_arch::cpuid::CpuidTable;

use super::host::FakeHost;
use super::kernel::{FakeKernel, Payload};
use crate::abi;
use crate::caps::Capabilities;
use crate::error::{CallError, Command};
use crate::log::Measure;
use crate::ops::{Progress, TdOps, VmSetting};
use crate::pages::PageSource;
use crate::params::{TdParams, TscFrequency};
use crate::wire;

/// A TD of a fake kernel. Clones are the same TD, so a test keeps one to look inside.
#[derive(Clone, Debug)]
pub struct FakeTd(Arc<Mutex<FakeKernel>>);

/// A vCPU of a fake TD.
#[derive(Debug)]
pub struct FakeVcpu(usize);

impl FakeTd {
    /// A TD on `host`.
    #[must_use]
    pub fn new(host: FakeHost) -> Self {
        Self(Arc::new(Mutex::new(FakeKernel::new(host))))
    }

    /// The kernel's side, to look at and to plan failures.
    ///
    /// # Panics
    ///
    /// If a test panicked while it held the guard.
    pub fn kernel(&self) -> MutexGuard<'_, FakeKernel> {
        self.0
            .lock()
            .expect("no test panics while it looks at the kernel")
    }
}

impl Default for FakeTd {
    fn default() -> Self {
        Self::new(FakeHost::default())
    }
}

impl FakeVcpu {
    /// Its place in the order of creation.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.0
    }
}

fn call<T>(command: Command, result: Result<T, i32>) -> Result<T, CallError> {
    result.map_err(|errno| CallError::new(command, errno, 0))
}

impl TdOps for FakeTd {
    type Vcpu = FakeVcpu;

    fn set(&self, setting: VmSetting) -> Result<(), CallError> {
        let mut kernel = self.kernel();
        let (command, cap, arg) = match setting {
            VmSetting::SplitIrqchip(pins) => (
                Command::EnableSplitIrqchip,
                abi::KVM_CAP_SPLIT_IRQCHIP,
                u64::from(pins),
            ),
            VmSetting::ApicBusCycleNs(ns) => (
                Command::EnableApicBusCycles,
                abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS,
                ns,
            ),
            VmSetting::MapGpaExits => (
                Command::EnableExitHypercall,
                abi::KVM_CAP_EXIT_HYPERCALL,
                1 << abi::KVM_HC_MAP_GPA_RANGE,
            ),
            VmSetting::X2apicIds => (Command::EnableX2apicApi, abi::KVM_CAP_X2APIC_API, 1),
            VmSetting::Tsc(tsc) => {
                return call(
                    Command::SetTscKhz,
                    kernel.set_tsc_khz(TscFrequency::khz(tsc)),
                );
            }
        };
        call(command, kernel.enable_cap(cap, arg))
    }

    fn max_vcpus(&self) -> u32 {
        self.kernel().max_vcpus()
    }

    fn capabilities(&self, capacity: usize) -> Result<Capabilities, CallError> {
        let mut buffer = wire::capabilities_buffer(capacity);
        let mut cmd = wire::command(abi::KVM_TDX_CAPABILITIES, 0, 0);
        let result = self
            .kernel()
            .vm_command(&mut cmd, Payload::Words(&mut buffer));
        let error = |errno| CallError::new(Command::Capabilities, errno, cmd.hw_error);
        result.map_err(error)?;
        wire::parse_capabilities(&buffer).ok_or_else(|| error(libc::EFAULT))
    }

    fn permit_xstate(&self, _component: u32) -> Result<(), CallError> {
        call(Command::PermitXstate, self.kernel().permit_xstate())
    }

    fn init_vm(&self, params: &TdParams) -> Result<(), CallError> {
        let mut buffer = wire::init_vm_buffer(params);
        let mut cmd = wire::command(abi::KVM_TDX_INIT_VM, 0, 0);
        self.kernel()
            .vm_command(&mut cmd, Payload::Words(&mut buffer))
            .map_err(|errno| CallError::new(Command::InitVm, errno, cmd.hw_error))
    }

    fn create_vcpu(&self, id: VcpuId) -> Result<FakeVcpu, CallError> {
        call(Command::CreateVcpu, self.kernel().create_vcpu(id.0)).map(FakeVcpu)
    }

    fn td_cpuid(&self, vcpu: &FakeVcpu, capacity: usize) -> Result<CpuidTable, CallError> {
        let mut buffer = wire::empty_cpuid_buffer(capacity);
        let cmd = wire::command(abi::KVM_TDX_GET_CPUID, 0, 0);
        let result = self
            .kernel()
            .vcpu_command(vcpu.0, cmd, Payload::Words(&mut buffer));
        call(Command::GetCpuid, result)?;
        wire::parse_cpuid(&buffer).ok_or_else(|| CallError::new(Command::GetCpuid, libc::EFAULT, 0))
    }

    fn set_cpuid(&self, vcpu: &FakeVcpu, table: &CpuidTable) -> Result<(), CallError> {
        call(Command::SetCpuid2, self.kernel().set_cpuid(vcpu.0, table))
    }

    fn init_vcpu(&self, vcpu: &FakeVcpu, rcx: Gpa) -> Result<(), CallError> {
        let cmd = wire::command(abi::KVM_TDX_INIT_VCPU, 0, rcx.0);
        call(
            Command::InitVcpu,
            self.kernel().vcpu_command(vcpu.0, cmd, Payload::Unmapped),
        )
    }

    fn set_private(&self, range: GpaRange) -> Result<(), CallError> {
        let attributes = abi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
        let result = self
            .kernel()
            .set_attributes(range.start().0, range.len(), attributes, 0);
        call(Command::SetMemoryAttributes, result)
    }

    fn init_mem_region(
        &self,
        vcpu: &FakeVcpu,
        source: PageSource<'_>,
        at: GpaRange,
        measure: Measure,
    ) -> Result<Progress, CallError> {
        let before = wire::mem_region(source, at);
        let mut region = before;
        let cmd = wire::mem_region_command(measure, 0);
        let result = self.kernel().vcpu_command(
            vcpu.0,
            cmd,
            Payload::Region(&mut region, Some(source.bytes())),
        );
        wire::progress(&before, &region, result)
    }

    fn finalize(&self) -> Result<(), CallError> {
        let mut cmd = wire::command(abi::KVM_TDX_FINALIZE_VM, 0, 0);
        self.kernel()
            .vm_command(&mut cmd, Payload::Unmapped)
            .map_err(|errno| CallError::new(Command::FinalizeVm, errno, cmd.hw_error))
    }
}

const _: () = assert!(PAGE_SIZE == 4096);
