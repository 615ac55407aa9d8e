//! A TD of the host's own KVM, through the real calls: launched, entered, and what an access to a
//! page of the wrong side looks like. Ignored where KVM offers no TDX; runs on emulated TDX too.

#![expect(
    unsafe_code,
    reason = "a memory slot is a promise about an address range"
)]

mod needs;

use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::{kvm_memory_attributes, kvm_userspace_memory_region2};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use libtest_mimic::{Arguments, Failed, Trial};
use tdvmm_arch::addr::{Gpa, GpaRange, VcpuId};
use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};
use tdvmm_tdx::abi;
use tdvmm_tdx::cpuid::gpaw_of;
use tdvmm_tdx::exit::{TdExit, Visibility, decode};
use tdvmm_tdx::fake::MrtdWitness;
use tdvmm_tdx::ioctl::{KvmTd, create_guest_memfd, exit_bytes, pre_fault};
use tdvmm_tdx::log::Measure;
use tdvmm_tdx::pages::{Digest, PageBuffer};
use tdvmm_tdx::params::{TdAttributes, TdRequest};
use tdvmm_tdx::td::{Created, FinalizedVm, Parts, Td, VcpuCount, VmSetup};

/// Two slots: 1 MiB at 0, and the page with the reset vector.
const RAM: GpaRange = GpaRange::constant(0, 1 << 20);
const RESET: GpaRange = GpaRange::constant(0xffff_f000, 0x1000);
/// A page of RAM that no test adds.
const TOUCHED: u32 = 0x1000;

type Case = (&'static str, fn() -> Result<(), Failed>);

const CASES: &[Case] = &[
    ("launch_on_kvm_reaches_a_vcpu_that_runs", launch_runs),
    (
        "capabilities_of_kvm_fit_what_is_resolved_from_them",
        capabilities_fit,
    ),
    (
        "private_touch_of_a_shared_page_is_a_memory_fault",
        memory_fault,
    ),
    ("touch_of_an_unaccepted_page_ends_the_td", unaccepted),
    ("prefault_after_finalize_covers_its_range", prefault),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let lacking = lacking();
    let trials = CASES.iter().map(|(name, case)| match &lacking {
        None => Trial::test(*name, *case),
        Some(why) => needs::unmet(name, "tdx", why),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn lacking() -> Option<String> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return Some(format!("no KVM here: {error}")),
    };
    let types = kvm.check_extension_raw(libc::c_ulong::from(abi::KVM_CAP_VM_TYPES));
    (types >> abi::KVM_X86_TDX_VM & 1 == 0).then(|| format!("no TDX here: VM types {types:#x}"))
}

/// A VM with its slots. The shared side is memory that is never given back.
struct Bench {
    kvm: Kvm,
    td: Td<KvmTd, Created>,
    _private: Vec<OwnedFd>,
}

fn bench(shared: Option<GpaRange>) -> Result<Bench, Failed> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm_with_type(abi::KVM_X86_TDX_VM)?;
    let private = [RAM, RESET]
        .into_iter()
        .zip(0..)
        .map(|(range, slot)| add_slot(&vm, slot, range))
        .collect::<Result<_, _>>()?;
    let set = |range: GpaRange, attributes| {
        vm.set_memory_attributes(kvm_memory_attributes {
            address: range.start().0,
            size: range.len(),
            attributes,
            flags: 0,
        })
    };
    set(RAM, abi::KVM_MEMORY_ATTRIBUTE_PRIVATE)?;
    if let Some(range) = shared {
        set(range, 0)?;
    }
    let td = Td::create(KvmTd::new(vm), &VmSetup::default())?;
    Ok(Bench {
        kvm,
        td,
        _private: private,
    })
}

fn add_slot(vm: &VmFd, slot: u32, range: GpaRange) -> Result<OwnedFd, Failed> {
    let private = create_guest_memfd(vm, range.len())?;
    let shared = PageBuffer::zeroed(usize::try_from(range.len() / 4096)?);
    let shared: &'static mut PageBuffer = Box::leak(Box::new(shared));
    let region = kvm_userspace_memory_region2 {
        slot,
        flags: abi::KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: range.start().0,
        memory_size: range.len(),
        userspace_addr: shared.bytes_mut().as_mut_ptr().expose_provenance() as u64,
        guest_memfd: u32::try_from(private.as_raw_fd())?,
        ..Default::default()
    };
    // SAFETY: the range of host memory is as long as the slot, page aligned, leaked (so mapped for
    // ever), and nobody else uses it: the only reference to it ends with this function.
    unsafe { vm.set_user_memory_region2(region) }?;
    Ok(private)
}

fn supported(kvm: &Kvm) -> Result<CpuidTable, Failed> {
    let supported = kvm.get_supported_cpuid(256)?;
    let entry = |e: &kvm_bindings::kvm_cpuid_entry2| CpuidEntry {
        function: e.function,
        index: e.index,
        flags: e.flags & 1,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    };
    Ok(CpuidTable(supported.as_slice().iter().map(entry).collect()))
}

/// `mov eax, [TOUCHED]; hlt` behind the reset vector, in the 32-bit mode that a TD starts in.
fn code() -> PageBuffer {
    let mut page = vec![0; 4096];
    page[0] = 0xa1;
    page[1..5].copy_from_slice(&TOUCHED.to_le_bytes());
    page[5] = 0xf4;
    // jmp to the start of the page; the displacement counts from the next instruction.
    page[0xff0] = 0xe9;
    page[0xff1..0xff5].copy_from_slice(&(-0xff5i32).to_le_bytes());
    PageBuffer::from_content(&page, 4096).expect("one page")
}

fn launch(bench: Bench, vcpus: u32) -> Result<(Parts<KvmTd, VcpuFd>, Vec<OwnedFd>), Failed> {
    let Bench {
        kvm,
        mut td,
        _private,
    } = bench;
    let cpuid = supported(&kvm)?;
    let params = TdRequest::new(cpuid.clone(), Gpa(1 << 32)).resolve(&td.capabilities()?)?;
    let of_vcpu = |id: VcpuId| {
        let mut table = cpuid.clone();
        for entry in table.0.iter_mut().filter(|entry| entry.function == 1) {
            entry.ebx = entry.ebx & 0x00ff_ffff | id.0 << 24;
        }
        table
    };
    let count = VcpuCount::new(vcpus).expect("at least one");
    let (code, data) = (code(), PageBuffer::zeroed(4));
    let runnable = td
        .init(&params)?
        .create_vcpus(count, Gpa(0x2000), of_vcpu)?
        .add_region(code.source(), RESET.start(), Measure::Yes)?
        .add_region(data.source(), Gpa(0x8000), Measure::No)?
        .finalize()?;
    Ok((runnable.into_parts(), _private))
}

fn launch_runs() -> Result<(), Failed> {
    let bench = bench(None)?;
    let vcpus = bench.td.max_vcpus().min(2);
    let (parts, _private) = launch(bench, vcpus)?;
    let mut witness = MrtdWitness::default();
    witness.page_add(RESET.start().0);
    witness.extend_page(RESET.start().0, code().bytes());
    (0..4).for_each(|page| witness.page_add(0x8000 + 4096 * page));
    // Shown, so that a fixture's own witness can be held against it.
    eprintln!("expected MRTD: {}", witness.value());
    assert_eq!(parts.log.regions().len(), 2);
    assert_ne!(witness.value(), Digest([0; 48]));
    assert_eq!(parts.vcpus.len(), usize::try_from(vcpus)?);
    for call in &parts.transcript.calls {
        eprintln!(
            "{:>8} us {:>6} us x{} {}",
            call.start_us, call.took_us, call.tries, call.call
        );
    }
    for vcpu in parts.vcpus {
        let mut vcpu = vcpu.into_vcpu();
        vcpu.set_kvm_immediate_exit(1);
        let error = vcpu.run().expect_err("it is to leave at once");
        assert_eq!(error.errno(), libc::EINTR);
    }
    Ok(())
}

fn capabilities_fit() -> Result<(), Failed> {
    let Bench {
        kvm,
        mut td,
        _private,
    } = bench(None)?;
    let caps = td.capabilities()?;
    eprintln!(
        "attributes {}; xfam {}; {} CPUID leaves",
        caps.attributes,
        caps.xfam,
        caps.cpuid.iter().count()
    );
    assert!(caps.attributes.contains(TdAttributes::SEPT_VE_DISABLE));
    let mut request = TdRequest::new(supported(&kvm)?, Gpa(1 << 32));
    let params = request.resolve(&caps)?;
    assert!(gpaw_of(params.cpuid()).is_some());
    request.attributes = TdAttributes(u64::MAX);
    let refused = request
        .resolve(&caps)
        .expect_err("no host has all attributes");
    assert!(refused.to_string().contains("supported_attrs"));
    td.init(&params)?;
    Ok(())
}

fn first(parts: Parts<KvmTd, VcpuFd>) -> (VcpuFd, FinalizedVm<KvmTd>) {
    let mut vcpus = parts.vcpus.into_iter();
    let vcpu = vcpus.next().expect("at least one").into_vcpu();
    (vcpu, parts.vm)
}

fn memory_fault() -> Result<(), Failed> {
    let page = GpaRange::constant(u64::from(TOUCHED), 0x1000);
    let (parts, _private) = launch(bench(Some(page))?, 1)?;
    let (mut vcpu, _vm) = first(parts);
    // The crate reports the fault as an exit or as the error that KVM_RUN gave.
    if let Err(error) = vcpu.run() {
        assert_eq!(error.errno(), libc::EFAULT);
    }
    let exit = decode(&exit_bytes(&mut vcpu));
    assert_eq!(
        exit,
        TdExit::MemoryFault {
            range: page,
            meant: Visibility::Private
        }
    );
    Ok(())
}

fn unaccepted() -> Result<(), Failed> {
    let (parts, _private) = launch(bench(None)?, 1)?;
    let (mut vcpu, _vm) = first(parts);
    let error = vcpu
        .run()
        .expect_err("SEPT_VE_DISABLE: no #VE, the TD is over");
    assert_eq!(error.errno(), libc::EIO);
    Ok(())
}

fn prefault() -> Result<(), Failed> {
    let (parts, _private) = launch(bench(None)?, 1)?;
    let (vcpu, _vm) = first(parts);
    let mut rest = GpaRange::constant(0x10_000, 0x10_000);
    let mut calls = 0;
    while !rest.is_empty() {
        rest = pre_fault(&vcpu, rest)?;
        calls += 1;
        assert!(calls < 1000, "no progress at {rest}");
    }
    Ok(())
}
