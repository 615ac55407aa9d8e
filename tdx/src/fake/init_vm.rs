//! INIT_VM of a fake TD: what KVM refuses, and what the module behind it refuses.

use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};
use zerocopy::{FromBytes, IntoBytes};

use super::host::td_cpuid;
use super::kernel::{FakeKernel, Lifecycle, Payload, TdConfig};
use crate::abi::{self, kvm_tdx_cmd, kvm_tdx_init_vm};
use crate::cpuid::gpaw_of;
use crate::error::Command;
use crate::params::{Gpaw, Xfam, has_sub_leaves};
use crate::status::TdxStatus;
use crate::wire;

type Errno = i32;

impl FakeKernel {
    pub(super) fn init_vm(
        &mut self,
        cmd: &mut kvm_tdx_cmd,
        payload: Payload<'_>,
    ) -> Result<(), Errno> {
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
        let outside = |entry: &CpuidEntry| {
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
        found.push(CpuidEntry {
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
