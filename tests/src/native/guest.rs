//! Assembling a guest.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::programs::workspace;

/// The C compiler: `$CC`, else `cc`.
#[must_use]
pub fn compiler() -> OsString {
    std::env::var_os("CC").unwrap_or_else(|| "cc".into())
}

/// Builds `tests/guests/td/NAME.c` with the entry and the layout that are beside it into a firmware image in `folder`.
pub fn build_td_image(name: &str, folder: &Path) -> Result<PathBuf> {
    let sources = workspace().join("tests/guests/td");
    let image = folder.join(name).with_extension("fd");
    let result = Command::new(compiler())
        .args(["-ffreestanding", "-nostdlib", "-static", "-no-pie", "-O1"])
        .args(["-fno-pie", "-fno-stack-protector", "-fcf-protection=none"])
        .args(["-fno-asynchronous-unwind-tables", "-mgeneral-regs-only"])
        .args(["-mno-red-zone", "-mcmodel=large", "-Wall", "-Werror"])
        .args(["-Wl,--build-id=none,--no-warn-rwx-segments,--oformat=binary"])
        .arg("-T")
        .arg(sources.join("image.ld"))
        .arg("-o")
        .arg(&image)
        .args([
            sources.join("entry.S"),
            sources.join(name).with_extension("c"),
        ])
        .output()
        .context("cannot run the C compiler")?;
    ensure!(
        result.status.success(),
        "cannot build the image {name}: {}",
        String::from_utf8_lossy(&result.stderr)
    );
    Ok(image)
}

/// Assembles `tests/guests/NAME.S` with `defines` (`NAME=VALUE`) into an ELF file in `folder`.
pub fn assemble(name: &str, defines: &[&str], folder: &Path) -> Result<PathBuf> {
    let source = workspace()
        .join("tests/guests")
        .join(name)
        .with_extension("S");
    let out = folder.join(name);
    let result = Command::new(compiler())
        .args(["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x100000,-N"])
        .args(["-Wl,--build-id=none,--no-warn-rwx-segments"])
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-o")
        .args([&out, &source])
        .output()
        .context("cannot run the C compiler")?;
    ensure!(
        result.status.success(),
        "cannot assemble {}: {}",
        source.display(),
        String::from_utf8_lossy(&result.stderr)
    );
    Ok(out)
}
