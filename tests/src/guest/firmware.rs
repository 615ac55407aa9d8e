//! The firmware of the TD cases (`emulated-tdx/guest/cases.c`): a TD that does one thing in a second.
//!
//! Its orders are the kernel command line that it finds in fw_cfg, so one image, and with it one MRTD, serves all cases.
//! It is built by the machine's own C compiler, as it also runs where there is no testbed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::native;
use crate::programs::{target_dir, workspace};

/// The image in L1.
pub const IMAGE: &str = "/tdx/cases.bin";
/// What stands for the kernel there: fw_cfg has no command line without one.
pub const NO_KERNEL: &str = "/tdx/no-kernel";
/// Its content: no more than makes it an EFI program by its first bytes.
pub const NO_KERNEL_CONTENT: &[u8] = b"MZ";

/// Builds the image.
///
/// # Errors
/// There is no C compiler, or it refuses the sources.
pub fn build() -> Result<PathBuf> {
    let sources = workspace().join("tests/emulated-tdx/guest");
    let folder = target_dir().join("testbed");
    fs::create_dir_all(&folder)?;
    let image = folder.join("cases.bin");
    let result = Command::new(native::guest::compiler())
        .current_dir(&sources)
        .args([
            "-ffreestanding",
            "-nostdlib",
            "-static",
            "-no-pie",
            "-fno-pie",
        ])
        .args([
            "-O1",
            "-fno-stack-protector",
            "-fno-asynchronous-unwind-tables",
        ])
        .args([
            "-fcf-protection=none",
            "-mgeneral-regs-only",
            "-mno-red-zone",
        ])
        .args([
            "-mcmodel=large",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
        ])
        .args([
            "-Werror",
            "-Wl,--build-id=none,--oformat=binary,-T,cases.ld",
        ])
        .arg("-o")
        .arg(&image)
        .args(["cases_entry.S", "cases.c"])
        .output()
        .context("cannot run the C compiler")?;
    ensure!(
        result.status.success(),
        "cannot build the firmware of the TD cases: {}",
        String::from_utf8_lossy(&result.stderr)
    );
    Ok(image)
}
