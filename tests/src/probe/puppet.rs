//! A TD that makes the TDVMCALLs it is told, one by one; the code that runs in it is
//! `tests/emulated-tdx/guest/puppet.c`.
//!
//! So exits are seen that only an odd guest or an odd VMM causes: MSR accesses that user space is asked about, MapGPA
//! with every answer, and what a KVM_RUN with `immediate_exit` leaves of a guest's registers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::stress::{self, Orders};
use super::sys::{self, Bytes, Errno, Mapping};
use super::td::{Kvm, Vm};
use super::{Failure, Report, ordinary};

const ORDER: u64 = 0x600;
const ANSWER: u64 = 0x604;
/// A port of neither.
const OTHER_PORT: u64 = 0x77;
/// What the guest has in XMM0 during a call.
const MARK: u64 = 0x6b72_616d_206d_6d78;

const RDMSR: u64 = 31;
const WRMSR: u64 = 32;
const IO: u64 = 30;
const MAP_GPA: u64 = 0x10001;
const SHARED: u64 = 1 << 47;

const INVALID_OPERAND: u64 = 1 << 63;
const UNSUPPORTED: u64 = 1 << 63 | 3;
const RETRY: u64 = 1;

const EXIT_IO: u64 = 2;
const EXIT_HYPERCALL: u64 = 3;
const EXIT_RDMSR: u64 = 29;
const EXIT_WRMSR: u64 = 30;

const CAP_USER_SPACE_MSR: u32 = 188;
const CAP_EXIT_HYPERCALL: u32 = 201;
const SET_MSR_FILTER: u64 = 0x4188_aec6;
/// Reasons of MSR exits, and the mask of capability 188.
const INVAL: u64 = 1;
const UNKNOWN: u64 = 2;
const FILTER: u64 = 4;

/// Of the list that KVM emulates for a TD; not of it.
const MISC_ENABLE: u64 = 0x1a0;
const FEAT_CTL: u64 = 0x3a;
const EFER: u64 = 0xc000_0080;
const LSTAR: u64 = 0xc000_0082;

type Test = fn(&Puppet) -> Result<(), Failure>;

const CASES: [(&str, Test); 5] = [
    ("msr_without_capability_is_refused", msr_without_capability),
    ("msr_exits_have_the_reason_asked_for", msr_exits),
    ("msr_that_is_filtered_exits_as_such", msr_filtered),
    ("map_gpa_ends_as_user_space_says", map_gpa),
    ("immediate_exit_keeps_the_guests_registers", immediate_exit),
];

/// Names of all cases.
pub(super) fn names() -> Vec<String> {
    CASES.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// Runs the case of that name, or all.
pub(super) fn run(report: &mut Report, image: &str, only: Option<&str>) {
    let kvm = Kvm::open();
    for (name, test) in CASES {
        if only.is_none_or(|wanted| wanted == name) {
            let result = Puppet::launch(&kvm, image)
                .map_err(|errno| format!("the launch ended with {}", errno.name()).into())
                .and_then(|puppet| test(&puppet));
            report.tell(&format!("calls/{name}"), result);
        }
    }
}

struct Puppet {
    vm: Vm,
    run: Mapping,
}

/// What a call left in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    status: u64,
    r11: u64,
}

/// How a call went wrong.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// KVM_RUN failed.
    Run(Errno),
    /// XMM0 was not what it was before.
    Xmm0(u64),
}

impl Puppet {
    fn launch(kvm: &Kvm, image: &str) -> Result<Self, Errno> {
        let orders = Orders {
            image: image.to_owned(),
            vcpus: 1,
            pages: 0,
            touch: false,
            soak: 0,
            puppet: true,
            seconds: 0,
        };
        let vm = stress::build(kvm, kvm.create(5)?, &orders)?;
        let run = Mapping::of_file(vm.vcpu(0)?, kvm.run_size());
        Ok(Self { vm, run })
    }

    /// Lets the guest make a call. Each exit that it causes, by number, is `serve`'s.
    fn call(
        &self,
        registers: [u64; 6],
        mut serve: impl FnMut(u64, &Mapping),
    ) -> Result<Answer, Wrong> {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let mut orders = registers.into_iter().flat_map(halves);
        let mut answers = Vec::new();
        while answers.len() < 6 {
            self.vm.run(0).map_err(Wrong::Run)?;
            let exit = self.run.get(8, 4);
            let port = self.run.get(34, 2);
            if exit == EXIT_IO && [ORDER, ANSWER].contains(&port) {
                let at = usize::try_from(self.run.get(40, 8)).expect("inside of the mapping");
                if port == ORDER {
                    let order = orders.next().expect("it asks for 12 halves");
                    self.run.put(at, &order.to_le_bytes());
                } else {
                    answers.push(self.run.get(at, 4));
                }
            } else {
                serve(exit, &self.run);
            }
        }
        let whole = |i: usize| answers[i] | answers[i + 1] << 32;
        if whole(4) != MARK {
            return Err(Wrong::Xmm0(whole(4)));
        }
        Ok(Answer {
            status: whole(0),
            r11: whole(2),
        })
    }

    /// The same where the guest is answered without user space.
    fn quiet_call(&self, registers: [u64; 6]) -> Result<Answer, Failure> {
        let mut exits = Vec::new();
        let answer = self.call(registers, |exit, _| exits.push(exit));
        if exits.is_empty() {
            return answer.map_err(Failure::from);
        }
        Err(format!("{registers:x?} gave exits {exits:?}").into())
    }

    /// An MSR call that must exit; user space answers with `error` and `data`. Reason, index, data of the exit.
    fn msr_exit(
        &self,
        registers: [u64; 6],
        (error, data): (u8, u64),
    ) -> Result<([u64; 4], Answer), Failure> {
        let mut seen = Vec::new();
        let answer = self.call(registers, |exit, run| {
            seen.push([exit, run.get(40, 4), run.get(44, 4), run.get(48, 8)]);
            run.put(32, &[error]);
            run.put(48, &data.to_le_bytes());
        })?;
        match seen.as_slice() {
            [one] => Ok((*one, answer)),
            other => Err(format!("{registers:x?} gave exits {other:x?}").into()),
        }
    }

    fn msr_mask(&self, reasons: u64) -> Result<(), Failure> {
        let result = self.vm.enable_cap(CAP_USER_SPACE_MSR, reasons);
        result.map_err(|errno| format!("capability 188: {}", errno.name()).into())
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Run(errno) => format!("KVM_RUN ended with {}", errno.name()).into(),
            Wrong::Xmm0(value) => format!("XMM0 of the guest became {value:#x}").into(),
        }
    }
}

fn must_be<T: std::fmt::Debug + PartialEq>(what: &str, got: T, wanted: T) -> Result<(), Failure> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: {got:x?}, expected {wanted:x?}").into())
}

fn read(index: u64) -> [u64; 6] {
    [0, RDMSR, index, 0, 0, 0]
}

fn write(index: u64, data: u64) -> [u64; 6] {
    [0, WRMSR, index, data, 0, 0]
}

fn msr_without_capability(puppet: &Puppet) -> Result<(), Failure> {
    for registers in [
        read(LSTAR),
        write(LSTAR, 1),
        write(FEAT_CTL, 1),
        write(EFER, 0),
    ] {
        let answer = puppet.quiet_call(registers)?;
        must_be(&format!("{registers:x?}"), answer.status, INVALID_OPERAND)?;
    }
    // Locked, and no local machine checks.
    let answer = puppet.quiet_call(read(FEAT_CTL))?;
    must_be("FEAT_CTL", (answer.status, answer.r11), (0, 1))?;
    must_be(
        "MISC_ENABLE",
        puppet.quiet_call(read(MISC_ENABLE))?.status,
        0,
    )
}

/// tdx_get_msr() and tdx_set_msr() return 1 for what they do not have, which KVM takes for INVAL.
fn msr_exits(puppet: &Puppet) -> Result<(), Failure> {
    puppet.msr_mask(UNKNOWN | FILTER)?;
    for registers in [read(LSTAR), write(LSTAR, 1), write(EFER, 0)] {
        let answer = puppet.quiet_call(registers)?;
        must_be(&format!("{registers:x?}"), answer.status, INVALID_OPERAND)?;
    }
    puppet.msr_mask(INVAL)?;
    let (exit, answer) = puppet.msr_exit(read(LSTAR), (0, 0x1122_3344_5566_7788))?;
    must_be("RDMSR exit", exit, [EXIT_RDMSR, INVAL, LSTAR, 0])?;
    must_be(
        "its answer",
        (answer.status, answer.r11),
        (0, 0x1122_3344_5566_7788),
    )?;
    let (exit, answer) = puppet.msr_exit(write(LSTAR, 0xfeed_0000_0001), (0, 0))?;
    must_be(
        "WRMSR exit",
        exit,
        [EXIT_WRMSR, INVAL, LSTAR, 0xfeed_0000_0001],
    )?;
    must_be("its answer", answer.status, 0)?;
    let (exit, answer) = puppet.msr_exit(write(EFER, 0), (1, 0))?;
    must_be("WRMSR of EFER", exit, [EXIT_WRMSR, INVAL, EFER, 0])?;
    must_be("its refusal", answer.status, INVALID_OPERAND)
}

/// The filter is asked before the list: also for MSRs that KVM would refuse.
fn msr_filtered(puppet: &Puppet) -> Result<(), Failure> {
    let denied = Mapping::anonymous(4096);
    let mut filter = Bytes::new(392);
    for (at, index) in [(8, MISC_ENABLE), (32, LSTAR)] {
        let index = u32::try_from(index).expect("an MSR");
        filter = filter
            .u32(at, 3) // reads and writes
            .u32(at + 4, 1)
            .u32(at + 8, index)
            .u64(at + 16, denied.address());
    }
    sys::ioctl(puppet.vm.fd(), SET_MSR_FILTER, &mut filter)
        .map_err(|errno| format!("SET_MSR_FILTER: {}", errno.name()))?;
    puppet.msr_mask(INVAL | UNKNOWN)?;
    for index in [MISC_ENABLE, LSTAR] {
        let answer = puppet.quiet_call(read(index))?;
        must_be("a denied MSR", answer.status, INVALID_OPERAND)?;
    }
    puppet.msr_mask(FILTER)?;
    for index in [MISC_ENABLE, LSTAR] {
        let (exit, answer) = puppet.msr_exit(read(index), (0, 7))?;
        must_be("RDMSR exit", exit, [EXIT_RDMSR, FILTER, index, 0])?;
        must_be("its answer", (answer.status, answer.r11), (0, 7))?;
    }
    must_be("FEAT_CTL", puppet.quiet_call(read(FEAT_CTL))?.status, 0)
}

fn map_gpa(puppet: &Puppet) -> Result<(), Failure> {
    let gpa = 0x10_0000 | SHARED;
    let registers = [0, MAP_GPA, gpa, 0x2000, 0, 0];
    let answer = puppet.quiet_call(registers)?;
    must_be(
        "without exits",
        (answer.status, answer.r11),
        (UNSUPPORTED, gpa),
    )?;
    let result = puppet.vm.enable_cap(CAP_EXIT_HYPERCALL, 1 << 12);
    result.map_err(|errno| format!("capability 201: {}", errno.name()))?;
    let with = |ret: i64| {
        puppet.call(registers, |exit, run| {
            assert_eq!(exit, EXIT_HYPERCALL);
            run.put(88, &ret.to_le_bytes());
        })
    };
    must_be("done", with(0)?.status, 0)?;
    let answer = with(libc::EAGAIN.into())?;
    must_be("to be retried", (answer.status, answer.r11), (RETRY, gpa))?;
    let answer = with(libc::EINVAL.into())?;
    must_be(
        "refused",
        (answer.status, answer.r11),
        (INVALID_OPERAND, gpa),
    )?;
    must_be(
        "a negative errno",
        with(-i64::from(libc::EINVAL)),
        Err(Wrong::Run(Errno(libc::EINVAL))),
    )
}

/// KVM_RUN with `immediate_exit` swaps the FPU state and enters no guest. Threads that want the CPU make it likely that
/// this one is scheduled out in between.
fn immediate_exit(puppet: &Puppet) -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..4 {
        let stop = Arc::clone(&stop);
        thread::spawn(move || while !stop.load(Ordering::Relaxed) {});
    }
    let mut unlike = Vec::new();
    let answer = puppet.call([0, IO, 4, 1, OTHER_PORT, 0], |_, run| {
        run.put(1, &[1]);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let result = puppet.vm.run(0);
            if result != Err(Errno(libc::EINTR)) {
                unlike.push(result);
                break;
            }
        }
        run.put(1, &[0]);
    });
    stop.store(true, Ordering::Relaxed);
    must_be("KVM_RUN", unlike, Vec::new())?;
    must_be("the call", answer?.status, 0)?;
    // Nor did it open the guest's state to user space.
    let result = ordinary::call(&puppet.vm, "get_fpu");
    must_be("GET_FPU", result, Err(Errno(libc::EINVAL)))
}
