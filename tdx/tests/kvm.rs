//! `ioctl` against a KVM that has no TDX: the calls reach the kernel, and its refusals come back
//! decoded. What a TD does with them is shown on emulated TDX. Ignored where there is no KVM.

mod needs;

use std::error::Error;
use std::fs::File;

use kvm_ioctls::{Kvm, VmFd};
use libtest_mimic::{Arguments, Failed, Trial};
use tdvmm_arch::addr::{Gpa, GpaRange, VcpuId};
use tdvmm_tdx::abi;
use tdvmm_tdx::error::Command;
use tdvmm_tdx::exit::{MapGpaStatus, Reply, TdExit, decode};
use tdvmm_tdx::fake::wanted_cpuid;
use tdvmm_tdx::ioctl::{KvmTd, answer, create_guest_memfd, exit_bytes, pre_fault};
use tdvmm_tdx::log::Measure;
use tdvmm_tdx::ops::{TdOps, VmSetting};
use tdvmm_tdx::pages::PageBuffer;
use tdvmm_tdx::params::TscFrequency;

type Case = (&'static str, fn(VmFd) -> Result<(), Failed>);

const CASES: &[Case] = &[
    (
        "tdx_command_on_an_ordinary_vm_is_refused_and_explained",
        refused,
    ),
    ("settings_of_a_td_are_taken_by_kvm_in_their_order", settings),
    ("cpuid_table_reaches_kvm_as_it_was_made", cpuid),
    ("commands_on_an_ordinary_vcpu_are_refused", vcpu_commands),
    ("kvm_run_is_copied_and_answered_in_place", run_bytes),
    ("guest_memfd_has_its_size_or_is_refused", guest_memfd),
    ("tsc_frequency_is_set_before_the_first_vcpu_only", tsc),
    ("amx_permission_is_given_or_its_lack_explained", amx),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let kvm = Kvm::new().and_then(|kvm| kvm.create_vm());
    let trials = CASES.iter().map(|(name, case)| match &kvm {
        Ok(_) => Trial::test(*name, || case(Kvm::new()?.create_vm()?)),
        Err(error) => needs::unmet(name, "kvm", &format!("no KVM here: {error}")),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn refused(vm: VmFd) -> Result<(), Failed> {
    let td = KvmTd::new(vm);
    let error = td
        .capabilities(16)
        .expect_err("no TD has no TDX capabilities");
    assert!(
        matches!(error.errno(), libc::ENOTTY | libc::EINVAL),
        "{error:?}"
    );
    assert_eq!(error.status(), None);
    assert!(error.to_string().starts_with("KVM_TDX_CAPABILITIES failed"));
    assert!(error.source().is_some());
    Ok(())
}

fn settings(vm: VmFd) -> Result<(), Failed> {
    let td = KvmTd::new(vm);
    assert!(td.max_vcpus() >= 1);
    td.set(VmSetting::SplitIrqchip(24))?;
    let again = td
        .set(VmSetting::SplitIrqchip(24))
        .expect_err("there is one");
    assert_eq!(again.errno(), libc::EEXIST);
    assert_eq!(again.command(), Command::EnableSplitIrqchip);
    td.set(VmSetting::X2apicIds)?;
    Ok(())
}

fn cpuid(vm: VmFd) -> Result<(), Failed> {
    let td = KvmTd::new(vm);
    let vcpu = td.create_vcpu(VcpuId(0))?;
    let table = wanted_cpuid(VcpuId(0));
    td.set_cpuid(&vcpu, &table)?;
    let read = vcpu.get_cpuid2(100)?;
    let read = read.as_slice();
    assert_eq!(read.len(), table.iter().count());
    for (got, want) in read.iter().zip(table.iter()) {
        assert_eq!(
            (got.function, got.index, got.flags),
            (want.function, want.index, want.flags)
        );
    }
    assert_eq!(read[0].ebx, 0x756e_6547);
    Ok(())
}

fn vcpu_commands(vm: VmFd) -> Result<(), Failed> {
    let td = KvmTd::new(vm);
    let vcpu = td.create_vcpu(VcpuId(0))?;
    let error = td
        .init_vcpu(&vcpu, Gpa(0))
        .expect_err("no TD has no TDX vCPUs");
    assert_eq!(error.command(), Command::InitVcpu);
    let pages = PageBuffer::zeroed(1);
    let at = GpaRange::constant(0x1000, 0x1000);
    let error = td.init_mem_region(&vcpu, pages.source(), at, Measure::Yes);
    assert_ne!(error.expect_err("no TD takes no pages").errno(), 0);
    assert!(td.td_cpuid(&vcpu, 16).is_err());
    assert!(td.finalize().is_err());
    let error = pre_fault(&vcpu, at).expect_err("there is no memory");
    assert_eq!(error.command(), Command::PreFaultMemory);
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "all cases have one shape")]
fn run_bytes(vm: VmFd) -> Result<(), Failed> {
    let mut vcpu = vm.create_vcpu(0)?;
    assert_eq!(decode(&exit_bytes(&mut vcpu)), TdExit::Other { reason: 0 });
    let reply = Reply::MapGpa(MapGpaStatus::Retry);
    let mismatch = answer(&mut vcpu, reply).expect_err("there was no hypercall");
    assert!(mismatch.to_string().contains("exit 0"));
    vcpu.get_kvm_run().exit_reason = abi::KVM_EXIT_HYPERCALL;
    answer(&mut vcpu, reply)?;
    assert_eq!(exit_bytes(&mut vcpu)[88..96], 11u64.to_le_bytes());
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "all cases have one shape")]
fn guest_memfd(vm: VmFd) -> Result<(), Failed> {
    // A kernel that has none says ENOTTY; one that has it gives ordinary VMs some too.
    match create_guest_memfd(&vm, 4096) {
        Ok(fd) => {
            assert_eq!(File::from(fd).metadata()?.len(), 4096);
            Ok(())
        }
        Err(error) => {
            assert!(
                matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)),
                "{error}"
            );
            Ok(())
        }
    }
}

fn tsc(vm: VmFd) -> Result<(), Failed> {
    let td = KvmTd::new(vm);
    let setting = VmSetting::Tsc(TscFrequency::from_khz(1_000_000)?);
    td.set(setting)?;
    let _vcpu = td.create_vcpu(VcpuId(0))?;
    let error = td.set(setting).expect_err("there is a vCPU");
    assert_eq!(
        (error.command(), error.errno()),
        (Command::SetTscKhz, libc::EINVAL)
    );
    Ok(())
}

fn amx(vm: VmFd) -> Result<(), Failed> {
    match KvmTd::new(vm).permit_xstate(18) {
        Ok(()) => Ok(()),
        Err(error) => {
            assert_eq!(error.command(), Command::PermitXstate);
            assert!(error.to_string().contains("AMX"), "{error}");
            Ok(())
        }
    }
}
