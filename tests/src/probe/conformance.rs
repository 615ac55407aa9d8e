//! Runs the conformance list against `/dev/kvm`.

use std::mem;

use super::sys::{self, Bytes, Errno, Mapping};
use super::td::{self, Kvm, Leaf, Vm, command};
use super::{Failure, Report, ordinary};
use crate::conformance::{
    Call, Case, Conformance, CpuidVariant, Injection, Pointer, Source, Target,
};

const LIST: &str = include_str!("../../emulated-tdx/conformance.toml");

const PAGE: u64 = 4096;
/// An address with nothing behind it.
const BAD: u64 = 8;
const VM_TYPE_TDX: u64 = 5;
const CAP_SPLIT_IRQCHIP: u32 = 121;
const CAP_APIC_BUS_CYCLES_NS: u32 = 237;

/// Module parameters that a case may have changed, with what a fresh module has.
const PARAMETERS: [(&str, &str); 7] = [
    ("tdx_init_vm_eagain", "0"),
    ("tdx_finalize_busy", "0"),
    ("tdx_fail_every", "0"),
    ("tdx_fail_errno", "11"),
    ("tdx_key_ids", "31"),
    ("tdx_max_tds", "0"),
    ("tdx_max_vcpus", "8"),
];

/// Names of all cases.
pub(super) fn names() -> Vec<String> {
    let list = Conformance::parse(LIST).expect("the list in the repository parses");
    list.case.into_iter().map(|case| case.name).collect()
}

/// Runs the case of that name, or all.
pub(super) fn run(report: &mut Report, only: Option<&str>) {
    let list = Conformance::parse(LIST).expect("the list in the repository parses");
    let kvm = Kvm::open();
    let wanted = |case: &&Case| only.is_none_or(|name| case.name == name);
    for case in list.case.iter().filter(wanted) {
        // Before it, for whoever ended early; after it, for whoever comes next and is no case of this list.
        reset_parameters();
        let result = run_case(&kvm, &list, case);
        reset_parameters();
        report.tell(&format!("conformance/{}", case.name), result);
    }
}

fn reset_parameters() {
    for (name, value) in PARAMETERS {
        sys::set_parameter(name, value).expect("a parameter of the module");
    }
}

fn run_case(kvm: &Kvm, list: &Conformance, case: &Case) -> Result<(), Failure> {
    let mut state = State::new(kvm);
    for (number, step) in list.calls(case).iter().enumerate() {
        let got = state.call(&step.call);
        let got_name = got
            .as_ref()
            .map_or_else(|errno| errno.name(), |()| "ok".to_owned());
        if got_name != step.expect {
            return Err(format!(
                "step {} ({:?}) ended with {got_name}, expected {}",
                number + 1,
                step.call,
                step.expect
            )
            .into());
        }
        if let Some(wrong) = mem::take(&mut state.wrong) {
            return Err(format!("step {} ({:?}): {wrong}", number + 1, step.call).into());
        }
    }
    Ok(())
}

/// What a case has made so far.
struct State<'a> {
    kvm: &'a Kvm,
    vm: Option<Vm>,
    /// VMs of earlier `create_vm`, alive until the case ends.
    others: Vec<Vm>,
    pages: Mapping,
    /// vCPU, flags and what is left of the last INIT_MEM_REGION.
    region: (u32, u32, [u64; 3]),
    /// A step ended as expected but left something that is not.
    wrong: Option<String>,
}

impl<'a> State<'a> {
    fn new(kvm: &'a Kvm) -> Self {
        Self {
            kvm,
            vm: None,
            others: Vec::new(),
            pages: Mapping::anonymous(64 * 4096),
            region: (0, 0, [0; 3]),
            wrong: None,
        }
    }

    fn vm(&self) -> Result<&Vm, Errno> {
        self.vm.as_ref().ok_or(Errno(libc::EBADF))
    }

    fn vm_mut(&mut self) -> Result<&mut Vm, Errno> {
        self.vm.as_mut().ok_or(Errno(libc::EBADF))
    }

    fn must_be<T: Copy + PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        got: T,
        expected: Option<T>,
    ) {
        if let Some(expected) = expected
            && got != expected
        {
            self.wrong = Some(format!("{what} is {got:x?}, expected {expected:x?}"));
        }
    }

    fn call(&mut self, call: &Call) -> Result<(), Errno> {
        match call {
            Call::CreateVm => {
                self.others.extend(self.vm.take());
                self.vm = Some(self.kvm.create(VM_TYPE_TDX)?);
                Ok(())
            }
            Call::SplitIrqchip => self.vm()?.enable_cap(CAP_SPLIT_IRQCHIP, 24),
            Call::ApicBusCycles { ns } => self.vm()?.enable_cap(CAP_APIC_BUS_CYCLES_NS, *ns),
            Call::Capabilities { nent, flags } => self.capabilities(*nent, *flags),
            Call::InitVm { .. } => self.init_vm(call),
            Call::CreateVcpu { vcpu } => self.vm_mut()?.create_vcpu(*vcpu),
            Call::SetCpuid { vcpu, x2apic, gpaw } => {
                let leaves = self.kvm.vcpu_cpuid(*vcpu, *x2apic, *gpaw);
                self.vm()?.set_cpuid(*vcpu, &leaves)
            }
            Call::TdCpuid {
                vcpu,
                nent,
                nent_updated,
            } => self.td_cpuid(*vcpu, *nent, *nent_updated),
            Call::InitVcpu { vcpu, flags, rcx } => {
                command(self.vm()?.vcpu(*vcpu)?, td::TDX_INIT_VCPU, *flags, *rcx, 0).0
            }
            Call::AddSlot { gpa, pages, gmem } => {
                self.vm_mut()?.add_slot(*gpa, pages * PAGE, *gmem)
            }
            Call::SetPrivate {
                gpa,
                pages,
                private,
            } => self.vm()?.convert(*gpa, pages * PAGE, *private),
            Call::InitMemRegion {
                vcpu,
                gpa,
                pages,
                flags,
                source,
                pointer,
                left,
            } => {
                if *pointer == Pointer::Bad {
                    let vcpu = self.vm()?.vcpu(*vcpu)?;
                    return command(vcpu, td::TDX_INIT_MEM_REGION, *flags, BAD, 0).0;
                }
                let source = match source {
                    Source::Aligned => self.pages.address(),
                    Source::Unaligned => self.pages.address() + 1,
                    Source::Null => 0,
                    Source::Unmapped => PAGE,
                };
                self.region = (*vcpu, *flags, [source, *gpa, *pages]);
                self.mem_region(*left)
            }
            Call::ResumeMemRegion { left } => self.mem_region(*left),
            Call::Finalize { hw_error } => {
                let (result, got) = command(self.vm()?.fd(), td::TDX_FINALIZE_VM, 0, 0, 0);
                self.must_be("hw_error", got, *hw_error);
                result
            }
            Call::Run { vcpu } => self.vm()?.run(*vcpu),
            other => self.call_beside_the_launch(other),
        }
    }

    /// Steps that are no call of the launch.
    fn call_beside_the_launch(&mut self, call: &Call) -> Result<(), Errno> {
        match call {
            Call::CloseVm => {
                self.vm = None;
                Ok(())
            }
            Call::Extension { cap, equals } => {
                let got = self.vm()?.extension((*cap).into())?;
                self.must_be("the extension", got, Some(*equals));
                Ok(())
            }
            Call::Prefault { gpa, pages } => self.vm()?.prefault(*gpa, pages * PAGE),
            Call::Command {
                on,
                id,
                hw_error_in,
            } => {
                let vm = self.vm()?;
                let fd = match on {
                    Target::Vm => vm.fd(),
                    Target::Vcpu => vm.vcpu(0)?,
                };
                command(fd, *id, 0, 0, *hw_error_in).0
            }
            Call::Inject {
                what,
                count,
                every,
                errno,
            } => inject(*what, *count, *every, errno),
            Call::Parameter { name, value } => set(name, &value.to_string()),
            Call::Ioctl { name } => ordinary::call(self.vm()?, name),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn init_vm(&mut self, call: &Call) -> Result<(), Errno> {
        let Call::InitVm {
            flags,
            attributes,
            xfam,
            cpuid,
            reserved,
            pointer,
            hw_error,
        } = call
        else {
            return Err(Errno(libc::ENOSYS));
        };
        let caps = self.vm()?.capabilities(256, 0)?;
        let leaves = leaves_for(&caps, *cpuid);
        let mut arg = td::init_vm(*attributes, *xfam, &leaves);
        if *cpuid == CpuidVariant::Padding {
            arg = arg.u32(260, 1);
        }
        if *cpuid == CpuidVariant::Nent257 {
            arg = arg.u32(256, 257);
        }
        if *reserved {
            arg = arg.u64(160 + 3 * 8, 1);
        }
        let address = match pointer {
            Pointer::Valid => arg.address(),
            Pointer::Bad => BAD,
        };
        let (result, got) = command(self.vm()?.fd(), td::TDX_INIT_VM, *flags, address, 0);
        self.must_be("hw_error", got, *hw_error);
        result
    }

    fn capabilities(&mut self, nent: u32, flags: u32) -> Result<(), Errno> {
        let mut caps = Bytes::new(2056 + 40 * td::MAX_LEAVES).u32(2048, nent);
        let address = caps.address();
        let (result, _) = command(self.vm()?.fd(), td::TDX_CAPABILITIES, flags, address, 0);
        match result {
            // Other than GET_CPUID, this call does not tell how many there are.
            Err(Errno(libc::E2BIG)) => self.must_be("nent", caps.get_u32(2048), Some(nent)),
            Err(_) => {}
            Ok(()) => self.wrong = wrong_capabilities(&caps),
        }
        result
    }

    fn td_cpuid(&mut self, vcpu: u32, nent: u32, nent_updated: bool) -> Result<(), Errno> {
        let mut list = Bytes::new(8 + 40 * td::MAX_LEAVES).u32(0, nent);
        let address = list.address();
        let (result, _) = command(self.vm()?.vcpu(vcpu)?, td::TDX_GET_CPUID, 0, address, 0);
        if nent_updated && list.get_u32(0) <= nent {
            self.wrong = Some(format!("nent is {} as before", list.get_u32(0)));
        }
        result
    }

    fn mem_region(&mut self, left: Option<u64>) -> Result<(), Errno> {
        let (vcpu, flags, mut region) = self.region;
        let before = region;
        let result = self.vm()?.init_mem_region(vcpu, flags, &mut region);
        self.region.2 = region;
        let done = before[2].wrapping_sub(region[2]).wrapping_mul(PAGE);
        let moved = [before[0].wrapping_add(done), before[1].wrapping_add(done)];
        self.must_be("source and GPA", [region[0], region[1]], Some(moved));
        self.must_be("pages left", region[2], left);
        result
    }
}

/// What upstream KVM's answer would not have. Linux 7.3, arch/x86/kvm/vmx/tdx.c, init_kvm_tdx_caps(),
/// td_init_cpuid_entry2().
fn wrong_capabilities(caps: &Bytes) -> Option<String> {
    const SEPT_VE_DISABLE: u64 = 1 << 28;
    const SETUP_EVENT_NOTIFY: u64 = 1 << 1;
    // Attributes; what kernel and user space may add to GetTdVmCallInfo.
    let words = [
        (0, SEPT_VE_DISABLE),
        (16, 0),
        (24, SETUP_EVENT_NOTIFY),
        (32, 0),
        (40, 0),
    ];
    for (at, wanted) in words {
        let got = caps.get_u64(at);
        if got != wanted {
            return Some(format!(
                "the word at {at} is {got:#x}, expected {wanted:#x}"
            ));
        }
    }
    let leaves = td::configurable(caps);
    let has = |function: u32| leaves.iter().find(|leaf| leaf[0] == function);
    let gpaw = has(0x8000_0008).is_some_and(|leaf| leaf[3] >> 16 & 0xff == 0xff);
    let stripped =
        has(7).is_none_or(|leaf| leaf[4] & (1 << 4 | 1 << 11) == 0 && leaf[5] & 1 << 5 == 0);
    let unflagged = leaves.iter().all(|leaf| leaf[2] == 0);
    (!gpaw || !stripped || !unflagged).then(|| {
        format!(
            "GPAW configurable: {gpaw}, TSX and WAITPKG stripped: {stripped}, no flags: {unflagged}"
        )
    })
}

fn inject(what: Injection, count: u32, every: u32, errno: &str) -> Result<(), Errno> {
    match what {
        Injection::InitVmEagain => set("tdx_init_vm_eagain", &count.to_string()),
        Injection::FinalizeBusy => set("tdx_finalize_busy", &count.to_string()),
        Injection::MemRegion => {
            let errno = Errno::named(errno).ok_or(Errno(libc::ENOSYS))?;
            set("tdx_fail_errno", &errno.0.to_string())?;
            set("tdx_fail_every", &every.to_string())
        }
    }
}

fn set(name: &str, value: &str) -> Result<(), Errno> {
    sys::set_parameter(name, value).map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EIO)))
}

fn leaves_for(caps: &Bytes, variant: CpuidVariant) -> Vec<Leaf> {
    let mut leaves = td::plain_leaves(caps);
    let gpaw = |eax| vec![[0x8000_0008, 0, 0, eax, 0, 0, 0]];
    let mut set = |function: u32, register: usize, bit: u32| {
        for leaf in leaves
            .iter_mut()
            .filter(|leaf| leaf[0] == function && leaf[1] == 0)
        {
            leaf[register] |= 1 << bit;
        }
    };
    match variant {
        CpuidVariant::OnlyGpaw => return gpaw(48 << 16),
        CpuidVariant::Empty => return Vec::new(),
        CpuidVariant::Gpaw255 => return gpaw(255 << 16),
        CpuidVariant::Gpaw0 => return gpaw(0),
        CpuidVariant::Gpaw52 => return gpaw(52 << 16),
        CpuidVariant::OutsideMask => set(1, 3, 0),
        CpuidVariant::Tsx => set(7, 4, 11),
        CpuidVariant::Waitpkg => set(7, 5, 5),
        CpuidVariant::Unflagged => {
            set(4, 6, 31);
            leaves.iter_mut().for_each(|leaf| leaf[2] = 0);
        }
        CpuidVariant::OtherIndex => {
            for leaf in leaves.iter_mut().filter(|leaf| leaf[0] == 1) {
                leaf[1..3].copy_from_slice(&[5, 1]);
            }
        }
        CpuidVariant::ExtraLeaf => leaves.push([0x4000_0000, 0, 0, 0, 0, 0, 0]),
        CpuidVariant::DuplicateLeaf => leaves.push([1, 0, 0, 0, 0, 0, 0]),
        CpuidVariant::Default | CpuidVariant::Padding | CpuidVariant::Nent257 => {}
    }
    leaves
}
