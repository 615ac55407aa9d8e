//! TDVMCALLs one by one, for exits that only an odd guest or an odd VMM causes: MSR accesses that user space is asked
//! about, MapGPA with every answer, and what a KVM_RUN with `immediate_exit` leaves of a guest's registers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::puppet::{Answer, Puppet, Wrong};
use super::sys::{self, Bytes, Errno, Mapping};
use super::td::Kvm;
use super::{Failure, Report, ordinary};

/// A port that the guest's orders and answers do not use.
const OTHER_PORT: u64 = 0x77;

const RDMSR: u64 = 31;
const WRMSR: u64 = 32;
const IO: u64 = 30;
const MAP_GPA: u64 = 0x10001;
const SHARED: u64 = 1 << 47;

const INVALID_OPERAND: u64 = 1 << 63;
const UNSUPPORTED: u64 = 1 << 63 | 3;
const RETRY: u64 = 1;

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

/// Three of the list that KVM emulates for a TD, two of them read-only, and one that is not of it.
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

/// An MSR call that must exit once, and that user space answers with `error` and `data`: number, reason, index and data
/// of the exit, and what the guest was told.
fn msr_exit(
    puppet: &Puppet,
    registers: [u64; 6],
    (error, data): (u8, u64),
) -> Result<([u64; 4], Answer), Failure> {
    let mut seen = Vec::new();
    let answer = puppet.call(registers, |exit, run| {
        seen.push([exit, run.get(40, 4), run.get(44, 4), run.get(48, 8)]);
        run.put(32, &[error]);
        run.put(48, &data.to_le_bytes());
    })?;
    match seen.as_slice() {
        [one] => Ok((*one, answer)),
        other => Err(format!("{registers:x?} gave exits {other:x?}").into()),
    }
}

fn msr_mask(puppet: &Puppet, reasons: u64) -> Result<(), Failure> {
    let result = puppet.vm.enable_cap(CAP_USER_SPACE_MSR, reasons);
    result.map_err(|errno| format!("capability 188: {}", errno.name()).into())
}

fn must_be<T: Copy + fmt::Debug + PartialEq>(what: &str, got: T, wanted: T) -> Result<(), Failure> {
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
    msr_mask(puppet, UNKNOWN | FILTER)?;
    for registers in [read(LSTAR), write(LSTAR, 1), write(EFER, 0)] {
        let answer = puppet.quiet_call(registers)?;
        must_be(&format!("{registers:x?}"), answer.status, INVALID_OPERAND)?;
    }
    msr_mask(puppet, INVAL)?;
    let (exit, answer) = msr_exit(puppet, read(LSTAR), (0, 0x1122_3344_5566_7788))?;
    must_be("RDMSR exit", exit, [EXIT_RDMSR, INVAL, LSTAR, 0])?;
    must_be(
        "its answer",
        (answer.status, answer.r11),
        (0, 0x1122_3344_5566_7788),
    )?;
    let (exit, answer) = msr_exit(puppet, write(LSTAR, 0xfeed_0000_0001), (0, 0))?;
    must_be(
        "WRMSR exit",
        exit,
        [EXIT_WRMSR, INVAL, LSTAR, 0xfeed_0000_0001],
    )?;
    must_be("its answer", answer.status, 0)?;
    let (exit, answer) = msr_exit(puppet, write(EFER, 0), (1, 0))?;
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
    msr_mask(puppet, INVAL | UNKNOWN)?;
    for index in [MISC_ENABLE, LSTAR] {
        let answer = puppet.quiet_call(read(index))?;
        must_be("a denied MSR", answer.status, INVALID_OPERAND)?;
    }
    msr_mask(puppet, FILTER)?;
    for index in [MISC_ENABLE, LSTAR] {
        let (exit, answer) = msr_exit(puppet, read(index), (0, 7))?;
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
    let mut unlike = None;
    let answer = puppet.call([0, IO, 4, 1, OTHER_PORT, 0], |_, run| {
        run.put(1, &[1]);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let result = puppet.vm.run(0);
            if result != Err(Errno(libc::EINTR)) {
                unlike = Some(result);
                break;
            }
        }
        run.put(1, &[0]);
    });
    stop.store(true, Ordering::Relaxed);
    must_be("KVM_RUN", unlike, None)?;
    must_be("the call", answer?.status, 0)?;
    // Nor did it open the guest's state to user space.
    let result = ordinary::call(&puppet.vm, "get_fpu");
    must_be("GET_FPU", result, Err(Errno(libc::EINVAL)))
}
