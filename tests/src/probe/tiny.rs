//! TDs of one page: what KVM_RUN says when their first instructions touch something.

use std::os::fd::AsFd;

use super::sys::{Errno, Mapping};
use super::td::{self, Kvm, Vm, command};
use super::{Failure, Report, ordinary};

const PAGE: u64 = 4096;
/// The page with the reset vector.
const CODE: u64 = 0xffff_f000;
const EXIT_SHUTDOWN: u64 = 8;
const EXIT_MEMORY_FAULT: u64 = 39;
const PRIVATE: u64 = 8;

/// `mov eax, [at]; hlt`, 32-bit.
fn touch(at: u32) -> Vec<u8> {
    let mut code = vec![0xa1];
    code.extend(at.to_le_bytes());
    code.push(0xf4);
    code
}

/// What is done to the page at 0x1000 before the TD runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Prefault,
    ConvertToShared,
}

enum End {
    /// KVM_RUN fails, and the VM is dead.
    Dead,
    /// KVM_RUN fails with EFAULT and this exit: flags, GPA.
    MemoryFault(u64, u64),
    Shutdown,
}

struct TinyTd {
    name: &'static str,
    code: Vec<u8>,
    before: Before,
    end: End,
}

fn cases() -> Vec<TinyTd> {
    // lidt [0xfffff800] (zeroes: no gate fits in the limit); ud2
    let triple_fault = vec![0x0f, 0x01, 0x1d, 0x00, 0xf8, 0xff, 0xff, 0x0f, 0x0b];
    let case = |name, code, before, end| TinyTd {
        name,
        code,
        before,
        end,
    };
    vec![
        case(
            "touch_of_unaccepted_page_ends_the_td",
            touch(0x1000),
            Before::Nothing,
            End::Dead,
        ),
        case(
            "touch_of_prefaulted_page_ends_the_td",
            touch(0x1000),
            Before::Prefault,
            End::Dead,
        ),
        case(
            "private_touch_of_shared_page_is_a_memory_fault",
            touch(0x1000),
            Before::ConvertToShared,
            End::MemoryFault(PRIVATE, 0x1000),
        ),
        case(
            "private_touch_without_slot_is_a_memory_fault",
            touch(0x4000_0000),
            Before::Nothing,
            End::MemoryFault(PRIVATE, 0x4000_0000),
        ),
        case(
            "exception_with_unaccepted_idt_ends_the_td",
            vec![0xf4],
            Before::Nothing,
            End::Dead,
        ),
        case(
            "triple_fault_is_shutdown",
            triple_fault,
            Before::Nothing,
            End::Shutdown,
        ),
    ]
}

/// Names of all cases.
pub(super) fn names() -> Vec<String> {
    cases()
        .into_iter()
        .map(|case| case.name.to_owned())
        .collect()
}

/// Runs the case of that name, or all.
pub(super) fn run(report: &mut Report, only: Option<&str>) {
    let kvm = Kvm::open();
    let wanted = |case: &TinyTd| only.is_none_or(|name| case.name == name);
    for case in cases().into_iter().filter(wanted) {
        let result = run_one(&kvm, &case);
        report.tell(&format!("tiny/{}", case.name), result);
    }
}

/// A TD with one measured page of code, 1 MiB of RAM at 0, and one vCPU.
fn launch(kvm: &Kvm, code: &[u8], before: Before) -> Result<Vm, Errno> {
    let mut vm = kvm.create(5)?;
    vm.enable_cap(121, 24)?;
    let caps = vm.capabilities(256, 0)?;
    let mut params = td::init_vm(1 << 28, 3, &td::plain_leaves(&caps));
    command(vm.fd(), td::TDX_INIT_VM, 0, params.address(), 0).0?;
    vm.add_slot(0, 1 << 20, true)?;
    vm.add_slot(CODE, PAGE, true)?;
    vm.set_private(0, 1 << 20, true)?;
    vm.set_private(CODE, PAGE, true)?;
    if before == Before::ConvertToShared {
        vm.convert(0x1000, PAGE, false)?;
    }
    vm.create_vcpu(0)?;
    vm.set_cpuid(0, &kvm.vcpu_cpuid(0, true, 48))?;
    command(vm.vcpu(0)?, td::TDX_INIT_VCPU, 0, 0, 0).0?;
    let page = Mapping::anonymous(4096);
    page.put(0, code);
    page.put(0xff0, &[0xe9, 0x0b, 0xf0, 0xff, 0xff]); // jmp to the start of the page
    vm.init_mem_region(0, 1, &mut [page.address(), CODE, 1])?;
    command(vm.fd(), td::TDX_FINALIZE_VM, 0, 0, 0).0?;
    if before == Before::Prefault {
        vm.prefault(0x1000, PAGE)?;
    }
    Ok(vm)
}

fn run_one(kvm: &Kvm, case: &TinyTd) -> Result<(), Failure> {
    let vm = launch(kvm, &case.code, case.before)
        .map_err(|errno| format!("the launch ended with {}", errno.name()))?;
    let vcpu = vm.vcpus.get(&0).expect("the vCPU was created").as_fd();
    let run = Mapping::of_file(vcpu, kvm.run_size());
    // Registers of a TD cannot be asked for by way of the kvm_run page either (kvm_valid_regs).
    run.put(288, &1_u64.to_le_bytes());
    let result = vm.run(0);
    if result != Err(Errno(libc::EINVAL)) {
        return Err(format!("KVM_RUN with kvm_valid_regs gave {result:?}").into());
    }
    run.put(288, &0_u64.to_le_bytes());
    let result = vm.run(0);
    let exit = run.get(8, 4);
    let at_end =
        |what: &str| -> Failure { format!("{what}: KVM_RUN gave {result:?}, exit {exit}").into() };
    match case.end {
        End::Dead => {
            if result != Err(Errno(libc::EIO)) {
                return Err(at_end("EIO expected"));
            }
            if vm.run(0) != Err(Errno(libc::EIO))
                || vm.set_private(0, PAGE, true) != Err(Errno(libc::EIO))
            {
                return Err("the VM is not dead: a later call is not EIO".into());
            }
        }
        End::MemoryFault(flags, gpa) => {
            let fault = (run.get(32, 8), run.get(40, 8), run.get(48, 8));
            if result != Err(Errno(libc::EFAULT)) || exit != EXIT_MEMORY_FAULT {
                return Err(at_end("EFAULT and exit 39 expected"));
            }
            if fault != (flags, gpa, PAGE) {
                return Err(format!("flags, GPA, size are {fault:x?}").into());
            }
        }
        End::Shutdown => {
            if result.is_err() || exit != EXIT_SHUTDOWN {
                return Err(at_end("exit 8 expected"));
            }
        }
    }
    after_run(kvm, &vm, matches!(case.end, End::Dead))
}

/// A vCPU that has run keeps its state to itself and its CPUID for good; a dead one says EIO to everything.
fn after_run(kvm: &Kvm, vm: &Vm, dead: bool) -> Result<(), Failure> {
    let refused = Err(Errno(if dead { libc::EIO } else { libc::EINVAL }));
    for name in ["get_regs", "get_sregs", "get_fpu", "get_xsave", "get_lapic"] {
        let result = ordinary::call(vm, name);
        if result != refused {
            return Err(format!("{name} after the run gave {result:?}").into());
        }
    }
    let other = vm.set_cpuid(0, &kvm.vcpu_cpuid(0, false, 48));
    let same = vm.set_cpuid(0, &kvm.vcpu_cpuid(0, true, 48));
    if other != refused || same != if dead { refused } else { Ok(()) } {
        return Err(format!("another CPUID gave {other:?}, the same {same:?}").into());
    }
    Ok(())
}
