//! The VM descriptor of a fake TD: settings, commands, slots and attributes.
//!
//! Each check stands in the order in which `arch/x86/kvm/vmx/tdx.c` makes it, since the order
//! decides which errno wins.

use std::collections::BTreeSet;

use tdvmm_arch::addr::{Gpa, GpaRange, PAGE_SIZE};
use tdvmm_arch::cpuid::CpuidTable;
use zerocopy::{FromBytes, IntoBytes};

use super::faults::Faults;
use super::host::{FakeHost, td_cpuid};
use super::mrtd::MrtdWitness;
use super::vcpu::VcpuState;
use crate::abi::{self, kvm_tdx_cmd, kvm_tdx_init_mem_region, kvm_tdx_init_vm};
use crate::cpuid::gpaw_of;
use crate::error::Command;
use crate::pages::Digest;
use crate::params::{Gpaw, Xfam, has_sub_leaves};
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

/// A memory slot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    id: u32,
    range: GpaRange,
    private: bool,
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
    pub(super) map_gpa_exits: bool,
    /// `None`: every private address has a slot.
    slots: Option<Vec<Slot>>,
    private: BTreeSet<u64>,
    /// Pages that are mapped in the TD.
    mapped: BTreeSet<u64>,
    /// Pages in the order in which they were added, and whether they were measured.
    added: Vec<(Gpa, bool)>,
    mrtd: MrtdWitness,
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
            slots: None,
            private: BTreeSet::new(),
            mapped: BTreeSet::new(),
            added: Vec::new(),
            mrtd: MrtdWitness::default(),
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
        self.mrtd.value()
    }

    /// The pages that were added, in order, and whether each was measured.
    #[must_use]
    pub fn added(&self) -> &[(Gpa, bool)] {
        &self.added
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

    fn init_vm(&mut self, cmd: &mut kvm_tdx_cmd, payload: Payload<'_>) -> Result<(), Errno> {
        self.injected(Command::InitVm, cmd)?;
        if self.lifecycle != Lifecycle::Uninitialized || cmd.flags != 0 {
            return Err(libc::EINVAL);
        }
        let Payload::Words(buffer) = payload else {
            return Err(libc::EFAULT);
        };
        let (head, _) =
            kvm_tdx_init_vm::read_from_prefix(buffer.as_bytes()).map_err(|_| libc::EFAULT)?;
        let nent = usize::try_from(head.cpuid.nent).map_err(|_| libc::E2BIG)?;
        if nent > abi::KVM_MAX_CPUID_ENTRIES {
            return Err(libc::E2BIG);
        }
        if head.reserved.iter().any(|word| *word != 0) || head.cpuid.padding != 0 {
            return Err(libc::EINVAL);
        }
        if !self.vcpus.is_empty() {
            return Err(libc::EBUSY);
        }
        // The header of the list is the last word of the fixed part.
        let list = buffer.get(256 / 8..).ok_or(libc::EFAULT)?;
        let wanted = wire::parse_cpuid(list).filter(|table| table.iter().count() == nent);
        let wanted = wanted.ok_or(libc::EFAULT)?;
        let caps = &self.host.capabilities;
        if head.attributes & !caps.attributes.0 != 0 {
            return Err(libc::EINVAL);
        }
        if head.xfam & !(caps.xfam.0 | Xfam::LEGACY.0) != 0 {
            return Err(libc::EINVAL);
        }
        let gpaw = gpaw_of(&wanted).ok_or(libc::EINVAL)?;
        if gpaw == Gpaw::Bits52 && !self.host.five_level_ept {
            return Err(libc::EINVAL);
        }
        let configured = configure(&wanted, &caps.cpuid)?;
        if self.host.key_ids == 0 {
            return Err(libc::ENOSPC);
        }
        let refused = self.module_refusal(&configured, head.xfam);
        if let Some(operand) = refused {
            cmd.hw_error = u64::from(TdxStatus::OPERAND_INVALID) << 32 | operand;
            return Err(libc::EINVAL);
        }
        self.host.key_ids = self.host.key_ids.saturating_sub(1);
        let xfam = Xfam(head.xfam | Xfam::LEGACY.0);
        let shown = td_cpuid(&configured, xfam, gpaw, self.host.tsc_khz);
        self.config = Some(TdConfig { gpaw, cpuid: shown });
        self.lifecycle = Lifecycle::Initialized;
        Ok(())
    }

    /// What `TDH.MNG.INIT` refuses: the number of the operand.
    fn module_refusal(&self, configured: &CpuidTable, xfam: u64) -> Option<u64> {
        let xfam = Xfam(xfam | Xfam::LEGACY.0);
        if xfam.whole_groups() != xfam {
            return Some(65);
        }
        let outside = |entry: &tdvmm_arch::cpuid::CpuidEntry| {
            let mask = self.host.capabilities.mask(entry.function, entry.index);
            let Some(mask) = mask else { return true };
            // KVM clears the GPAW before the module sees the leaf.
            let eax = if entry.function == 0x8000_0008 {
                entry.eax & !0x00ff_0000
            } else {
                entry.eax
            };
            eax & !mask.eax | entry.ebx & !mask.ebx | entry.ecx & !mask.ecx | entry.edx & !mask.edx
                != 0
        };
        if configured.iter().any(outside) {
            return Some(69);
        }
        let units = self.host.tsc_khz.checked_div(25_000).unwrap_or(0);
        (!(4..=400).contains(&units)).then_some(70)
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

    /// `KVM_CREATE_GUEST_MEMFD` and `KVM_SET_USER_MEMORY_REGION2` together.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn add_slot(&mut self, id: u32, range: GpaRange, flags: u32) -> Result<(), Errno> {
        self.alive()?;
        let allowed = abi::KVM_MEM_GUEST_MEMFD | 1;
        let private = flags & abi::KVM_MEM_GUEST_MEMFD != 0;
        // Dirty logging (1) goes with shared memory only, read-only (2) with no TD; the upper half
        // of the number is the address space, of which a TD has one.
        if flags & !allowed != 0 || (private && flags & 1 != 0) || id > 0xffff {
            return Err(libc::EINVAL);
        }
        if range.is_empty() || !range.is_aligned(PAGE_SIZE) || range.end().0 > self.private_end() {
            return Err(libc::EINVAL);
        }
        let slots = self.slots.get_or_insert_default();
        slots.retain(|slot| slot.id != id);
        if slots.iter().any(|slot| slot.range.overlaps(range)) {
            return Err(libc::EEXIST);
        }
        slots.push(Slot { id, range, private });
        Ok(())
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn set_attributes(
        &mut self,
        gpa: u64,
        size: u64,
        attributes: u64,
        flags: u64,
    ) -> Result<(), Errno> {
        self.alive()?;
        self.injected(Command::SetMemoryAttributes, &mut wire::command(0, 0, 0))?;
        let range = GpaRange::from_len(Gpa(gpa), size).ok_or(libc::EINVAL)?;
        let unknown = attributes & !abi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
        if flags != 0 || unknown != 0 || range.is_empty() || !range.is_aligned(PAGE_SIZE) {
            return Err(libc::EINVAL);
        }
        for page in pages(range) {
            if attributes == 0 {
                self.private.remove(&page);
                // A page that leaves the private side is gone, though not from MRTD.
                self.mapped.remove(&page);
            } else {
                self.private.insert(page);
            }
        }
        Ok(())
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

    /// Adds one page: slot, attribute, source, in the order of `kvm_gmem_populate`.
    pub(super) fn add_page(
        &mut self,
        gpa: u64,
        content: Option<&[u8]>,
        measure: bool,
    ) -> Result<(), Errno> {
        let backed = self.slots.as_ref().is_none_or(|slots| {
            slots
                .iter()
                .any(|slot| slot.private && slot.range.contains(Gpa(gpa)))
        });
        if !backed || !self.private.contains(&gpa) {
            return Err(libc::EINVAL);
        }
        let content = content.ok_or(libc::EFAULT)?;
        if !self.mapped.insert(gpa) {
            return Err(self.kill());
        }
        self.mrtd.page_add(gpa);
        if measure {
            self.mrtd.extend_page(gpa, content);
        }
        self.added.push((Gpa(gpa), measure));
        Ok(())
    }
}

/// The values that reach the module: each configurable leaf is looked up, and every entry of the
/// list must have been found once (`setup_tdparams_cpuids`).
fn configure(wanted: &CpuidTable, masks: &CpuidTable) -> Result<CpuidTable, Errno> {
    let mut found = Vec::new();
    for mask in masks.iter() {
        let Some(value) = wanted.find(mask.function, mask.index) else {
            continue;
        };
        let tsx = mask.function == 7 && mask.index == 0;
        if tsx && (value.ebx & (1 << 4 | 1 << 11) != 0 || value.ecx & 1 << 5 != 0) {
            return Err(libc::EINVAL);
        }
        let flags = u32::from(has_sub_leaves(mask.function));
        found.push(tdvmm_arch::cpuid::CpuidEntry {
            index: mask.index,
            flags,
            ..*value
        });
    }
    if found.len() == wanted.iter().count() {
        Ok(CpuidTable(found))
    } else {
        Err(libc::EINVAL)
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

pub(super) fn pages(range: GpaRange) -> impl Iterator<Item = u64> {
    (range.start().0..range.end().0).step_by(4096)
}
