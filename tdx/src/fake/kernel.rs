//! The VM descriptor of a fake TD: settings, commands, slots and attributes.
//!
//! Each check stands in the order in which `arch/x86/kvm/vmx/tdx.c` makes it, since the order
//! decides which errno wins.

use tdvmm_arch::addr::Gpa;
use tdvmm_arch::cpuid::CpuidTable;
use zerocopy::{FromBytes, IntoBytes};

use super::faults::Faults;
use super::host::FakeHost;
use super::memory::Memory;
use super::vcpu::VcpuState;
use crate::abi::{self, kvm_tdx_cmd, kvm_tdx_init_mem_region};
use crate::error::Command;
use crate::pages::Digest;
use crate::params::Gpaw;
use crate::status::TdxStatus;
use crate::wire;

/// What `kvm_tdx_cmd.data` points at.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Nothing that can be read.
    Unmapped,
    /// A buffer of `wire`.
    Words(&'a mut [u64]),
    /// A region, and the memory at its `source_addr`; `None` if that cannot be read.
    Region(&'a mut kvm_tdx_init_mem_region, Option<&'a [u8]>),
}

/// Where the TD is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Before INIT_VM.
    Uninitialized,
    /// After INIT_VM.
    Initialized,
    /// After FINALIZE_VM.
    Runnable,
}

/// What INIT_VM fixed.
#[derive(Clone, Debug)]
pub(super) struct TdConfig {
    pub(super) gpaw: Gpaw,
    pub(super) cpuid: CpuidTable,
}

/// One VM of type TDX. Errors are errnos.
#[derive(Debug)]
pub struct FakeKernel {
    pub(super) host: FakeHost,
    /// What is to go wrong.
    pub faults: Faults,
    pub(super) lifecycle: Lifecycle,
    pub(super) config: Option<TdConfig>,
    pub(super) vcpus: Vec<VcpuState>,
    split_irqchip: bool,
    map_gpa_exits: bool,
    pub(super) memory: Memory,
    /// After a failure that leaves the TD in an unknown state, everything fails with EIO.
    dead: bool,
    /// INIT_MEM_REGION calls that reached the kernel.
    region_calls: u64,
}

type Errno = i32;

impl FakeKernel {
    /// A VM on `host`. Every private address has a slot until [`FakeKernel::add_slot`] is called.
    #[must_use]
    pub fn new(host: FakeHost) -> Self {
        Self {
            host,
            faults: Faults::default(),
            lifecycle: Lifecycle::Uninitialized,
            config: None,
            vcpus: Vec::new(),
            split_irqchip: false,
            map_gpa_exits: false,
            memory: Memory::default(),
            dead: false,
            region_calls: 0,
        }
    }

    /// Where the TD is in its life.
    #[must_use]
    pub const fn lifecycle(&self) -> Lifecycle {
        self.lifecycle
    }

    /// Whether a failure has killed the VM.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        self.dead
    }

    /// MRTD: final after FINALIZE_VM.
    #[must_use]
    pub fn mrtd(&self) -> Digest {
        self.memory.mrtd()
    }

    /// The pages that were added, in order, and whether each was measured.
    #[must_use]
    pub fn added(&self) -> &[(Gpa, bool)] {
        self.memory.added()
    }

    /// Whether MapGPA would reach user space.
    #[must_use]
    pub const fn has_map_gpa_exits(&self) -> bool {
        self.map_gpa_exits
    }

    /// INIT_MEM_REGION calls that reached the kernel.
    #[must_use]
    pub const fn region_calls(&self) -> u64 {
        self.region_calls
    }

    /// Most vCPUs (`KVM_CHECK_EXTENSION` on the VM descriptor).
    #[must_use]
    pub const fn max_vcpus(&self) -> u32 {
        self.host.max_vcpus
    }

    pub(super) fn kill(&mut self) -> Errno {
        self.dead = true;
        libc::EIO
    }

    pub(super) fn alive(&self) -> Result<(), Errno> {
        if self.dead { Err(libc::EIO) } else { Ok(()) }
    }

    /// An injected failure: the errno, with the module's status in `cmd`.
    pub(super) fn injected(
        &mut self,
        command: Command,
        cmd: &mut kvm_tdx_cmd,
    ) -> Result<(), Errno> {
        let Some(fault) = self.faults.next_fault(command) else {
            return Ok(());
        };
        cmd.hw_error = fault.hw_error;
        if fault.errno == libc::EIO {
            self.dead = true;
        }
        Err(fault.errno)
    }

    /// `KVM_ENABLE_CAP` on the VM.
    ///
    /// # Errors
    ///
    /// The errno; so for all calls here.
    pub fn enable_cap(&mut self, cap: u32, arg: u64) -> Result<(), Errno> {
        self.alive()?;
        match cap {
            abi::KVM_CAP_SPLIT_IRQCHIP if self.split_irqchip || !self.vcpus.is_empty() => {
                Err(libc::EEXIST)
            }
            abi::KVM_CAP_SPLIT_IRQCHIP => {
                self.split_irqchip = true;
                Ok(())
            }
            abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS if arg == 0 => Err(libc::EINVAL),
            abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS if !self.split_irqchip => Err(libc::ENXIO),
            abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS if !self.vcpus.is_empty() => Err(libc::EINVAL),
            abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS | abi::KVM_CAP_X2APIC_API => Ok(()),
            abi::KVM_CAP_EXIT_HYPERCALL if arg & !(1 << abi::KVM_HC_MAP_GPA_RANGE) == 0 => {
                self.map_gpa_exits = arg != 0;
                Ok(())
            }
            _ => Err(libc::EINVAL),
        }
    }

    /// `KVM_SET_TSC_KHZ` on the VM.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn set_tsc_khz(&mut self, khz: u32) -> Result<(), Errno> {
        self.alive()?;
        if !self.vcpus.is_empty() {
            return Err(libc::EINVAL);
        }
        self.host.tsc_khz = khz;
        Ok(())
    }

    /// `KVM_MEMORY_ENCRYPT_OP` on the VM.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn vm_command(&mut self, cmd: &mut kvm_tdx_cmd, payload: Payload<'_>) -> Result<(), Errno> {
        self.alive()?;
        if cmd.hw_error != 0 {
            return Err(libc::EINVAL);
        }
        match (cmd.id, payload) {
            (abi::KVM_TDX_CAPABILITIES, payload) => self.capabilities(cmd, payload),
            (abi::KVM_TDX_INIT_VM, payload) => self.init_vm(cmd, payload),
            (abi::KVM_TDX_FINALIZE_VM, _) => self.finalize(cmd),
            _ => Err(libc::EINVAL),
        }
    }

    fn capabilities(&mut self, cmd: &mut kvm_tdx_cmd, payload: Payload<'_>) -> Result<(), Errno> {
        self.injected(Command::Capabilities, cmd)?;
        if cmd.flags != 0 {
            return Err(libc::EINVAL);
        }
        let Payload::Words(buffer) = payload else {
            return Err(libc::EFAULT);
        };
        let caps = &self.host.capabilities;
        let (mut head, _) = abi::kvm_tdx_capabilities::read_from_prefix(buffer.as_bytes())
            .map_err(|_| libc::EFAULT)?;
        let entries: Vec<_> = caps.cpuid.iter().map(wire::to_abi).collect();
        let count = u32::try_from(entries.len()).map_err(|_| libc::EIO)?;
        if head.cpuid.nent < count {
            return Err(libc::E2BIG);
        }
        head.supported_attrs = caps.attributes.0;
        head.supported_xfam = caps.xfam.0;
        head.kernel_tdvmcallinfo_1_r11 = caps.kernel_r11;
        head.user_tdvmcallinfo_1_r11 = caps.user_r11;
        head.kernel_tdvmcallinfo_1_r12 = caps.kernel_r12;
        head.user_tdvmcallinfo_1_r12 = caps.user_r12;
        head.cpuid.nent = count;
        put(buffer, &[head.as_bytes(), entries.as_bytes()].concat())
    }

    fn finalize(&mut self, cmd: &mut kvm_tdx_cmd) -> Result<(), Errno> {
        self.injected(Command::FinalizeVm, cmd)?;
        if self.lifecycle != Lifecycle::Initialized {
            return Err(libc::EINVAL);
        }
        if !self.vcpus.iter().any(VcpuState::is_initialized) {
            cmd.hw_error = u64::from(TdxStatus::NO_VCPUS) << 32;
            return Err(self.kill());
        }
        self.lifecycle = Lifecycle::Runnable;
        Ok(())
    }

    /// `KVM_CREATE_VCPU`: the vCPU's index in the order of creation.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn create_vcpu(&mut self, id: u32) -> Result<usize, Errno> {
        self.alive()?;
        self.injected(Command::CreateVcpu, &mut wire::command(0, 0, 0))?;
        let full = self.vcpus.len() >= usize::try_from(self.host.max_vcpus).unwrap_or(usize::MAX);
        if full || id >= 4096 {
            return Err(libc::EINVAL);
        }
        if self.lifecycle != Lifecycle::Initialized {
            return Err(libc::EIO);
        }
        if !self.split_irqchip {
            return Err(libc::EINVAL);
        }
        if self.vcpus.iter().any(|vcpu| vcpu.id() == id) {
            return Err(libc::EEXIST);
        }
        self.vcpus.push(VcpuState::new(id));
        Ok(self.vcpus.len().saturating_sub(1))
    }

    pub(super) fn private_end(&self) -> u64 {
        self.config
            .as_ref()
            .map_or(Gpaw::Bits52, |config| config.gpaw)
            .shared_bit()
    }

    pub(super) fn count_region_call(&mut self) {
        self.region_calls = self.region_calls.saturating_add(1);
    }
}

/// Copies bytes to the start of a buffer of words.
pub(super) fn put(buffer: &mut [u64], bytes: &[u8]) -> Result<(), Errno> {
    buffer
        .as_mut_bytes()
        .get_mut(..bytes.len())
        .map(|target| target.copy_from_slice(bytes))
        .ok_or(libc::EFAULT)
}
