//! What the KVM of this host can do, asked once, before anything is created.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};
use tdvmm_tdx::ioctl::permit_guest_xstate;

use super::KvmError;

/// The opened `/dev/kvm` and its limits.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    max_vcpus: u32,
    supported_cpuid: CpuidTable,
}

impl Host {
    /// Opens `/dev/kvm` and checks what every machine of this program needs.
    ///
    /// # Errors
    ///
    /// If it cannot be opened or lacks something, with the remedy.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|e| KvmError::Open {
            source: std::io::Error::from_raw_os_error(e.errno()),
        })?;
        // The version has been 12 since 2007; anything else is no KVM.
        if kvm.get_api_version() != KVM_API_VERSION.cast_signed() {
            return Err(KvmError::Lacks {
                what: "API version 12",
                remedy: "use a newer kernel",
            });
        }
        if !kvm.check_extension(Cap::SplitIrqchip) {
            return Err(KvmError::Lacks {
                what: "a split irqchip",
                remedy: "use an x86-64 kernel of version 4.4 or newer",
            });
        }
        let max_vcpus = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        permit_amx();
        // Takes the kernel 0.3 to 0.45 ms, so it is asked once.
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self {
            kvm,
            max_vcpus,
            supported_cpuid: from_kvm(&supported),
        })
    }

    /// The most vCPUs that a VM of this host can have.
    #[must_use]
    pub fn max_vcpus(&self) -> u32 {
        self.max_vcpus
    }

    /// What `KVM_GET_SUPPORTED_CPUID` says.
    #[must_use]
    pub fn supported_cpuid(&self) -> &CpuidTable {
        &self.supported_cpuid
    }

    /// Width of guest-physical addresses: CPUID 0x80000008, EAX bits 7:0; 36 where there is no such leaf.
    #[must_use]
    pub fn physical_address_bits(&self) -> u32 {
        match self.supported_cpuid.find(0x8000_0008, 0) {
            Some(leaf) => (leaf.eax & 0xff).clamp(32, 52),
            None => 36,
        }
    }

    pub(super) fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}

/// Number of the AMX tile data among the extended states.
const TILE_DATA: u32 = 18;
/// CPUID leaf 7, EDX: AMX tiles.
const AMX_TILE: u32 = 1 << 24;

/// Asks for guests' use of AMX where the processor has it. KVM leaves AMX out of `KVM_GET_SUPPORTED_CPUID` until
/// this process has the permission, so it is asked for first. Without it guests have no AMX: a TD that was told to
/// have it (`--platform xfam=`) is refused then, and nothing is amiss with any other.
fn permit_amx() {
    let has_amx = __cpuid_count(7, 0).edx & AMX_TILE != 0;
    if has_amx && let Err(error) = permit_guest_xstate(TILE_DATA) {
        log::info!("guests have no AMX: {error}");
    }
}

fn from_kvm(cpuid: &CpuId) -> CpuidTable {
    let entry = |e: &kvm_bindings::kvm_cpuid_entry2| CpuidEntry {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    };
    CpuidTable(cpuid.as_slice().iter().map(entry).collect())
}

/// The table in the form that `KVM_SET_CPUID2` takes.
///
/// # Errors
///
/// If it has more entries than KVM takes.
pub fn to_kvm(table: &CpuidTable) -> Result<CpuId, KvmError> {
    let entries: Vec<_> = table
        .0
        .iter()
        .map(|e| kvm_bindings::kvm_cpuid_entry2 {
            function: e.function,
            index: e.index,
            flags: e.flags,
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| KvmError::Lacks {
        what: "room for all CPUID entries",
        remedy: "report the host's CPUID as a defect of this program",
    })
}
