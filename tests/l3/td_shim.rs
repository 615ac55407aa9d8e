//! TDs that TD-Shim's way of booting starts: the kernel in a section of the image, memory, ACPI tables and payload
//! told by the TD HOB. By a firmware of our own (`tests/guests/shim`), which checks all that it is handed, and by
//! real TD-Shim images where [`shim::IMAGES`] names some.

mod expected;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use tdvmm_firmware::image::Image;
use tdvmm_tests::debian::Packages;
use tdvmm_tests::exit_codes;
use tdvmm_tests::fixture::witness;
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, MachineKind, Tier, Unmet};
use tdvmm_tests::l1::{Machine, Outcome, Program};
use tdvmm_tests::{kernel, programs, shim};

use expected::Expected;

use super::emtdx::{self, KERNEL, TDX};
use super::guests::{self, TDVMM};

/// The image of our own in L1.
const SHIM: &str = "/tdx/shim.bin";
/// The same on this machine.
const SHIM_FILE: &str = "testbed/shim.bin";
/// Where real images are in L1.
const REAL: &str = "/tdx/td-shim";
const MEMORY: u64 = 256 << 20;
/// 2 GiB below the PCI hole, and 256 MiB from 4 GiB on.
const MUCH_MEMORY: u64 = 2304 << 20;
const HIGH_MEMORY: &str = "[mem 0x0000000100000000-0x000000010fffffff]  System RAM";
/// What is looked for is in the kernel's log, which is printed once, when the kernel panics as it has no root: each
/// line costs time, on the serial port some ten times that of the virtio console. Then the guest restarts, by ACPI:
/// Linux on hardware-reduced ACPI expects EFI to do it otherwise.
const COMMAND_LINE: &str =
    "console=hvc0 quiet panic=-1 panic_print=0x20 panic_console_replay reboot=acpi";
const NO_ROOT: &str = "VFS: Unable to mount root fs";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        own("td-shim-1cpu", Tier::Full, 1),
        own("td-shim-2cpu", Tier::Representative, 2),
        own("td-shim-4cpu", Tier::Full, 4),
        much_memory(),
    ];
    match shim::real_images() {
        Ok(images) if !images.is_empty() => cases.extend(images.into_iter().map(real)),
        _ => cases.push(no_real_image()),
    }
    cases
}

/// What is booted.
#[derive(Clone, Debug)]
struct Boot {
    /// The image on this machine.
    file: PathBuf,
    /// The same in L1.
    image: String,
    cpus: u32,
    memory: u64,
}

impl Boot {
    fn own(cpus: u32, memory: u64) -> Self {
        Self {
            file: programs::target_dir().join(SHIM_FILE),
            image: SHIM.to_owned(),
            cpus,
            memory,
        }
    }

    /// What every TD here is started with.
    fn command(&self, expected: &Expected) -> Program {
        Program::new(TDVMM)
            .args(["-v", "--firmware", &self.image, "--platform", "tdx=on"])
            .args(["--cpus", &format!("boot={}", self.cpus)])
            .args(["--memory", &format!("size={}", self.memory)])
            .args(["--expect", &format!("mrtd={}", expected.mrtd)])
    }
}

/// The kernel of the guests on this machine.
fn kernel() -> Result<PathBuf> {
    kernel::image(&Packages::open()?.kernel_parts(L1_KERNEL, &["image"])?)
}

fn own(name: &str, tier: Tier, cpus: u32) -> Case {
    let boot = Boot::own(cpus, MEMORY);
    Case {
        name: name.to_owned(),
        tier,
        machine: &TDX,
        prepare: with_shim,
        deadline: Duration::from_secs(240),
        run: Box::new(move |context| {
            let said = boot_linux(context, &boot)?;
            ensure!(
                said.contains(&format!("all memory accepted, vCPUs {:#x}", boot.cpus)),
                "the firmware does not say how many vCPUs there are"
            );
            Ok(())
        }),
    }
}

/// Memory on both sides of the PCI hole, accepted in pieces of 2 MiB, which the emulation refuses otherwise, as KVM's
/// own pages have 4 KiB.
fn much_memory() -> Case {
    let boot = Boot::own(2, MUCH_MEMORY);
    Case {
        name: "td-shim-2cpu-high".to_owned(),
        tier: Tier::Full,
        machine: &TDX,
        prepare: with_shim,
        deadline: Duration::from_secs(300),
        run: Box::new(move |context| {
            accept_2m(context, "Y")?;
            let booted = boot_linux(context, &boot);
            accept_2m(context, "N")?;
            let said = booted?;
            ensure!(
                said.contains(HIGH_MEMORY),
                "the guest sees no memory above 4 GiB"
            );
            Ok(())
        }),
    }
}

/// Whether the emulation accepts 2 MiB at once.
fn accept_2m(context: &mut Context<'_>, whether: &str) -> Result<()> {
    let parameter = "/sys/module/kvm_amd/parameters/tdx_accept_2m";
    let script = format!("echo {whether} > {parameter}");
    let (end, output) = context.l1.run(&Program::script(&script), context.left())?;
    ensure!(end.outcome == Outcome::Exited(0), "{parameter}: {output}");
    Ok(())
}

/// A real image, with two vCPUs.
fn real(file: PathBuf) -> Case {
    let name = file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let boot = Boot {
        image: in_l1(&file),
        file,
        cpus: 2,
        memory: MEMORY,
    };
    Case {
        name: format!("td-shim-real/{name}"),
        tier: Tier::Representative,
        machine: &TDX,
        prepare: with_real_images,
        deadline: Duration::from_secs(300),
        run: Box::new(move |context| {
            let file = fs::read(&boot.file)?;
            if Image::parse(&file)?.wants_payload() {
                boot_linux(context, &boot).map(drop)
            } else {
                boot_built_in(context, &boot)
            }
        }),
    }
}

fn no_real_image() -> Case {
    /// Never built.
    const NONE: MachineKind = MachineKind {
        name: "none",
        build: |_| {
            // A name that leads nowhere is a mistake, no unmet need.
            shim::real_images()?;
            Err(anyhow!(Unmet::new(
                "tdshim",
                format!("{} names no image", shim::IMAGES)
            )))
        },
    };
    Case {
        name: "td-shim-real".to_owned(),
        tier: Tier::Representative,
        machine: &NONE,
        prepare: |_| Ok(()),
        deadline: Duration::ZERO,
        run: Box::new(|_| Ok(())),
    }
}

fn with_shim(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    let image = shim::build()?;
    let file = programs::target_dir().join(SHIM_FILE);
    fs::create_dir_all(file.parent().unwrap_or(&file))?;
    fs::write(&file, &image).with_context(|| format!("cannot write {}", file.display()))?;
    machine.archive().file(SHIM, 0o644, image);
    Ok(())
}

fn with_real_images(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    for file in shim::real_images()? {
        machine.archive().copy(&in_l1(&file), 0o644, &file)?;
    }
    Ok(())
}

fn in_l1(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    format!("{REAL}/{name}")
}

/// Boots a kernel until it finds that it has no root; gives what was said.
fn boot_linux(context: &mut Context<'_>, boot: &Boot) -> Result<String> {
    let expected = Expected::of(boot, Some(kernel()?))?;
    emtdx::hold(context)?;
    witness::take_ended(context.l1)?;
    let program = boot
        .command(&expected)
        .args(["--kernel", KERNEL, "--cmdline", COMMAND_LINE])
        .args(["--console", "tty"]);
    let run = context.l1.start(&program)?;
    let up = context.l1.wait_for(run, NO_ROOT, context.left())?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(exit_codes::RESET),
        "tdvmm ended with {:?} after the panic",
        end.outcome
    );
    let output = context.l1.output(run);
    ensure!(
        expected.rtmrs.is_some(),
        "the image has no place for a kernel"
    );
    check_log(&output, boot.cpus)?;
    let ended = witness::take_ended(context.l1)?;
    ensure!(ended.len() == 1, "{} TDs ended, not one", ended.len());
    expected.check(&ended[0], boot.cpus)?;
    context.note(format!("no root after {:.1} s", up.as_secs_f64()));
    Ok(output)
}

/// Starts an image that brings its payload, which says and does what it likes, and ends it once the firmware has spoken.
fn boot_built_in(context: &mut Context<'_>, boot: &Boot) -> Result<()> {
    const GREETING: &str = "TdShim";
    const SIGTERM: i32 = 15;
    let expected = Expected::of(boot, None)?;
    emtdx::hold(context)?;
    witness::take_ended(context.l1)?;
    let program = boot.command(&expected).args(["--serial", "tty"]);
    let run = context.l1.start(&program)?;
    context.l1.wait_for(run, GREETING, context.left())?;
    context.l1.signal(run, SIGTERM)?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(exit_codes::SIGTERM),
        "tdvmm ended with {:?} after SIGTERM",
        end.outcome
    );
    let ended = witness::take_ended(context.l1)?;
    ensure!(ended.len() == 1, "{} TDs ended, not one", ended.len());
    expected.check(&ended[0], boot.cpus)
}

/// The guest's kernel knows what it runs in, has all its CPUs, and nothing to say against the tables.
fn check_log(log: &str, cpus: u32) -> Result<()> {
    let says = |what: &str| log.contains(what);
    ensure!(says("tdx: Guest detected"), "the guest is no TD");
    ensure!(
        says("Memory Encryption Features active: Intel TDX"),
        "the guest's memory is not private"
    );
    let brought_up = format!("smp: Brought up 1 node, {cpus} CPU");
    ensure!(says(&brought_up), "the guest does not say: {brought_up}");
    // Linux clears the mailbox's address in the MADT once it has read it (acpi_mp_disable_offlining()), and finds later
    // that the sum has changed.
    const EXPLAINED: &str = "Incorrect checksum in table [APIC]";
    for trouble in [
        "ACPI Error",
        "ACPI BIOS Error",
        "ACPI Warning",
        "[Firmware Bug]",
    ] {
        let line = log
            .lines()
            .find(|line| line.contains(trouble) && !line.contains(EXPLAINED));
        ensure!(
            line.is_none(),
            "the guest says: {}",
            line.unwrap_or_default()
        );
    }
    ensure!(
        says("ACPI: CCEL 0x"),
        "the guest finds no event log among its tables"
    );
    Ok(())
}
