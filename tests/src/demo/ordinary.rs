//! `cargo xtask demo`: an unmodified Debian kernel boots under `tdvmm`, on any machine.
//!
//! Natively where the machine's KVM has hardware virtualization below it, with a shell if there is a
//! terminal; otherwise in the testbed, up to the report of its init program.
#![expect(clippy::print_stdout, reason = "shows what it does")]

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::debian::Packages;
use crate::guest::{self, MARKER, REPORT_END, Report, Then};
use crate::harness::L1_KERNEL;
use crate::l1::{Machine, Outcome, Program};
use crate::{kernel, programs};

/// A guest without hardware virtualization below it does not come this far; with it, a second.
const NATIVE_WAIT: Duration = Duration::from_secs(30);
const TESTBED_WAIT: Duration = Duration::from_secs(240);

/// Sets up what is needed and boots a guest with two vCPUs.
pub fn demo(packages: &Packages) -> Result<()> {
    step("building tdvmm");
    let tdvmm = programs::build(programs::TDVMM)?;
    step("fetching a Debian kernel");
    let image = kernel::image(&packages.kernel(L1_KERNEL)?)?;
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
fn native(files: &Files<'_>, log: &Path) -> Result<()> {
    let serial = format!("file={}", log.display());
    let begin = Instant::now();
    let mut tdvmm = files
        .command(Then::PowerOff, &serial)
        .stdin(Stdio::null())
        .spawn()?;
    let status = loop {
        if let Some(status) = tdvmm.try_wait()? {
            break status;
        }
        if begin.elapsed() > NATIVE_WAIT {
            tdvmm.kill()?;
            tdvmm.wait()?;
            bail!(
                "the guest did not power off within {} s",
                NATIVE_WAIT.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(10));
    };
    ensure!(status.success(), "tdvmm ended with {status}");
    let console = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    show(&console, begin.elapsed())
}

fn shell(files: &Files<'_>) -> Result<()> {
    step("now with a shell; `exit` powers the guest off, Ctrl-A x ends tdvmm");
    let status = files.command(Then::Shell, "tty").status()?;
    ensure!(status.success(), "tdvmm ended with {status}");
    Ok(())
}

fn in_testbed(packages: &Packages, tdvmm: &Path) -> Result<()> {
    let mut machine = Machine::new(packages, L1_KERNEL)?;
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
    let up = l1.wait_for(run, MARKER, TESTBED_WAIT)?;
    l1.wait_for(run, REPORT_END, TESTBED_WAIT)?;
    let end = l1.wait_end(run, TESTBED_WAIT)?;
    show(&l1.output(run), up)?;
    ensure!(
        end.outcome == Outcome::Exited(0),
        "tdvmm ended with {:?}",
        end.outcome
    );
    l1.power_off()
}

fn show(console: &str, time: Duration) -> Result<()> {
    let report = Report::parse(console)?;
    println!();
    println!("  guest kernel   {}", report.release);
    println!(
        "  processors     {} (online {})",
        report.cpus.len(),
        report.online
    );
    println!("  memory         {} MiB", report.memory_kib >> 10);
    println!("  user space     after {:.1} s", time.as_secs_f64());
    println!();
    step("the guest booted to user space, reported, and powered off");
    Ok(())
}

fn step(text: &str) {
    println!("demo: {text}");
}
