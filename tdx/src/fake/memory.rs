//! Slots, attributes and pages of a fake TD.

use std::collections::BTreeSet;

use tdvmm_arch::addr::{Gpa, GpaRange, PAGE_SIZE};

use super::kernel::FakeKernel;
use super::mrtd::MrtdWitness;
use crate::abi;
use crate::error::Command;
use crate::pages::Digest;
use crate::wire;

/// A memory slot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    id: u32,
    range: GpaRange,
    private: bool,
}

/// The memory of a TD.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// `None`: every private address has a slot.
    slots: Option<Vec<Slot>>,
    private: BTreeSet<u64>,
    /// Pages that are mapped in the TD.
    mapped: BTreeSet<u64>,
    /// Pages in the order in which they were added, and whether they were measured.
    added: Vec<(Gpa, bool)>,
    mrtd: MrtdWitness,
}

impl Memory {
    pub(super) fn mrtd(&self) -> Digest {
        self.mrtd.value()
    }

    pub(super) fn added(&self) -> &[(Gpa, bool)] {
        &self.added
    }
}

type Errno = i32;

impl FakeKernel {
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
        let slots = self.memory.slots.get_or_insert_default();
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
                self.memory.private.remove(&page);
                // A page that leaves the private side is gone, though not from MRTD.
                self.memory.mapped.remove(&page);
            } else {
                self.memory.private.insert(page);
            }
        }
        Ok(())
    }

    /// Adds one page: slot, attribute, source, in the order of `kvm_gmem_populate`.
    pub(super) fn add_page(
        &mut self,
        gpa: u64,
        content: Option<&[u8]>,
        measure: bool,
    ) -> Result<(), Errno> {
        let backed = self.memory.slots.as_ref().is_none_or(|slots| {
            slots
                .iter()
                .any(|slot| slot.private && slot.range.contains(Gpa(gpa)))
        });
        if !backed || !self.memory.private.contains(&gpa) {
            return Err(libc::EINVAL);
        }
        let content = content.ok_or(libc::EFAULT)?;
        if !self.memory.mapped.insert(gpa) {
            return Err(self.kill());
        }
        self.memory.mrtd.page_add(gpa);
        if measure {
            self.memory.mrtd.extend_page(gpa, content);
        }
        self.memory.added.push((Gpa(gpa), measure));
        Ok(())
    }
}

fn pages(range: GpaRange) -> impl Iterator<Item = u64> {
    (range.start().0..range.end().0).step_by(4096)
}
