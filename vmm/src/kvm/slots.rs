//! Memory slots: which host memory backs which guest-physical addresses.

#![expect(
    unsafe_code,
    reason = "slots and madvise give the kernel host addresses"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes,
    kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_ioctls::VmFd;
use tdvmm_arch::addr::PAGE_SIZE;
use tdvmm_arch::{Gpa, GpaRange};
use tdvmm_tdx::exit::Visibility;
use tdvmm_tdx::ioctl::create_guest_memfd;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::KvmError;
use crate::memory::convert::Backings;
use crate::memory::prefault::Worker;

/// The right to add memory to one VM. It keeps what it added mapped for as long as the VM lives.
#[derive(Debug)]
pub struct MemorySlots {
    vm: Arc<VmFd>,
    backing: Vec<GuestMemoryMmap>,
    next: u32,
}

impl MemorySlots {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            backing: Vec::new(),
            next: 0,
        }
    }

    /// Adds every region of `memory` to the guest.
    ///
    /// # Errors
    ///
    /// If KVM refuses one: too large for the host's physical addresses, or overlapping another.
    pub fn add(&mut self, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
        // Kept from here on, so that a slot never outlives its memory, even when a later one fails.
        self.backing.push(memory.clone());
        for region in memory.iter() {
            let slot = kvm_userspace_memory_region {
                slot: self.next,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: `userspace_addr` and `memory_size` are the bounds of a mapping that `backing` keeps
            // for as long as this object lives, and only vCPU threads let a guest use it, whose owner
            // (`VcpuThreads`) joins them before it drops this object. Guest memory is only reached through
            // volatile accesses, so the guest may write to it at any time. Slot numbers are not used twice,
            // so no slot in use is replaced.
            unsafe { self.vm.set_user_memory_region(slot) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
            self.next += 1;
        }
        Ok(())
    }

    /// Has the host use large pages for all memory of an ordinary VM, where it has any.
    pub fn prefer_large_pages(&self) {
        for region in self.backing.iter().flat_map(GuestMemoryMmap::iter) {
            let len = usize::try_from(region.len()).unwrap_or(0);
            // A host without large pages says EINVAL, and gives small ones.
            let _ = advise(region, 0, len, Advice::Large);
        }
    }

    /// Adds every region of `memory` to a TD, each with guest_memfd for its private side, and makes all of
    /// it private.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn add_td(&mut self, memory: &GuestMemoryMmap) -> Result<TdBackings, KvmError> {
        self.backing.push(memory.clone());
        let mut parts = Vec::new();
        for region in memory.iter() {
            let failed = |call| move |source| KvmError::Call { call, source };
            // A large page for one shared page would hold the memory of its private neighbours a second time.
            // Where the host has no large pages at all this is refused, which is as well.
            let len = usize::try_from(region.len()).unwrap_or(0);
            let _ = advise(region, 0, len, Advice::NoLarge);
            let private = create_guest_memfd(&self.vm, region.len())
                .map(File::from)
                .map_err(failed("KVM_CREATE_GUEST_MEMFD"))?;
            let range =
                GpaRange::from_len(Gpa(region.start_addr().0), region.len()).unwrap_or_default();
            let slot = kvm_userspace_memory_region2 {
                slot: self.next,
                flags: KVM_MEM_GUEST_MEMFD,
                guest_phys_addr: range.start().0,
                memory_size: range.len(),
                userspace_addr: region.as_ptr() as u64,
                guest_memfd_offset: 0,
                guest_memfd: private.as_raw_fd().cast_unsigned(),
                ..Default::default()
            };
            // SAFETY: as in `add`; the guest_memfd has the slot's size, and KVM keeps a reference to it.
            unsafe { self.vm.set_user_memory_region2(slot) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION2"))?;
            self.next += 1;
            parts.push(TdRange { range, private });
        }
        let backings = TdBackings {
            vm: Arc::clone(&self.vm),
            shared: memory.clone(),
            parts,
        };
        for part in &backings.parts {
            backings
                .set_visibility(part.range, Visibility::Private)
                .map_err(|source| KvmError::Call {
                    call: "KVM_SET_MEMORY_ATTRIBUTES",
                    source,
                })?;
        }
        Ok(backings)
    }
}

/// Refuses a host that cannot provide memory of an ordinary VM in advance: it provides one page of its own.
///
/// # Errors
///
/// The host's; EINVAL before Linux 5.14.
pub fn check_prefault() -> io::Result<()> {
    let len = usize::try_from(PAGE_SIZE).unwrap_or(0);
    let page = MmapRegion::new(len)
        .map_err(io::Error::other)
        .and_then(|page| {
            GuestRegionMmap::new(page, GuestAddress(0))
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
        })?;
    advise(&page, 0, len, Advice::Populate)
}

/// Provides memory of an ordinary VM.
#[derive(Debug)]
pub struct OrdinaryMemory<'a>(pub &'a MemorySlots);

impl Worker for OrdinaryMemory<'_> {
    fn provide(&mut self, piece: GpaRange) -> io::Result<()> {
        let memory = self.0.backing.iter().find_map(|memory| part(memory, piece));
        let (region, offset, len) =
            memory.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        advise(region, offset, len, Advice::Populate)
    }
}

/// Both sides of a TD's memory.
#[derive(Debug)]
pub struct TdBackings {
    vm: Arc<VmFd>,
    shared: GuestMemoryMmap,
    parts: Vec<TdRange>,
}

#[derive(Debug)]
struct TdRange {
    range: GpaRange,
    /// The guest_memfd of the range, from its start.
    private: File,
}

impl TdBackings {
    fn part(&self, range: GpaRange) -> io::Result<&TdRange> {
        let part = self
            .parts
            .iter()
            .find(|part| part.range.contains_range(range));
        part.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }

    fn region(&self, range: GpaRange) -> io::Result<(&GuestRegionMmap, usize, usize)> {
        part(&self.shared, range).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

/// The region that holds `range`, with offset and length of it there.
fn part(memory: &GuestMemoryMmap, range: GpaRange) -> Option<(&GuestRegionMmap, usize, usize)> {
    let region = memory.find_region(GuestAddress(range.start().0))?;
    let offset = range.start().0 - region.start_addr().0;
    let len = usize::try_from(range.len()).ok()?;
    let fits = range.len() <= region.len() - offset;
    Some((region, usize::try_from(offset).ok()?, len)).filter(|_| fits)
}

/// Advice under which memory of this process stays mapped.
#[derive(Clone, Copy, Debug)]
enum Advice {
    /// The contents are not needed: the pages read as 0 from now on.
    GiveBack,
    /// Large pages are wanted.
    Large,
    /// Large pages are not to be used.
    NoLarge,
    /// The pages are wanted now.
    Populate,
    /// The pages are not used much. Of a large page that has other pages too the kernel makes small ones, at once
    /// (`madvise_cold_or_pageout_pte_range`): no other advice that keeps the contents does.
    Cold,
}

impl Advice {
    const fn number(self) -> libc::c_int {
        match self {
            Self::GiveBack => libc::MADV_DONTNEED,
            Self::Large => libc::MADV_HUGEPAGE,
            Self::NoLarge => libc::MADV_NOHUGEPAGE,
            Self::Populate => libc::MADV_POPULATE_WRITE,
            Self::Cold => libc::MADV_COLD,
        }
    }
}

/// Advises the kernel of `len` bytes from `offset` on of `region`.
fn advise(region: &GuestRegionMmap, offset: usize, len: usize, advice: Advice) -> io::Result<()> {
    let size = usize::try_from(region.len()).unwrap_or(0);
    if offset > size || len > size - offset {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the offset lies in the region's mapping, as has just been checked.
    let start = unsafe { region.as_ptr().add(offset) };
    // SAFETY: the bytes from `start` are pages of an anonymous private mapping that `region` keeps, and no
    // kind of [`Advice`] unmaps any. At most their contents change, to zeros, and nothing in this
    // process relies on those: guest memory is only read through volatile accesses, as memory that changes at
    // any time.
    match unsafe { libc::madvise(start.cast(), len, advice.number()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Backings for TdBackings {
    fn set_visibility(&self, range: GpaRange, to: Visibility) -> io::Result<()> {
        let attributes = match to {
            Visibility::Private => u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE),
            Visibility::Shared => 0,
        };
        self.vm
            .set_memory_attributes(kvm_memory_attributes {
                address: range.start().0,
                size: range.len(),
                attributes,
                flags: 0,
            })
            .map_err(io::Error::from)
    }

    fn discard(&self, range: GpaRange, side: Visibility) -> io::Result<()> {
        match side {
            Visibility::Private => {
                let part = self.part(range)?;
                let offset = range.start().0 - part.range.start().0;
                fallocate(
                    &part.private,
                    FallocateMode::PunchHole,
                    true,
                    offset,
                    range.len(),
                )
                .map_err(io::Error::from)
            }
            Visibility::Shared => {
                let (region, offset, len) = self.region(range)?;
                advise(region, offset, len, Advice::GiveBack)
            }
        }
    }

    fn allow_large_page(&self, block: GpaRange) -> io::Result<()> {
        let (region, offset, len) = self.region(block)?;
        advise(region, offset, len, Advice::Large)
    }

    fn split_large_page(&self, block: GpaRange, part: GpaRange) -> io::Result<()> {
        let (region, offset, len) = self.region(block)?;
        advise(region, offset, len, Advice::NoLarge)?;
        if part == block {
            // It goes as a whole.
            return Ok(());
        }
        let (region, offset, len) = self.region(part)?;
        advise(region, offset, len, Advice::Cold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_of_the_tests_provides_memory_in_advance() {
        // Linux 5.14 or newer, which the tests need anyway.
        check_prefault().unwrap();
    }

    #[test]
    fn advice_for_more_than_the_region_is_refused() {
        let page = MmapRegion::new(4096).unwrap();
        let region = GuestRegionMmap::new(page, GuestAddress(0)).unwrap();
        assert!(advise(&region, 0, 4096, Advice::GiveBack).is_ok());
        for (offset, len) in [(0, 4097), (4096, 1), (usize::MAX, 2)] {
            let error = advise(&region, offset, len, Advice::GiveBack).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
