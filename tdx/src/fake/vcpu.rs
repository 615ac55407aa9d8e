//! The vCPU descriptors of a fake TD.

use zerocopy::{FromBytes, IntoBytes};

use tdvmm_arch::cpuid::CpuidTable;

use super::kernel::{FakeKernel, Lifecycle, Payload, put};
use crate::abi::{self, kvm_cpuid2, kvm_tdx_cmd, kvm_tdx_init_mem_region};
use crate::cpuid::{gpaw_of, has_x2apic};
use crate::error::Command;
use crate::params::Xfam;
use crate::wire;

/// One vCPU.
#[derive(Debug)]
pub(super) struct VcpuState {
    id: u32,
    cpuid: CpuidTable,
    /// The value of RCX, once INIT_VCPU was called.
    rcx: Option<u64>,
    ran: bool,
}

impl VcpuState {
    pub(super) fn new(id: u32) -> Self {
        Self {
            id,
            cpuid: CpuidTable::default(),
            rcx: None,
            ran: false,
        }
    }

    pub(super) const fn id(&self) -> u32 {
        self.id
    }

    pub(super) const fn is_initialized(&self) -> bool {
        self.rcx.is_some()
    }
}

type Errno = i32;

impl FakeKernel {
    fn vcpu(&mut self, index: usize) -> Result<&mut VcpuState, Errno> {
        self.alive()?;
        self.vcpus.get_mut(index).ok_or(libc::EBADF)
    }

    /// RCX of a vCPU, once it is initialised.
    #[must_use]
    pub fn rcx(&self, index: usize) -> Option<u64> {
        self.vcpus.get(index)?.rcx
    }

    /// The table that a vCPU was given.
    #[must_use]
    pub fn vcpu_cpuid(&self, index: usize) -> Option<&CpuidTable> {
        self.vcpus.get(index).map(|vcpu| &vcpu.cpuid)
    }

    /// `arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)`; refused once there is a vCPU.
    ///
    /// # Errors
    ///
    /// The errno; so for all calls here.
    pub fn permit_xstate(&mut self) -> Result<(), Errno> {
        if !self.vcpus.is_empty() {
            return Err(libc::EBUSY);
        }
        self.host.amx_permitted = true;
        Ok(())
    }

    /// `KVM_SET_CPUID2`.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn set_cpuid(&mut self, index: usize, table: &CpuidTable) -> Result<(), Errno> {
        self.alive()?;
        self.injected(Command::SetCpuid2, &mut wire::command(0, 0, 0))?;
        let amx = Xfam::in_cpuid(table).0 & Xfam::AMX.0 != 0;
        let permitted = self.host.amx_permitted;
        let vcpu = self.vcpu(index)?;
        if table.iter().count() > abi::KVM_MAX_CPUID_ENTRIES {
            return Err(libc::E2BIG);
        }
        if vcpu.ran {
            return if vcpu.cpuid == *table {
                Ok(())
            } else {
                Err(libc::EINVAL)
            };
        }
        if amx && !permitted {
            return Err(libc::EPERM);
        }
        vcpu.cpuid = table.clone();
        Ok(())
    }

    /// `KVM_MEMORY_ENCRYPT_OP` on a vCPU. The command itself is never written back here.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn vcpu_command(
        &mut self,
        index: usize,
        cmd: kvm_tdx_cmd,
        payload: Payload<'_>,
    ) -> Result<(), Errno> {
        self.vcpu(index)?;
        if cmd.hw_error != 0 {
            return Err(libc::EINVAL);
        }
        match (cmd.id, payload) {
            (abi::KVM_TDX_INIT_VCPU, _) => self.init_vcpu(index, cmd),
            (abi::KVM_TDX_INIT_MEM_REGION, payload) => self.init_region(index, cmd, payload),
            (abi::KVM_TDX_GET_CPUID, payload) => self.get_cpuid(payload),
            _ => Err(libc::EINVAL),
        }
    }

    fn init_vcpu(&mut self, index: usize, mut cmd: kvm_tdx_cmd) -> Result<(), Errno> {
        self.injected(Command::InitVcpu, &mut cmd)?;
        let open = self.lifecycle == Lifecycle::Initialized;
        let vcpu = self.vcpu(index)?;
        if cmd.flags != 0 || !open || vcpu.is_initialized() || !has_x2apic(&vcpu.cpuid) {
            return Err(libc::EINVAL);
        }
        vcpu.rcx = Some(cmd.data);
        Ok(())
    }

    fn get_cpuid(&mut self, payload: Payload<'_>) -> Result<(), Errno> {
        self.injected(Command::GetCpuid, &mut wire::command(0, 0, 0))?;
        if self.lifecycle != Lifecycle::Initialized {
            return Err(libc::EINVAL);
        }
        let config = self.config.as_ref().ok_or(libc::EINVAL)?;
        let Payload::Words(buffer) = payload else {
            return Err(libc::EFAULT);
        };
        let (room, _) =
            kvm_cpuid2::read_from_prefix(buffer.as_bytes()).map_err(|_| libc::EFAULT)?;
        let entries: Vec<_> = config.cpuid.iter().map(wire::to_abi).collect();
        let nent = u32::try_from(entries.len()).map_err(|_| libc::EIO)?;
        let head = kvm_cpuid2 { nent, padding: 0 };
        if room.nent < nent {
            put(buffer, head.as_bytes())?;
            return Err(libc::E2BIG);
        }
        put(buffer, &[head.as_bytes(), entries.as_bytes()].concat())
    }

    fn init_region(
        &mut self,
        index: usize,
        mut cmd: kvm_tdx_cmd,
        payload: Payload<'_>,
    ) -> Result<(), Errno> {
        self.count_region_call();
        self.injected(Command::InitMemRegion, &mut cmd)?;
        let open = self.lifecycle == Lifecycle::Initialized;
        let measure = cmd.flags & abi::KVM_TDX_MEASURE_MEMORY_REGION != 0;
        let unknown = cmd.flags & !abi::KVM_TDX_MEASURE_MEMORY_REGION != 0;
        if !self.vcpu(index)?.is_initialized() || !open || unknown {
            return Err(libc::EINVAL);
        }
        let Payload::Region(region, source) = payload else {
            return Err(libc::EFAULT);
        };
        let bytes = region.nr_pages.checked_mul(4096).ok_or(libc::EINVAL)?;
        let end = region.gpa.checked_add(bytes).ok_or(libc::EINVAL)?;
        let aligned = region.gpa.is_multiple_of(4096) && region.source_addr.is_multiple_of(4096);
        if region.source_addr == 0 || !aligned || bytes == 0 || end > self.private_end() {
            return Err(libc::EINVAL);
        }
        let stop = self.faults.next_stop();
        let mut done = 0u64;
        let mut source = source;
        // The kernel writes the rest back whatever happens, so `region` is moved on page by page.
        while region.nr_pages != 0 {
            if let Some(stop) = stop.filter(|stop| stop.after == done) {
                return Err(stop.errno);
            }
            if let Some(errno) = self.faults.next_page_stop() {
                return Err(errno);
            }
            let page = source.and_then(|source| source.split_at_checked(4096));
            self.add_page(region.gpa, page.map(|(page, _)| page), measure)?;
            source = page.map(|(_, rest)| rest);
            advance(region);
            done = done.saturating_add(1);
        }
        Ok(())
    }

    /// `KVM_PRE_FAULT_MEMORY`.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn pre_fault(&mut self, index: usize, gpa: u64, size: u64) -> Result<(), Errno> {
        self.vcpu(index)?;
        if !gpa.is_multiple_of(4096) || !size.is_multiple_of(4096) || size == 0 {
            return Err(libc::EINVAL);
        }
        let end = gpa.checked_add(size).ok_or(libc::EINVAL)?;
        if self.lifecycle != Lifecycle::Runnable {
            return Err(libc::EOPNOTSUPP);
        }
        if end > self.private_end() {
            Err(libc::EINVAL)
        } else {
            Ok(())
        }
    }

    /// `KVM_RUN` with `immediate_exit`: EINTR if the vCPU could have run.
    #[expect(clippy::missing_errors_doc, reason = "as for all calls here")]
    pub fn run(&mut self, index: usize) -> Result<(), Errno> {
        let ready = self.lifecycle == Lifecycle::Runnable;
        let gpaw = self.config.as_ref().map(|config| config.gpaw);
        let vcpu = self.vcpu(index)?;
        if !ready || !vcpu.is_initialized() {
            return Err(libc::EINVAL);
        }
        vcpu.ran = true;
        // KVM_BUG_ON in tdx_load_mmu_pgd(): the vCPU's table contradicts the TD.
        if gpaw_of(&vcpu.cpuid) != gpaw {
            return Err(self.kill());
        }
        Err(libc::EINTR)
    }
}

fn advance(region: &mut kvm_tdx_init_mem_region) {
    region.source_addr = region.source_addr.wrapping_add(4096);
    region.gpa = region.gpa.wrapping_add(4096);
    region.nr_pages = region.nr_pages.saturating_sub(1);
}
