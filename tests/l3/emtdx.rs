//! What TDs run on, an L1 with the emulated TDX or a host that has TDX, and what is checked of one that has ended.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use tdvmm_firmware::image::{Contents, Image};
use tdvmm_firmware::measure::{self, Order};
use tdvmm_tests::debian::{Packages, Role};
use tdvmm_tests::fixture::Fixture;
use tdvmm_tests::fixture::install::{self, PROBE};
use tdvmm_tests::fixture::witness::{self, EndedTd};
use tdvmm_tests::guest::{self, Report, td};
use tdvmm_tests::harness::{Context, L1_KERNEL, MachineKind, Unmet};
use tdvmm_tests::l1::{Machine, Program};

use super::guests;

/// The L1 of TDs: the emulation's modules, strict as they are by default.
pub static TDX: MachineKind = MachineKind {
    name: "tdx",
    build: |packages| machine(packages, L1_KERNEL, 4096),
};

/// The same on the newest kernel, which the emulation builds against too.
pub static TDX_NEWEST: MachineKind = MachineKind {
    name: "tdx-newest",
    build: |packages| machine(packages, Role::Newest, 4096),
};

/// Room for a TD with memory above 4 GiB.
pub static TDX_BIG: MachineKind = MachineKind {
    name: "tdx-big",
    build: |packages| machine(packages, L1_KERNEL, 9216),
};

fn machine<'a>(packages: &'a Packages, role: Role, memory_mib: u32) -> Result<Machine<'a>> {
    let fixture = Fixture::open(packages, role)?;
    let mut machine = Machine::new(packages, role)?;
    machine.memory_mib = memory_mib;
    fixture.install(packages, &mut machine)?;
    let selftest = fixture.selftest();
    let initramfs = guest::td_initramfs(packages, GUEST_KERNEL, Some(&selftest))?;
    machine.archive().file(INITRAMFS, 0o644, initramfs);
    machine.add_kernel(GUEST_KERNEL, KERNEL)?;
    Ok(machine)
}

/// The same files on a host that has TDX itself, for lane L4.
pub static HOST: MachineKind = MachineKind {
    name: "host",
    build: |packages| {
        let mut machine = Machine::on_host(packages)?;
        install::add_files(packages, &mut machine)?;
        guests::add_initramfs(packages, &mut machine)?;
        let initramfs = guest::td_initramfs(packages, GUEST_KERNEL, None)?;
        machine.archive().file(INITRAMFS, 0o644, initramfs);
        machine.add_kernel(GUEST_KERNEL, KERNEL)?;
        Ok(machine)
    },
};

const GUEST_KERNEL: Role = Role::Main;
/// The guest's initramfs in L1.
pub const INITRAMFS: &str = "/tdx/initramfs";
/// The guest's kernel in L1.
pub const KERNEL: &str = "/tdx/kernel";

/// MRTD of Debian's OVMF for TDX, computed without a TD from the image that is in L1, whichever version the archive had.
/// (That the computation is right for the pinned one is a test of crate `tdvmm-firmware`.)
pub fn ovmf_mrtd() -> Result<&'static str> {
    static MRTD: OnceLock<String> = OnceLock::new();
    if let Some(mrtd) = MRTD.get() {
        return Ok(mrtd);
    }
    let file = install::blank_firmware(&Packages::open()?)?;
    let regions = Image::parse(&file)?.regions(&Contents::default())?;
    let mrtd = measure::mrtd(Order::PerPage, &regions)?;
    Ok(MRTD.get_or_init(|| mrtd.to_string()))
}

/// TDs that ended since the last time, as the witness tells; none on a host, which has no witness.
pub fn ended(context: &mut Context<'_>) -> Result<Vec<EndedTd>> {
    if context.l1.is_host() {
        return Ok(Vec::new());
    }
    witness::take_ended(context.l1)
}

/// A TD with OVMF booted and ended: what it reported is right, and what the witness saw, where there is one.
pub fn check_booted(context: &mut Context<'_>, cpus: u32, report: &Report) -> Result<()> {
    if context.l1.is_host() {
        return check_report(cpus, report);
    }
    let ended = witness::take_ended(context.l1)?;
    ensure!(ended.len() == 1, "{} TDs ended, not one", ended.len());
    check_td(cpus, report, &ended[0])
}

/// Ends the case as ignored on a host: it needs the emulation.
pub fn needs_emulation(context: &Context<'_>, what: &str) -> Result<()> {
    if context.l1.is_host() {
        return Err(Unmet::new("emulated-tdx", format!("{what} needs the emulated TDX")).into());
    }
    Ok(())
}

/// An idle ordinary VM for the rest of the case; see `probe::hold`.
pub fn hold(context: &mut Context<'_>) -> Result<()> {
    let run = context.l1.start(&Program::new(PROBE).args(["hold"]))?;
    context
        .l1
        .wait_for(run, "holding", context.left())
        .map(drop)
}

/// What the guest of a TD with OVMF says of itself.
fn check_report(cpus: u32, report: &Report) -> Result<()> {
    ensure!(
        report.cpus.len() == usize::try_from(cpus)?,
        "the guest sees {} CPUs",
        report.cpus.len()
    );
    ensure!(
        report.announcements == td::ANNOUNCEMENTS,
        "the guest's kernel says only {:?}",
        report.announcements
    );
    let mrtd = report.td_value("mrtd");
    ensure!(mrtd == Some(ovmf_mrtd()?), "the guest's MRTD is {mrtd:?}");
    Ok(())
}

/// The guest's report, the witness and the reference agree.
pub fn check_td(cpus: u32, report: &Report, ended: &EndedTd) -> Result<()> {
    check_report(cpus, report)?;
    ensure!(ended.vcpus == cpus, "the TD had {} vCPUs", ended.vcpus);
    ensure!(ended.end.is_empty(), "the TD died: {}", ended.end);
    ensure!(ended.mrtd == ovmf_mrtd()?, "MRTD is {}", ended.mrtd);
    let measured = [
        ("mrtd", &ended.mrtd),
        ("rtmr0", &ended.rtmr0),
        ("rtmr1", &ended.rtmr1),
        ("rtmr2", &ended.rtmr2),
        ("rtmr3", &ended.rtmr3),
    ];
    for (key, witnessed) in measured {
        let told = report.td_value(key);
        ensure!(
            told == Some(witnessed.as_str()),
            "the guest says {key} is {told:?}, the witness {witnessed}"
        );
    }
    let zero = "0".repeat(96);
    ensure!(
        ended.rtmr0 != zero && ended.rtmr1 != zero && ended.rtmr2 != zero,
        "an RTMR is zero"
    );
    ensure!(
        ended.pages.accepted > 0 && ended.pages.converted > 0,
        "{:?}",
        ended.pages
    );
    Ok(())
}
