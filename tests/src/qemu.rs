//! QEMU from the cache.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::cpio::Archive;
use crate::debian::Packages;
use crate::unpacked::{LIBRARIES, Unpacked};

/// Where QEMU lives in an L1.
pub const PATH_IN_L1: &str = "/usr/bin/qemu-system-x86_64";

/// No device, window or configuration but what is asked for, and an end where the guest would start anew.
pub const BARE: [&str; 5] = [
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
];

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// Firmware images that a q35 machine with direct kernel boot loads.
const FIRMWARE: [&str; 3] = [
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/seabios/bios-256k.bin",
];

/// An unpacked QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    unpacked: Unpacked,
    version: String,
}

impl Qemu {
    /// Fetches and unpacks QEMU if needed.
    pub fn open(packages: &Packages) -> Result<Self> {
        Ok(Self {
            version: packages.package("qemu")?.version,
            unpacked: Unpacked::open(packages, "qemu")?,
        })
    }

    /// The Debian version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A command that runs `qemu-system-x86_64`.
    pub fn command(&self) -> Command {
        let root = self.unpacked.root();
        let mut command = self.unpacked.command(PROGRAM);
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(dir));
        }
        command.env("QEMU_MODULE_DIR", root.join(LIBRARIES).join("qemu"));
        command
    }

    /// Puts QEMU with its libraries and firmware into an L1's initramfs, at [`PATH_IN_L1`].
    pub fn install(&self, archive: &mut Archive) -> Result<()> {
        self.unpacked.install(archive, PROGRAM)?;
        for file in FIRMWARE {
            let name = Path::new(file)
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            archive.copy(
                &format!("/usr/share/qemu/{name}"),
                0o644,
                &self.unpacked.root().join(file),
            )?;
        }
        Ok(())
    }
}
