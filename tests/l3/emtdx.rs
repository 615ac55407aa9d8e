//! The emulated TDX itself: its ABI against the conformance list, TDs of one page and under stress, and QEMU, which
//! nobody here wrote, launching OVMF and Debian's kernel on it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::fixture::install::{self, FIRMWARE_BLANK, PROBE, STRESS_IMAGE};
use tdvmm_tests::fixture::witness::{self, EndedTd};
use tdvmm_tests::fixture::{Fixture, SERIES};
use tdvmm_tests::guest::{self, MARKER, REPORT_END, Report, Then, td};
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, MachineKind, Tier, Unmet};
use tdvmm_tests::l1::{Machine, Outcome, Program, RunId};
use tdvmm_tests::{probe, qemu};

use super::guests;

/// The L1 of TDs: the emulation's modules, strict as they are by default.
pub static TDX: MachineKind = MachineKind {
    name: "tdx",
    build: |packages| machine(packages, L1_KERNEL, 4096),
};

/// The same on the other kernel series that the emulation builds against.
static TDX_NEWEST: MachineKind = MachineKind {
    name: "tdx-newest",
    build: |packages| machine(packages, SERIES[1], 4096),
};

/// Room for a TD with memory above 4 GiB.
pub static TDX_BIG: MachineKind = MachineKind {
    name: "tdx-big",
    build: |packages| machine(packages, L1_KERNEL, 9216),
};

fn machine<'a>(
    packages: &'a tdvmm_tests::debian::Packages,
    series: &str,
    memory_mib: u32,
) -> Result<Machine<'a>> {
    let fixture = Fixture::open(packages, series)?;
    let mut machine = Machine::new(packages, series)?;
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

const GUEST_KERNEL: &str = "7.2";
/// The guest's initramfs in L1.
pub const INITRAMFS: &str = "/tdx/initramfs";
/// The guest's kernel in L1.
pub const KERNEL: &str = "/tdx/kernel";
const QUOTE_SOCKET: &str = "/tmp/quotes";

/// MRTD of Debian's OVMF for TDX, release 2026.08+ds-2, computed without a TD.
pub const OVMF_MRTD: &str = "a7a1f751abc454f9cbab198ca8d2edb2821935df525c74182b5e776cb0929e8c\
                         59aefecce725b0d08a5e9d3d3183bd08";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for name in probe::conformance_names() {
        cases.push(probe_case("tdx-conformance", "conformance", &name));
    }
    for name in probe::tiny_names() {
        cases.push(probe_case("tdx-tiny", "tiny", &name));
    }
    let quick = Tier::Representative;
    cases.extend([
        stress("tdx-stress-2cpu", quick, &TDX, ["2", "1000", "accept", "0"]),
        stress(
            "tdx-stress-touch-2cpu",
            quick,
            &TDX,
            ["2", "500", "touch", "0"],
        ),
        stress(
            "tdx-stress-soak-2cpu",
            Tier::Full,
            &TDX,
            ["2", "4000", "accept", "20000"],
        ),
        stress(
            "tdx-stress-4cpu",
            Tier::Full,
            &TDX,
            ["4", "300", "accept", "1000"],
        ),
        accounting(),
        whole_list_on_newest(),
        stress(
            "tdx-newest-stress-2cpu",
            Tier::Full,
            &TDX_NEWEST,
            ["2", "1000", "accept", "0"],
        ),
        qemu_plain(),
    ]);
    let td = |cpus| QemuTd {
        cpus,
        memory_mib: 512,
        words: "",
    };
    cases.extend([
        qemu_td("qemu-td-1cpu", Tier::Full, &TDX, td(1)),
        qemu_td("qemu-td-2cpu", quick, &TDX, td(2)),
        qemu_td("qemu-td-4cpu", Tier::Full, &TDX, td(4)),
        qemu_td("qemu-td-8cpu", Tier::Full, &TDX, td(8)),
        qemu_td("tdx-newest-qemu-td-2cpu", Tier::Full, &TDX_NEWEST, td(2)),
        qemu_td(
            "qemu-td-quote",
            quick,
            &TDX,
            QemuTd {
                words: "tdvmm.quote tdvmm.selftest",
                ..td(1)
            },
        ),
        qemu_td(
            "qemu-td-6g",
            Tier::Full,
            &TDX_BIG,
            QemuTd {
                memory_mib: 6144,
                ..td(2)
            },
        ),
    ]);
    cases
}

// ---- the prober's cases --------------------------------------------------------------------------------------

fn probe_case(group: &str, command: &'static str, name: &str) -> Case {
    let case = name.to_owned();
    Case {
        name: format!("{group}/{name}"),
        tier: Tier::Representative,
        machine: &TDX,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(60),
        run: Box::new(move |context| {
            probe_passes(context, &Program::new(PROBE).args([command, case.as_str()])).map(drop)
        }),
    }
}

fn stress(
    name: &str,
    tier: Tier,
    machine: &'static MachineKind,
    [cpus, pages, how, soak]: [&'static str; 4],
) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(300),
        run: Box::new(move |context| {
            hold(context)?;
            let program =
                Program::new(PROBE).args(["stress", STRESS_IMAGE, cpus, pages, how, soak, "240"]);
            let output = probe_passes(context, &program)?;
            let figures = output.lines().find(|line| line.contains("pages: accepted"));
            context.note(figures.unwrap_or_default().trim().to_owned());
            Ok(())
        }),
    }
}

/// The list as one case, where it need not be told line by line.
fn whole_list_on_newest() -> Case {
    Case {
        name: "tdx-newest-conformance".to_owned(),
        tier: Tier::Full,
        machine: &TDX_NEWEST,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(120),
        run: Box::new(|context| {
            probe_passes(context, &Program::new(PROBE).args(["conformance"]))?;
            probe_passes(context, &Program::new(PROBE).args(["tiny"])).map(drop)
        }),
    }
}

/// Runs the prober; its failures are the case's.
fn probe_passes(context: &mut Context<'_>, program: &Program) -> Result<String> {
    let (end, output) = context.l1.run(program, context.left())?;
    let failures: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    ensure!(
        end.outcome == Outcome::Exited(0) && failures.is_empty(),
        "the prober ended with {:?}: {}",
        end.outcome,
        if failures.is_empty() {
            output.as_str()
        } else {
            &failures[0]
        }
    );
    Ok(output)
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

// ---- what TDs leave behind --------------------------------------------------------------------------------------

/// Descriptors, key ids and memory after 20 TDs. One script does it all, so that what the testbed itself keeps for each
/// run of a program is not counted. In every run `td-accounting-20-tds` does the same with `tdvmm`.
fn accounting() -> Case {
    Case {
        name: "tdx-accounting-20-tds".to_owned(),
        tier: Tier::Full,
        machine: &TDX,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(300),
        run: Box::new(|context| {
            let script = format!(
                "b=/bin/busybox
                td() {{ {PROBE} stress {STRESS_IMAGE} 1 400 accept 0 60 || exit 1; }}
                {LEFT}
                td; left BEFORE
                for i in $($b seq 20); do td; done
                left AFTER"
            );
            let (end, output) = context.l1.run(&Program::script(&script), context.left())?;
            ensure!(
                end.outcome == Outcome::Exited(0),
                "the script ended with {:?}: {output}",
                end.outcome
            );
            Left::check(context, &output)
        }),
    }
}

/// The function `left` of a script, which prints a line for [`Left`].
pub const LEFT: &str = "left() {
    echo 3 > /proc/sys/vm/drop_caches; $b sleep 3
    echo $1 $($b awk '/MemAvailable/ { print $2 }' /proc/meminfo) $($b cat /proc/sys/fs/file-nr)
}";

/// What L1 has left: MemAvailable, and open files.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    memory_kib: u64,
    files: u64,
}

impl Left {
    /// What a script printed as BEFORE and AFTER is the same, and no key id is in use.
    pub fn check(context: &mut Context<'_>, output: &str) -> Result<()> {
        let before = Self::parse(output, "BEFORE").context("no figures before")?;
        let after = Self::parse(output, "AFTER").context("no figures after")?;
        context.note(format!("before {before:?}, after {after:?}"));
        if context.l1.is_host() {
            // Others work on it, too; key ids that leak would have run out.
            return Ok(());
        }
        let key_ids = witness::host_state(context.l1)?.key_ids_used;
        ensure!(key_ids == 0, "{key_ids} key ids are still in use");
        ensure!(
            after.files <= before.files,
            "{} files were open before, {} are now",
            before.files,
            after.files
        );
        ensure!(
            after.memory_kib + 4096 >= before.memory_kib,
            "MemAvailable fell from {} to {} KiB",
            before.memory_kib,
            after.memory_kib
        );
        Ok(())
    }

    fn parse(output: &str, label: &str) -> Option<Self> {
        let line = output.lines().find(|line| line.starts_with(label))?;
        let mut words = line.split_whitespace().skip(1);
        let mut number = || words.next()?.parse().ok();
        Some(Self {
            memory_kib: number()?,
            files: number()?,
        })
    }
}

// ---- QEMU ---------------------------------------------------------------------------------------------------------

/// A TD that QEMU launches.
#[derive(Clone, Copy, Debug)]
pub struct QemuTd {
    /// vCPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Added to the kernel's command line.
    pub words: &'static str,
}

impl QemuTd {
    /// The command that launches it.
    pub fn command(&self) -> Program {
        let object = format!(
            r#"{{"qom-type":"tdx-guest","id":"tdx0","quote-generation-socket":{{"type":"unix","path":"{QUOTE_SOCKET}"}}}}"#
        );
        let line = format!("{} {}", guest::command_line(Then::PowerOff), self.words);
        Program::new(qemu::PATH_IN_L1)
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-object", &object])
            .args([
                "-machine",
                "q35,kernel-irqchip=split,confidential-guest-support=tdx0",
            ])
            .args([
                "-accel",
                "kvm",
                "-cpu",
                "host,check=off",
                "-bios",
                FIRMWARE_BLANK,
            ])
            .args([
                "-smp",
                &self.cpus.to_string(),
                "-m",
                &self.memory_mib.to_string(),
            ])
            .args(["-serial", "stdio", "-kernel", KERNEL, "-initrd", INITRAMFS])
            .args(["-append", &line])
    }
}

fn qemu_td(name: &str, tier: Tier, machine: &'static MachineKind, td: QemuTd) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine,
        prepare: |machine| machine.add_qemu(),
        deadline: Duration::from_secs(if td.memory_mib > 1024 || td.cpus > 4 {
            480
        } else {
            240
        }),
        run: Box::new(move |context| boot_td(context, td)),
    }
}

fn boot_td(context: &mut Context<'_>, td: QemuTd) -> Result<()> {
    hold(context)?;
    let service = context
        .l1
        .start(&Program::new(PROBE).args(["quotes", QUOTE_SOCKET]))?;
    context.l1.wait_for(service, "serving", context.left())?;
    witness::take_ended(context.l1)?;

    let run = context.l1.start(&td.command())?;
    let up = context.l1.wait_for(run, MARKER, context.left())?;
    context.l1.wait_for(run, REPORT_END, context.left())?;
    let report = Report::parse(&context.l1.output(run))?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(0),
        "QEMU ended with {:?}",
        end.outcome
    );

    let ended = witness::take_ended(context.l1)?;
    ensure!(ended.len() == 1, "{} TDs ended, not one", ended.len());
    check_td(td.cpus, &report, &ended[0])?;
    if td.words.contains("quote") {
        check_quote(context, &report, service)?;
    }
    context.note(format!(
        "marker after {:.1} s; {} pages accepted, {} #VE",
        up.as_secs_f64(),
        ended[0].pages.accepted,
        ended[0].exits.ve
    ));
    Ok(())
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
    ensure!(mrtd == Some(OVMF_MRTD), "the guest's MRTD is {mrtd:?}");
    Ok(())
}

/// The guest's report, the witness and the reference agree.
pub fn check_td(cpus: u32, report: &Report, ended: &EndedTd) -> Result<()> {
    check_report(cpus, report)?;
    ensure!(ended.vcpus == cpus, "the TD had {} vCPUs", ended.vcpus);
    ensure!(ended.end.is_empty(), "the TD died: {}", ended.end);
    ensure!(ended.mrtd == OVMF_MRTD, "MRTD is {}", ended.mrtd);
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

/// The mock service's quote came back through configfs, and the kernel's own test passed.
fn check_quote(context: &Context<'_>, report: &Report, service: RunId) -> Result<()> {
    let quote = report
        .td_value("quote")
        .context("the guest tells of no quote")?;
    // "MOCK QUOTE: anyb" in hex
    ensure!(
        quote.starts_with("tdx_guest ") && quote.ends_with("4d4f434b2051554f54453a20616e7962"),
        "the quote is {quote}"
    );
    let asked = context.l1.output(service);
    ensure!(
        asked.contains("quote for report data of the test."),
        "the service says: {asked}"
    );
    let end = report
        .td_value("selftest-end")
        .context("the kernel's own test did not run")?;
    ensure!(
        end == "exit status: 0",
        "the kernel's own test: {end}, {:?}",
        report.td
    );
    Ok(())
}

/// An ordinary VM on the same modules.
fn qemu_plain() -> Case {
    Case {
        name: "qemu-plain-on-tdx-modules".to_owned(),
        tier: Tier::Representative,
        machine: &TDX,
        prepare: |machine| machine.add_qemu(),
        deadline: Duration::from_secs(120),
        run: Box::new(|context| {
            let program = Program::new(qemu::PATH_IN_L1)
                .args([
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-no-reboot",
                ])
                .args([
                    "-machine",
                    "q35,kernel-irqchip=split",
                    "-accel",
                    "kvm",
                    "-cpu",
                    "host",
                ])
                .args(["-smp", "2", "-m", "512", "-serial", "stdio"])
                .args(["-kernel", KERNEL, "-initrd", INITRAMFS])
                .args(["-append", &guest::command_line(Then::PowerOff)]);
            let run = context.l1.start(&program)?;
            let up = context.l1.wait_for(run, MARKER, context.left())?;
            context.l1.wait_for(run, REPORT_END, context.left())?;
            let report = Report::parse(&context.l1.output(run))?;
            ensure!(
                report.td.is_empty() && report.announcements.is_empty(),
                "an ordinary VM says it is a TD: {:?}",
                report.td
            );
            let end = context.l1.wait_end(run, context.left())?;
            ensure!(
                end.outcome == Outcome::Exited(0),
                "QEMU ended with {:?}",
                end.outcome
            );
            context.note(format!("marker after {:.1} s", up.as_secs_f64()));
            Ok(())
        }),
    }
}
