//! A TD in pieces: each method is one call of the ABI, with the errno as its answer.
//!
//! Numbers and offsets: Linux 7.3 `include/uapi/linux/kvm.h` and `arch/x86/include/uapi/asm/kvm.h`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::sys::{self, Bytes, Errno, Mapping};

pub const KVM_CREATE_VM: u64 = 0xae01;
pub const KVM_CHECK_EXTENSION: u64 = 0xae03;
pub const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xae04;
pub const KVM_GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
pub const KVM_CREATE_VCPU: u64 = 0xae41;
pub const KVM_SET_USER_MEMORY_REGION2: u64 = 0x40a0_ae49;
pub const KVM_RUN: u64 = 0xae80;
pub const KVM_SET_CPUID2: u64 = 0x4008_ae90;
pub const KVM_ENABLE_CAP: u64 = 0x4068_aea3;
pub const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
pub const KVM_MEMORY_ENCRYPT_OP: u64 = 0xc008_aeba;
pub const KVM_SET_MEMORY_ATTRIBUTES: u64 = 0x4020_aed2;
pub const KVM_CREATE_GUEST_MEMFD: u64 = 0xc040_aed4;
pub const KVM_PRE_FAULT_MEMORY: u64 = 0xc040_aed5;

pub const TDX_CAPABILITIES: u32 = 0;
pub const TDX_INIT_VM: u32 = 1;
pub const TDX_INIT_VCPU: u32 = 2;
pub const TDX_INIT_MEM_REGION: u32 = 3;
pub const TDX_FINALIZE_VM: u32 = 4;
pub const TDX_GET_CPUID: u32 = 5;

/// A CPUID entry of KVM: function, index, flags, eax, ebx, ecx, edx.
pub type Leaf = [u32; 7];
const LEAF_SIZE: usize = 40;
/// Room in every CPUID list.
pub const MAX_LEAVES: usize = 260;

/// `kvm_cpuid2` with entries, at `at` inside of a struct.
pub fn put_leaves(mut bytes: Bytes, at: usize, leaves: &[Leaf]) -> Bytes {
    bytes = bytes.u32(at, u32::try_from(leaves.len()).expect("a short list"));
    for (i, leaf) in leaves.iter().enumerate() {
        for (k, value) in leaf.iter().enumerate() {
            bytes = bytes.u32(at + 8 + LEAF_SIZE * i + 4 * k, *value);
        }
    }
    bytes
}

/// Reads `kvm_cpuid2`.
pub fn get_leaves(bytes: &Bytes, at: usize) -> Vec<Leaf> {
    let count = usize::try_from(bytes.get_u32(at)).expect("fits");
    (0..count.min(MAX_LEAVES))
        .map(|i| std::array::from_fn(|k| bytes.get_u32(at + 8 + LEAF_SIZE * i + 4 * k)))
        .collect()
}

/// One command of KVM_MEMORY_ENCRYPT_OP, and what the kernel wrote back.
pub fn command(
    fd: BorrowedFd<'_>,
    id: u32,
    flags: u32,
    data: u64,
    hw_error: u64,
) -> (Result<(), Errno>, u64) {
    let mut cmd = Bytes::new(24)
        .u32(0, id)
        .u32(4, flags)
        .u64(8, data)
        .u64(16, hw_error);
    let result = sys::ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &mut cmd).map(drop);
    (result, cmd.get_u64(16))
}

/// Memory of a guest.
#[derive(Debug)]
pub struct Slot {
    pub gpa: u64,
    pub len: u64,
    pub shared: Mapping,
    pub private: Option<OwnedFd>,
}

/// A VM and what belongs to it.
#[derive(Debug)]
pub struct Vm {
    fd: OwnedFd,
    pub vcpus: BTreeMap<u32, OwnedFd>,
    pub slots: Vec<Slot>,
}

/// /dev/kvm.
#[derive(Debug)]
pub struct Kvm {
    fd: File,
    pub supported: Vec<Leaf>,
}

impl Kvm {
    pub fn open() -> Self {
        let fd = File::options().read(true).write(true).open("/dev/kvm");
        let fd = fd.expect("/dev/kvm can be opened");
        let mut list = Bytes::new(8 + LEAF_SIZE * MAX_LEAVES).u32(0, 256);
        sys::ioctl(fd.as_fd(), KVM_GET_SUPPORTED_CPUID, &mut list).expect("supported CPUID");
        let supported = get_leaves(&list, 0);
        Self { fd, supported }
    }

    pub fn create(&self, vm_type: u64) -> Result<Vm, Errno> {
        let fd = sys::descriptor(sys::ioctl_number(self.fd.as_fd(), KVM_CREATE_VM, vm_type))?;
        Ok(Vm {
            fd,
            vcpus: BTreeMap::new(),
            slots: Vec::new(),
        })
    }

    pub fn run_size(&self) -> usize {
        let size = sys::ioctl_number(self.fd.as_fd(), KVM_GET_VCPU_MMAP_SIZE, 0);
        usize::try_from(size.expect("a size")).expect("fits")
    }

    /// The CPUID list for a vCPU of a TD.
    pub fn vcpu_cpuid(&self, vcpu: u32, x2apic: bool, gpaw: u32) -> Vec<Leaf> {
        let mut leaves = self.supported.clone();
        for leaf in &mut leaves {
            match leaf[0] {
                1 => {
                    leaf[4] = leaf[4] & 0x00ff_ffff | vcpu << 24;
                    leaf[5] = leaf[5] & !(1 << 21) | u32::from(x2apic) << 21;
                }
                0x8000_0008 => leaf[3] = leaf[3] & !0x00ff_0000 | gpaw << 16,
                _ => {}
            }
        }
        leaves
    }
}

impl Vm {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn vcpu(&self, vcpu: u32) -> Result<BorrowedFd<'_>, Errno> {
        self.vcpus
            .get(&vcpu)
            .map(AsFd::as_fd)
            .ok_or(Errno(libc::EBADF))
    }

    pub fn enable_cap(&self, cap: u32, value: u64) -> Result<(), Errno> {
        let mut arg = Bytes::new(104).u32(0, cap).u64(8, value);
        sys::ioctl(self.fd(), KVM_ENABLE_CAP, &mut arg).map(drop)
    }

    pub fn extension(&self, cap: u64) -> Result<i32, Errno> {
        sys::ioctl_number(self.fd(), KVM_CHECK_EXTENSION, cap)
    }

    pub fn create_vcpu(&mut self, vcpu: u32) -> Result<(), Errno> {
        let fd = sys::ioctl_number(self.fd(), KVM_CREATE_VCPU, vcpu.into());
        self.vcpus.insert(vcpu, sys::descriptor(fd)?);
        Ok(())
    }

    pub fn set_cpuid(&self, vcpu: u32, leaves: &[Leaf]) -> Result<(), Errno> {
        let mut list = put_leaves(Bytes::new(8 + LEAF_SIZE * MAX_LEAVES), 0, leaves);
        sys::ioctl(self.vcpu(vcpu)?, KVM_SET_CPUID2, &mut list).map(drop)
    }

    pub fn create_guest_memfd(&self, len: u64, flags: u64) -> Result<OwnedFd, Errno> {
        let mut arg = Bytes::new(64).u64(0, len).u64(8, flags);
        sys::descriptor(sys::ioctl(self.fd(), KVM_CREATE_GUEST_MEMFD, &mut arg))
    }

    pub fn add_slot(&mut self, gpa: u64, len: u64, gmem: bool) -> Result<(), Errno> {
        let shared = Mapping::anonymous(usize::try_from(len).expect("fits"));
        let private = gmem.then(|| self.create_guest_memfd(len, 0)).transpose()?;
        let slot = u32::try_from(self.slots.len()).expect("few slots");
        self.set_region(
            (slot, if gmem { 4 } else { 0 }),
            (gpa, len),
            &shared,
            private.as_ref(),
        )?;
        self.slots.push(Slot {
            gpa,
            len,
            shared,
            private,
        });
        Ok(())
    }

    pub fn set_region(
        &self,
        (slot, flags): (u32, u32),
        (gpa, len): (u64, u64),
        shared: &Mapping,
        private: Option<&OwnedFd>,
    ) -> Result<(), Errno> {
        use std::os::fd::AsRawFd;
        let mut arg = Bytes::new(160)
            .u32(0, slot)
            .u32(4, flags)
            .u64(8, gpa)
            .u64(16, len)
            .u64(24, shared.address());
        if let Some(fd) = private {
            arg = arg.u32(40, fd.as_raw_fd().cast_unsigned());
        }
        sys::ioctl(self.fd(), KVM_SET_USER_MEMORY_REGION2, &mut arg).map(drop)
    }

    pub fn set_private(&self, gpa: u64, len: u64, private: bool) -> Result<(), Errno> {
        let attributes = if private { 8 } else { 0 };
        let mut arg = Bytes::new(32).u64(0, gpa).u64(8, len).u64(16, attributes);
        sys::ioctl(self.fd(), KVM_SET_MEMORY_ATTRIBUTES, &mut arg).map(drop)
    }

    /// A conversion as a VMM does it: the attribute, then the other side's memory is given back.
    pub fn convert(&self, gpa: u64, len: u64, private: bool) -> Result<(), Errno> {
        self.set_private(gpa, len, private)?;
        for slot in &self.slots {
            let start = gpa.max(slot.gpa);
            let end = (gpa + len).min(slot.gpa + slot.len);
            if start >= end {
                continue;
            }
            if private {
                let at = usize::try_from(start - slot.gpa).expect("fits");
                slot.shared
                    .discard(at, usize::try_from(end - start).expect("fits"));
            } else if let Some(fd) = &slot.private {
                sys::fallocate(fd.as_fd(), sys::PUNCH_HOLE, start - slot.gpa, end - start)?;
            }
        }
        Ok(())
    }

    pub fn prefault(&self, gpa: u64, len: u64) -> Result<(), Errno> {
        let mut arg = Bytes::new(64).u64(0, gpa).u64(8, len);
        sys::ioctl(self.vcpu(0)?, KVM_PRE_FAULT_MEMORY, &mut arg).map(drop)
    }

    pub fn run(&self, vcpu: u32) -> Result<(), Errno> {
        sys::ioctl_number(self.vcpu(vcpu)?, KVM_RUN, 0).map(drop)
    }

    /// KVM_TDX_CAPABILITIES: the configurable leaves, if `nent` is enough.
    pub fn capabilities(&self, nent: u32, flags: u32) -> Result<Bytes, Errno> {
        let mut caps = Bytes::new(2056 + LEAF_SIZE * MAX_LEAVES).u32(2048, nent);
        let address = caps.address();
        command(self.fd(), TDX_CAPABILITIES, flags, address, 0).0?;
        Ok(caps)
    }

    /// KVM_TDX_INIT_MEM_REGION once; `region` is source, gpa and pages, and becomes what is left.
    pub fn init_mem_region(
        &self,
        vcpu: u32,
        flags: u32,
        region: &mut [u64; 3],
    ) -> Result<(), Errno> {
        let mut arg = Bytes::new(24)
            .u64(0, region[0])
            .u64(8, region[1])
            .u64(16, region[2]);
        let address = arg.address();
        let (result, _) = command(self.vcpu(vcpu)?, TDX_INIT_MEM_REGION, flags, address, 0);
        *region = [0, 8, 16].map(|at| arg.get_u64(at));
        result
    }
}

/// The leaves that CAPABILITIES lists: masks of what is configurable.
pub fn configurable(caps: &Bytes) -> Vec<Leaf> {
    get_leaves(caps, 2048)
}

/// Leaves for INIT_VM that ask for as little as possible: all that CAPABILITIES lists, all bits 0, GPAW 48.
pub fn plain_leaves(caps: &Bytes) -> Vec<Leaf> {
    let mut leaves = configurable(caps);
    for leaf in &mut leaves {
        // KVM leaves the flag out of CAPABILITIES; without it an entry stands for all sub-leaves.
        leaf[2] = u32::from(matches!(leaf[0], 4 | 7 | 0xb | 0xd | 0x1f));
        let eax = if leaf[0] == 0x8000_0008 { 48 << 16 } else { 0 };
        leaf[3..7].copy_from_slice(&[eax, 0, 0, 0]);
    }
    leaves
}

/// `kvm_tdx_init_vm`.
pub fn init_vm(attributes: u64, xfam: u64, leaves: &[Leaf]) -> Bytes {
    let bytes = Bytes::new(264 + LEAF_SIZE * MAX_LEAVES)
        .u64(0, attributes)
        .u64(8, xfam);
    put_leaves(bytes, 256, leaves)
}
