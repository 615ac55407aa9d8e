//! Ordinary KVM calls on a TD, most of which a TD refuses: `ioctl` steps of the conformance list.

use std::os::fd::AsFd;

use super::sys::{self, Bytes, Errno, Mapping};
use super::td::Vm;

/// Descriptor, number and size of the struct.
#[derive(Clone, Copy)]
enum On {
    Vm,
    Vcpu,
}

/// Calls whose argument can be all zeroes.
const PLAIN: [(&str, On, u64, usize); 14] = [
    ("get_regs", On::Vcpu, 0x8090_ae81, 144),
    ("set_regs", On::Vcpu, 0x4090_ae82, 144),
    ("get_sregs", On::Vcpu, 0x8138_ae83, 312),
    ("set_sregs", On::Vcpu, 0x4138_ae84, 312),
    ("get_fpu", On::Vcpu, 0x81a0_ae8c, 416),
    ("get_lapic", On::Vcpu, 0x8400_ae8e, 1024),
    ("set_lapic", On::Vcpu, 0x4400_ae8f, 1024),
    ("get_xsave", On::Vcpu, 0x9000_aea4, 4096),
    ("get_xcrs", On::Vcpu, 0x8188_aea6, 392),
    ("get_debugregs", On::Vcpu, 0x8080_aea1, 128),
    ("set_guest_debug", On::Vcpu, 0x4048_ae9b, 72),
    ("create_irqchip", On::Vm, 0xae60, 8),
    ("create_pit2", On::Vm, 0x4040_ae77, 64),
    ("get_dirty_log", On::Vm, 0x4010_ae42, 16),
];

pub(super) fn call(vm: &Vm, name: &str) -> Result<(), Errno> {
    if let Some((_, on, nr, size)) = PLAIN.iter().find(|(known, ..)| *known == name) {
        let fd = match on {
            On::Vm => vm.fd(),
            On::Vcpu => vm.vcpu(0)?,
        };
        return sys::ioctl(fd, *nr, &mut Bytes::new(*size)).map(drop);
    }
    let page = Mapping::anonymous(4096);
    match name {
        "vm_set_tsc_khz" => sys::ioctl_number(vm.fd(), 0xaea2, 2_000_000).map(drop),
        "vm_set_tsc_khz_50_mhz" => sys::ioctl_number(vm.fd(), 0xaea2, 50_000).map(drop),
        "vcpu_set_tsc_khz" => sys::ioctl_number(vm.vcpu(0)?, 0xaea2, 2_000_000).map(drop),
        "readonly_slot" => vm.set_region((5, 2), (1 << 40, 4096), &page, None),
        "slot_with_shared_bit" => vm.set_region((5, 0), (1 << 47, 4096), &page, None),
        "slot_in_second_address_space" => {
            vm.set_region((5 | 1 << 16, 0), (1 << 40, 4096), &page, None)
        }
        "gmem_slot_with_dirty_log" => {
            let gmem = vm.create_guest_memfd(4096, 0)?;
            vm.set_region((5, 4 | 1), (1 << 40, 4096), &page, Some(&gmem))
        }
        "gmem_bound_twice" => {
            let gmem = vm.create_guest_memfd(4096, 0)?;
            vm.set_region((5, 4), (1 << 40, 4096), &page, Some(&gmem))?;
            vm.set_region((6, 4), (1 << 41, 4096), &page, Some(&gmem))
        }
        "gmem_with_mmap_and_init_shared" => vm.create_guest_memfd(4096, 3).map(drop),
        "gmem_of_odd_size" => vm.create_guest_memfd(4097, 0).map(drop),
        "gmem_with_odd_hole" => {
            let gmem = vm.create_guest_memfd(8192, 0)?;
            sys::punch_hole(gmem.as_fd(), 0, 4096);
            Ok(())
        }
        "attributes_unknown" => attributes(vm, 4096, 1),
        "attributes_of_nothing" => attributes(vm, 0, 8),
        "get_msrs_stops_at_the_first_refused" => three_msrs(vm),
        _ => Err(Errno(libc::ENOSYS)),
    }
}

fn attributes(vm: &Vm, len: u64, attributes: u64) -> Result<(), Errno> {
    let mut arg = Bytes::new(32).u64(8, len).u64(16, attributes);
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
