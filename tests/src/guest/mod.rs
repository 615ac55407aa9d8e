//! The guests of the testbed: an unmodified Debian kernel with an initramfs whose only program
//! ([`init`]) tells over the console what it sees and then does what the command line asks for.
//!
//! The serial console is slow under emulation (some 50 us for each character), so a guest boots
//! with `quiet` and says little.

mod dmesg;
pub mod firmware;
pub mod init;
pub mod kexec;
pub mod pattern;
mod report;
pub mod td;

use std::path::Path;

use anyhow::Result;

use crate::cpio::Archive;
use crate::debian::{Packages, Role};
use crate::kernel::Modules;
use crate::programs;

pub use dmesg::unexpected;
pub use report::{Cpu, INTERRUPTS, Report};

/// The first thing that a guest's init program prints: user space runs.
pub const MARKER: &str = "TDVMM-GUEST-UP";
/// The last thing it prints before it does what was asked for.
pub const REPORT_END: &str = "TDVMM-GUEST-END";
/// What is printed when a script has ended, with its exit code behind it.
pub const SCRIPT_END: &str = "TDVMM-GUEST-SCRIPT-END";
/// What the kernel says of [`Then::Panic`].
pub const PANIC: &str = "Kernel panic - not syncing: sysrq triggered crash";
/// Start of each line of the report.
pub const PREFIX: &str = "TDVMM-GUEST ";

/// What the guest does after its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Powers off.
    PowerOff,
    /// Restarts.
    Reboot,
    /// Makes the kernel panic.
    Panic,
    /// Waits for a line on the console, says it back and does what it says as [`Self::word`] does, or powers off.
    Echo,
    /// Starts a shell on the console; powers off when it ends.
    Shell,
    /// Runs the script that `tdvmm.script=` names, says how it ended and powers off.
    Script,
    /// Starts another kernel by kexec, as often as the command line says; powers off in the last one.
    Kexec,
    /// Crashes with a kernel loaded for that case, which powers off.
    Crash,
}

impl Then {
    /// Word on the kernel's command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::Panic => "panic",
            Self::Echo => "echo",
            Self::Shell => "shell",
            Self::Script => "script",
            Self::Kexec => "kexec",
            Self::Crash => "crash",
        }
    }

    /// What a word asks for.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|then| then.word() == word)
    }

    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::PowerOff,
        Self::Reboot,
        Self::Panic,
        Self::Echo,
        Self::Shell,
        Self::Script,
        Self::Kexec,
        Self::Crash,
    ];
}

/// A guest's kernel command line.
pub fn command_line(then: Then) -> String {
    format!("console=ttyS0 quiet panic=-1 tdvmm.then={}", then.word())
}

/// The command line of a guest that runs a script of [`initramfs_with_scripts`].
pub fn script_command_line(script: &str) -> String {
    format!("{} tdvmm.script={script}", command_line(Then::Script))
}

/// The initramfs of the guests.
pub fn initramfs(packages: &Packages) -> Result<Vec<u8>> {
    Ok(files(packages)?.to_bytes())
}

/// The initramfs of guests that are TDs: with the drivers that tell their measurements, and the kernel's own test.
///
/// `selftest` is `tdx_guest_test`, see [`crate::fixture::Fixture::selftest`]; where nothing is built there is none.
pub fn td_initramfs(packages: &Packages, role: Role, selftest: Option<&Path>) -> Result<Vec<u8>> {
    let mut archive = files(packages)?;
    add_modules(&mut archive, packages, role, &["tdx-guest"])?;
    if let Some(selftest) = selftest {
        archive.copy(td::SELFTEST, 0o755, selftest)?;
    }
    Ok(archive.to_bytes())
}

/// The initramfs of guests that load `modules` and then run one of `scripts`, each a name and a text for
/// busybox's shell.
///
/// [`pattern`] is there as `/init fill` and `/init check`.
pub fn initramfs_with_scripts(
    packages: &Packages,
    role: Role,
    modules: &[&str],
    scripts: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let mut archive = files(packages)?;
    add_modules(&mut archive, packages, role, modules)?;
    for (name, text) in scripts {
        archive.file(&format!("{}/{name}", init::SCRIPTS), 0o755, *text);
    }
    Ok(archive.to_bytes())
}

fn add_modules(
    archive: &mut Archive,
    packages: &Packages,
    role: Role,
    names: &[&str],
) -> Result<()> {
    let modules = Modules::of(&packages.kernel_parts(role, &["image", "modules"])?)?;
    let mut order = String::new();
    for module in modules.load_order(names)? {
        archive.file(
            &format!("{}/{}.ko", td::MODULES, module.name),
            0o644,
            module.content,
        );
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file(&format!("{}/order", td::MODULES), 0o644, order);
    Ok(())
}

/// The initramfs of guests that start other kernels themselves, TDs or not.
pub fn kexec_initramfs(packages: &Packages, role: Role) -> Result<Vec<u8>> {
    let mut archive = files(packages)?;
    let image = crate::kernel::image(&packages.kernel_parts(role, &["image"])?)?;
    archive.copy(kexec::KERNEL, 0o644, &image)?;
    Ok(archive.to_bytes())
}

fn files(packages: &Packages) -> Result<Archive> {
    let mut archive = Archive::new();
    archive.copy("/init", 0o755, &programs::build(programs::GUEST_INIT)?)?;
    archive.copy(
        "/bin/busybox",
        0o755,
        &packages.unpack("busybox")?.join("usr/bin/busybox"),
    )?;
    Ok(archive)
}
