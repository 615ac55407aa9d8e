//! An ordinary VM: natively where the machine's KVM has hardware virtualization below it, with a shell if there is a
//! terminal; otherwise in the testbed.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{run_here, run_in_testbed, show_guest, step};
use crate::debian::Packages;
use crate::fixture::Fixture;
use crate::guest::{self, Report, Then};
use crate::harness::L1_KERNEL;
use crate::l1::{Machine, Program};
use crate::{kernel, programs};

/// A guest without hardware virtualization below it does not come this far; with it, a second.
const NATIVE_WAIT: Duration = Duration::from_secs(30);

/// Sets up what is needed and boots a guest with two vCPUs.
///
/// # Errors
/// Something cannot be had, or the guest does not boot.
pub fn demo(packages: &Packages) -> Result<()> {
    step("building tdvmm");
    let tdvmm = programs::build(programs::TDVMM)?;
    step("fetching a Debian kernel");
    let image = kernel::image(&packages.kernel_parts(L1_KERNEL, &["image"])?)?;
    let folder = programs::target_dir().join("testbed/demo");
    fs::create_dir_all(&folder)?;
    let initramfs = folder.join("initramfs.cpio");
    fs::write(&initramfs, guest::initramfs(packages)?)?;
    match native_kvm() {
        Ok(()) => {
            step("this machine's /dev/kvm has hardware virtualization: booting natively");
            let files = Files {
                tdvmm: &tdvmm,
                image: &image,
                initramfs: &initramfs,
            };
            match native(&files, &folder.join("console.log")) {
                Ok(()) if io::stdin().is_terminal() => return shell(&files),
                Ok(()) => return Ok(()),
                Err(error) => step(&format!("that failed ({error:#})")),
            }
        }
        Err(reason) => step(&format!("no native boot: {reason:#}")),
    }
    step("booting in the testbed: an emulated machine with KVM, in it tdvmm, in it the guest");
    in_testbed(packages, &tdvmm)
}

struct Files<'a> {
    tdvmm: &'a Path,
    image: &'a Path,
    initramfs: &'a Path,
}

impl Files<'_> {
    fn command(&self, then: Then, serial: &str) -> Command {
        let mut command = Command::new(self.tdvmm);
        command
            .arg("--kernel")
            .arg(self.image)
            .arg("--initramfs")
            .arg(self.initramfs);
        command.args(["--cmdline", &guest::command_line(then), "--cpus", "boot=2"]);
        command.args(["--memory", "size=512M", "--serial", serial]);
        command
    }
}

/// Whether KVM is there, may be used, and is of a kind that can run Linux.
fn native_kvm() -> Result<()> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("cannot open /dev/kvm")?;
    let real = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|m| Path::new("/sys/module").join(m).exists());
    ensure!(
        real,
        "/dev/kvm works without hardware virtualization, which cannot run Linux"
    );
    Ok(())
}

/// Boots to the report and prints it.
fn native(files: &Files<'_>, console: &Path) -> Result<()> {
    let serial = format!("file={}", console.display());
    let command = files.command(Then::PowerOff, &serial);
    let (output, time) = run_here(command, console, NATIVE_WAIT)?;
    show_guest(&Report::parse(&output)?, time);
    step("the guest booted to user space, reported, and powered off");
    Ok(())
}

fn shell(files: &Files<'_>) -> Result<()> {
    step("now with a shell; `exit` powers the guest off, Ctrl-A x ends tdvmm");
    let status = files.command(Then::Shell, "tty").status()?;
    ensure!(status.success(), "tdvmm ended with {status}");
    Ok(())
}

fn in_testbed(packages: &Packages, tdvmm: &Path) -> Result<()> {
    let mut machine = Machine::new(packages, L1_KERNEL)?;
    Fixture::open(packages, L1_KERNEL)?.install_modules(&mut machine);
    machine.archive().copy("/bin/tdvmm", 0o755, tdvmm)?;
    machine.add_kernel(L1_KERNEL, "/guest/kernel")?;
    let initramfs = guest::initramfs(packages)?;
    machine.archive().file("/guest/initramfs", 0o644, initramfs);
    let mut l1 = machine.boot()?;
    step(&format!(
        "the emulated machine is up after {:.1} s",
        l1.boot_time.as_secs_f64()
    ));
    let paths = Files {
        tdvmm: Path::new("/bin/tdvmm"),
        image: Path::new("/guest/kernel"),
        initramfs: Path::new("/guest/initramfs"),
    };
    let command = paths.command(Then::PowerOff, "tty");
    step(&format!("running {command:?}"));
    let words = command.get_args().map(|a| a.to_string_lossy().into_owned());
    let run = l1.start(&Program::new("/bin/tdvmm").args(words))?;
    let (output, time) = run_in_testbed(&mut l1, run)?;
    show_guest(&Report::parse(&output)?, time);
    step("the guest booted to user space, reported, and powered off");
    l1.power_off()
}
