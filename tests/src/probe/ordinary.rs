//! Ordinary KVM calls on a TD, most of which a TD refuses: `ioctl` steps of the conformance list.

use std::os::fd::AsFd;

use super::sys::{self, Bytes, Errno, Mapping};
use super::td::Vm;

const PRIVATE: u64 = 8;

/// Descriptor, number and size of the struct.
#[derive(Clone, Copy)]
enum On {
    Vm,
    Vcpu,
}

/// Calls whose argument can be all zeroes, or is none.
const PLAIN: &[(&str, On, u64, usize)] = &[
    ("get_regs", On::Vcpu, 0x8090_ae81, 144),
    ("set_regs", On::Vcpu, 0x4090_ae82, 144),
    ("get_sregs", On::Vcpu, 0x8138_ae83, 312),
    ("set_sregs", On::Vcpu, 0x4138_ae84, 312),
    ("get_sregs2", On::Vcpu, 0x8140_aecc, 320),
    ("set_sregs2", On::Vcpu, 0x4140_aecd, 320),
    ("get_fpu", On::Vcpu, 0x81a0_ae8c, 416),
    ("set_fpu", On::Vcpu, 0x41a0_ae8d, 416),
    ("get_lapic", On::Vcpu, 0x8400_ae8e, 1024),
    ("set_lapic", On::Vcpu, 0x4400_ae8f, 1024),
    ("get_xsave", On::Vcpu, 0x9000_aea4, 4096),
    ("set_xsave", On::Vcpu, 0x5000_aea5, 4096),
    ("get_xsave2", On::Vcpu, 0x9000_aecf, 16384),
    ("get_xcrs", On::Vcpu, 0x8188_aea6, 392),
    ("set_xcrs", On::Vcpu, 0x4188_aea7, 392),
    ("get_debugregs", On::Vcpu, 0x8080_aea1, 128),
    ("set_debugregs", On::Vcpu, 0x4080_aea2, 128),
    ("nmi", On::Vcpu, 0xae9a, 0),
    ("smi", On::Vcpu, 0xaeb7, 0),
    ("set_guest_debug", On::Vcpu, 0x4048_ae9b, 72),
    ("create_irqchip", On::Vm, 0xae60, 8),
    ("create_pit2", On::Vm, 0x4040_ae77, 64),
    ("encrypt_reg_region", On::Vm, 0x8010_aebb, 16),
    ("get_dirty_log", On::Vm, 0x4010_ae42, 16),
    ("set_identity_map_addr", On::Vm, 0x4008_ae48, 8),
];

pub(super) fn call(vm: &Vm, name: &str) -> Result<(), Errno> {
    if let Some((_, on, nr, size)) = PLAIN.iter().find(|(known, ..)| *known == name) {
        let fd = match on {
            On::Vm => vm.fd(),
            On::Vcpu => vm.vcpu(0)?,
        };
        return sys::ioctl(fd, *nr, &mut Bytes::new(*size)).map(drop);
    }
    match name {
        "vm_set_tsc_khz" => sys::ioctl_number(vm.fd(), 0xaea2, 2_000_000).map(drop),
        "vm_set_tsc_khz_50_mhz" => sys::ioctl_number(vm.fd(), 0xaea2, 50_000).map(drop),
        "vm_set_tsc_khz_10025_mhz" => sys::ioctl_number(vm.fd(), 0xaea2, 10_025_000).map(drop),
        "vcpu_set_tsc_khz" => sys::ioctl_number(vm.vcpu(0)?, 0xaea2, 2_000_000).map(drop),
        "set_tss_addr" => sys::ioctl_number(vm.fd(), 0xae47, 0xfeff_d000).map(drop),
        "set_boot_cpu_id" => sys::ioctl_number(vm.fd(), 0xae78, 1).map(drop),
        "attributes_unknown" => attributes(vm, [0, 4096, 1, 0]),
        "attributes_of_nothing" => attributes(vm, [0, 0, PRIVATE, 0]),
        "attributes_with_flags" => attributes(vm, [0, 4096, PRIVATE, 1]),
        "attributes_unaligned" => attributes(vm, [1, 4096, PRIVATE, 0]),
        "attributes_that_wrap" => attributes(vm, [!0xfff, 8192, PRIVATE, 0]),
        "get_msrs_stops_at_the_first_refused" => three_msrs(vm),
        "set_msrs_of_read_only_sets_none" => read_only_msrs(vm),
        other => slot_or_gmem(vm, other),
    }
}

/// Slots and guest_memfds.
fn slot_or_gmem(vm: &Vm, name: &str) -> Result<(), Errno> {
    const GMEM: u32 = 4;
    const DIRTY_LOG: u32 = 1;
    const READ_ONLY: u32 = 2;
    const HIGH: (u64, u64) = (1 << 40, 4096);
    const ELSEWHERE: (u64, u64) = (1 << 41, 4096);
    let page = Mapping::anonymous(4096);
    let with_gmem = |flags: u32| -> Result<_, Errno> {
        let gmem = vm.create_guest_memfd(4096, 0)?;
        vm.set_region((5, GMEM | flags), HIGH, &page, Some(&gmem))?;
        Ok(gmem)
    };
    let fallocate = |mode, at, len| {
        let gmem = vm.create_guest_memfd(8192, 0)?;
        sys::fallocate(gmem.as_fd(), mode, at, len)
    };
    match name {
        "readonly_slot" => vm.set_region((5, READ_ONLY), HIGH, &page, None),
        "slot_with_shared_bit" => vm.set_region((5, 0), (1 << 47, 4096), &page, None),
        "slot_in_second_address_space" => vm.set_region((5 | 1 << 16, 0), HIGH, &page, None),
        "plain_slot_with_dirty_log" => vm.set_region((5, DIRTY_LOG), HIGH, &page, None),
        "gmem_slot_with_dirty_log" => with_gmem(DIRTY_LOG).map(drop),
        "gmem_slot_readonly" => with_gmem(READ_ONLY).map(drop),
        "gmem_slot_set_again" => {
            let gmem = with_gmem(0)?;
            given_back(vm, vm.set_region((5, GMEM), HIGH, &page, Some(&gmem)))
        }
        "gmem_slot_made_plain" => {
            with_gmem(0)?;
            given_back(vm, vm.set_region((5, 0), HIGH, &page, None))
        }
        "gmem_slot_moved" => {
            let gmem = with_gmem(0)?;
            given_back(vm, vm.set_region((5, GMEM), ELSEWHERE, &page, Some(&gmem)))
        }
        "gmem_bound_twice" => {
            let gmem = with_gmem(0)?;
            vm.set_region((6, GMEM), ELSEWHERE, &page, Some(&gmem))
        }
        "gmem_with_init_shared" => vm.create_guest_memfd(4096, 2).map(drop),
        "gmem_with_mmap_and_init_shared" => vm.create_guest_memfd(4096, 3).map(drop),
        "gmem_of_odd_size" => vm.create_guest_memfd(4097, 0).map(drop),
        "gmem_of_no_size" => vm.create_guest_memfd(0, 0).map(drop),
        "gmem_with_hole" => fallocate(sys::PUNCH_HOLE, 0, 4096),
        "gmem_with_odd_hole" => fallocate(sys::PUNCH_HOLE, 1, 4096),
        "gmem_allocated_with_its_size" => fallocate(0, 0, 4096),
        _ => Err(Errno(libc::ENOSYS)),
    }
}

/// Deletes slot 5 again, so that a later step finds it free.
fn given_back(vm: &Vm, result: Result<(), Errno>) -> Result<(), Errno> {
    vm.set_region((5, 0), (1 << 40, 0), &Mapping::anonymous(4096), None)?;
    result
}

/// KVM_SET_MEMORY_ATTRIBUTES with address, size, attributes and flags.
fn attributes(vm: &Vm, words: [u64; 4]) -> Result<(), Errno> {
    let mut arg = Bytes::new(32);
    for (at, word) in [0, 8, 16, 24].into_iter().zip(words) {
        arg = arg.u64(at, word);
    }
    sys::ioctl(vm.fd(), super::td::KVM_SET_MEMORY_ATTRIBUTES, &mut arg).map(drop)
}

/// MISC_ENABLE is in the emulated list, LSTAR is not, PAT would be: one is read.
fn three_msrs(vm: &Vm) -> Result<(), Errno> {
    let mut arg = Bytes::new(8 + 3 * 16)
        .u32(0, 3)
        .u32(8, 0x1a0)
        .u32(24, 0xc000_0082)
        .u32(40, 0x277);
    match sys::ioctl(vm.vcpu(0)?, 0xc008_ae88, &mut arg)? {
        1 => Ok(()),
        other => Err(Errno(other)),
    }
}

/// APICBASE, EFER and FEAT_CTL cannot be written, each with what it may well have.
fn read_only_msrs(vm: &Vm) -> Result<(), Errno> {
    for (index, data) in [(0x1b, 0xfee0_0d00), (0xc000_0080, 0x901), (0x3a, 1)] {
        let mut arg = Bytes::new(8 + 16).u32(0, 1).u32(8, index).u64(16, data);
        match sys::ioctl(vm.vcpu(0)?, 0x4008_ae89, &mut arg)? {
            0 => {}
            other => return Err(Errno(other)),
        }
    }
    Ok(())
}
