//! The firmware of `tests/guests/shim`, which keeps TD-Shim's contract for booting Linux; and real TD-Shim images,
//! where somebody has some.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::native::folder::Folder;
use crate::native::guest::compiler;
use crate::programs::workspace;

/// Names a folder of TD-Shim images, or the images themselves, separated by colons.
pub const IMAGES: &str = "TDVMM_TDSHIM_IMAGES";

/// Bytes of the image.
const LEN: usize = 256 << 10;

/// How the sources become an image. No SSE, as nobody saves its registers; no calls into a C library but those that
/// the sources have.
const FLAGS: [&str; 17] = [
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-O2",
    // Relative addresses: the image lies above 2 GiB.
    "-fpie",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-fcf-protection=none",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none,--no-warn-rwx-segments,--oformat=binary",
];

/// Builds the image with the machine's C compiler.
///
/// # Errors
/// There is no compiler, or it does not like the sources.
pub fn build() -> Result<Vec<u8>> {
    let sources = workspace().join("tests/guests/shim");
    let folder = Folder::create()?;
    let out = folder.join("shim.bin");
    let result = Command::new(compiler())
        .args(FLAGS)
        .arg("-T")
        .arg(sources.join("shim.ld"))
        .arg("-o")
        .arg(&out)
        .args(files(&sources)?)
        .output()
        .context("cannot run the C compiler")?;
    ensure!(
        result.status.success(),
        "cannot build {}: {}",
        sources.display(),
        String::from_utf8_lossy(&result.stderr)
    );
    let image = fs::read(&out).context("the linker made no image")?;
    ensure!(image.len() == LEN, "the image has {} bytes", image.len());
    Ok(image)
}

/// C and assembly files, in an order that does not depend on the file system: the code's order is in MRTD.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|kind| kind == "c" || kind == "S")
    });
    files.sort();
    Ok(files)
}

/// The real images that [`IMAGES`] names, sorted; none where it is not set.
///
/// # Errors
/// What it names is not there.
pub fn real_images() -> Result<Vec<PathBuf>> {
    let Some(places) = env::var_os(IMAGES) else {
        return Ok(Vec::new());
    };
    let mut images = Vec::new();
    for place in env::split_paths(&places) {
        if !place.is_dir() {
            ensure!(
                place.is_file(),
                "{IMAGES}: {} is not there",
                place.display()
            );
            images.push(place);
            continue;
        }
        for entry in fs::read_dir(&place)? {
            let path = entry?.path();
            if path.is_file() {
                images.push(path);
            }
        }
    }
    images.sort();
    Ok(images)
}

#[cfg(test)]
mod log;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_built_in_one_order() {
        let files = files(&workspace().join("tests/guests/shim")).expect("the sources are there");
        assert!(files.is_sorted() && files.len() > 2, "{files:?}");
    }
}
