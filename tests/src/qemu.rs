//! QEMU from the cache: run with its own dynamic loader and libraries, not those of the machine.
//!
//! It needs a newer C library than the machine may have. Its package, with all that it depends on,
//! is unpacked into one folder, and its own `ld.so` starts it from there: no privilege, container or
//! user namespace is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use crate::cpio::Archive;
use crate::debian::Packages;

/// Where QEMU lives in an L1.
pub const PATH_IN_L1: &str = "/usr/bin/qemu-system-x86_64";

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Firmware images that a q35 machine with direct kernel boot loads.
const FIRMWARE: [&str; 3] = [
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/seabios/bios-256k.bin",
];

/// An unpacked QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    root: PathBuf,
    loader: PathBuf,
    version: String,
}

impl Qemu {
    /// Fetches and unpacks QEMU if needed.
    pub fn open(packages: &Packages) -> Result<Self> {
        let version = packages.package("qemu")?.version;
        let root = packages.unpack("qemu")?;
        let places = [
            root.join(LIBRARIES),
            root.join("usr/lib64"),
            root.join("lib64"),
        ];
        let loader = places
            .iter()
            .map(|dir| dir.join("ld-linux-x86-64.so.2"))
            .find(|p| p.is_file())
            .ok_or_else(|| anyhow!("no dynamic loader in {}", root.display()))?;
        Ok(Self {
            root,
            loader,
            version,
        })
    }

    /// The Debian version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A command that runs `qemu-system-x86_64`.
    pub fn command(&self) -> Command {
        let mut command = self.loaded();
        command.arg(self.program());
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(dir));
        }
        command.env("QEMU_MODULE_DIR", self.root.join(LIBRARIES).join("qemu"));
        command
    }

    /// Puts QEMU with its libraries and firmware into an L1's initramfs, at [`PATH_IN_L1`].
    pub fn install(&self, archive: &mut Archive) -> Result<()> {
        archive.copy(PATH_IN_L1, 0o755, &self.program())?;
        for library in self.libraries()? {
            let name = library
                .file_name()
                .and_then(|n| n.to_str())
                .context("a library's name")?;
            archive.copy(
                &format!("/usr/lib/x86_64-linux-gnu/{name}"),
                0o755,
                &library,
            )?;
        }
        archive.copy("/lib64/ld-linux-x86-64.so.2", 0o755, &self.loader)?;
        archive.symlink("/lib/x86_64-linux-gnu", "../usr/lib/x86_64-linux-gnu");
        for file in FIRMWARE {
            let name = Path::new(file)
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            archive.copy(
                &format!("/usr/share/qemu/{name}"),
                0o644,
                &self.root.join(file),
            )?;
        }
        Ok(())
    }

    fn program(&self) -> PathBuf {
        self.root.join("usr/bin/qemu-system-x86_64")
    }

    fn loaded(&self) -> Command {
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(self.root.join(LIBRARIES));
        command
    }

    /// The libraries that the loader would map, each with its full path.
    fn libraries(&self) -> Result<Vec<PathBuf>> {
        let output = self.loaded().arg("--list").arg(self.program()).output()?;
        ensure!(
            output.status.success(),
            "the loader of QEMU cannot list its libraries"
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let paths = text
            .lines()
            .filter_map(|line| line.split_once("=> ")?.1.split(' ').next());
        let paths: Vec<PathBuf> = paths
            .map(PathBuf::from)
            .filter(|p| p.starts_with(&self.root))
            .collect();
        ensure!(!paths.is_empty(), "QEMU seems to need no libraries: {text}");
        Ok(paths)
    }
}
