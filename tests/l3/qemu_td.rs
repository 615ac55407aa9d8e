//! QEMU, which nobody here wrote, launches OVMF and Debian's kernel on the emulated TDX.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::fixture::install::{FIRMWARE_BLANK, PROBE};
use tdvmm_tests::fixture::witness;
use tdvmm_tests::guest::{self, Report, Then};
use tdvmm_tests::harness::{Case, Context, MachineKind, Tier};
use tdvmm_tests::l1::{Program, RunId};
use tdvmm_tests::qemu;

use super::emtdx::{INITRAMFS, KERNEL, TDX, TDX_BIG, TDX_NEWEST, check_td, hold};
use super::guests;

const QUOTE_SOCKET: &str = "/tmp/quotes";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let td = |cpus| QemuTd {
        cpus,
        memory_mib: 512,
        words: "",
    };
    let with_quote = QemuTd {
        words: "tdvmm.quote tdvmm.selftest",
        ..td(1)
    };
    let big = QemuTd {
        memory_mib: 6144,
        ..td(2)
    };
    let (quick, full) = (Tier::Representative, Tier::Full);
    vec![
        qemu_plain(),
        // With one vCPU, since a second one takes half as long again: it spins in OVMF.
        qemu_td("qemu-td-quote", quick, &TDX, with_quote),
        qemu_td("qemu-td-1cpu", full, &TDX, td(1)),
        qemu_td("qemu-td-2cpu", full, &TDX, td(2)),
        qemu_td("qemu-td-4cpu", full, &TDX, td(4)),
        qemu_td("qemu-td-8cpu", full, &TDX, td(8)),
        qemu_td("tdx-newest-qemu-td-2cpu", full, &TDX_NEWEST, td(2)),
        qemu_td("qemu-td-6g", full, &TDX_BIG, big),
    ]
}

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
            .args(qemu::BARE)
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

    let (report, up) = guests::boot(context, &td.command())?;
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

/// An ordinary VM on the same modules. In every run `boot-time-against-qemu` has one.
fn qemu_plain() -> Case {
    Case {
        name: "qemu-plain-on-tdx-modules".to_owned(),
        tier: Tier::Full,
        machine: &TDX,
        prepare: |machine| machine.add_qemu(),
        deadline: Duration::from_secs(120),
        run: Box::new(|context| {
            let program = Program::new(qemu::PATH_IN_L1)
                .args(qemu::BARE)
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
            let (report, up) = guests::boot(context, &program)?;
            ensure!(
                report.td.is_empty() && report.announcements.is_empty(),
                "an ordinary VM says it is a TD: {:?}",
                report.td
            );
            context.note(format!("marker after {:.1} s", up.as_secs_f64()));
            Ok(())
        }),
    }
}
