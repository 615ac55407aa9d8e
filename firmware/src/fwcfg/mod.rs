//! What OVMF finds in fw_cfg: the contents, not the device.
//!
//! ```text
//! by key                                     by name
//! 0x05 vCPUs  0x0e boot menu  0x0f most      etc/e820  etc/system-states  bootorder (if set)
//! 0x08 0x11 kernel  0x0b 0x12 initramfs      etc/acpi/rsdp  etc/acpi/tables  etc/table-loader
//! 0x14 0x15 command line  0x17 0x18 setup    etc/boot/kernel  etc/boot/shim
//! ```
//!
//! Signature, id and directory are left to the device, which numbers the files. A TD measures some
//! items into `RTMR[0]` as they are, so nothing here differs from one instance of a guest to another.
//! Source: QEMU `docs/specs/fw_cfg.rst`, EDK2 `OvmfPkg/Library/QemuFwCfgLib`.

mod acpi;
mod blob;
mod kernel;

use alloc::string::String;
use alloc::vec::Vec;

use tdvmm_arch::e820::{self, E820Entry};
use thiserror::Error;

pub use acpi::{AcpiFiles, AcpiPointer, AcpiTable};
pub use blob::{Blob, BlobPart, blob};
pub use kernel::{KernelFiles, setup_len};

/// Keys of items without a name.
pub mod key {
    /// vCPUs that run from the start (u16).
    pub const CPUS: u16 = 0x05;
    /// Bytes of the kernel after its setup part (u32).
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Bytes of the initramfs (u32).
    pub const INITRD_SIZE: u16 = 0x0b;
    /// Whether to offer a boot menu (u16).
    pub const BOOT_MENU: u16 = 0x0e;
    /// vCPUs that there can be (u16).
    pub const MAX_CPUS: u16 = 0x0f;
    /// The kernel after its setup part.
    pub const KERNEL: u16 = 0x11;
    /// The initramfs.
    pub const INITRD: u16 = 0x12;
    /// Bytes of the command line with its NUL (u32).
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line with a NUL.
    pub const CMDLINE: u16 = 0x15;
    /// Bytes of the kernel's setup part (u32).
    pub const SETUP_SIZE: u16 = 0x17;
    /// The kernel's setup part: boot sector and real-mode code.
    pub const SETUP: u16 = 0x18;
}

/// What is to be offered.
#[derive(Clone, Default)]
pub struct FwCfgInput {
    /// vCPUs, all of which run from the start.
    pub cpus: u16,
    /// The memory map.
    pub memory_map: Vec<E820Entry>,
    /// ACPI tables; OVMF makes none of its own.
    pub acpi: Option<AcpiFiles>,
    /// A kernel to start.
    pub kernel: Option<KernelFiles>,
    /// Where to boot from: one OpenFirmware device path on each line.
    pub boot_order: Option<String>,
    /// Whether the firmware offers its menu.
    pub boot_menu: bool,
}

/// Contents that fw_cfg cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FwCfgError {
    /// Sizes have 32 bits.
    #[error("{what} of {len:#x} bytes is larger than fw_cfg can tell")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its bytes.
        len: usize,
    },
    /// Text that would end at its first NUL.
    #[error("{what} holds a NUL at byte {at}")]
    Nul {
        /// Which part.
        what: &'static str,
        /// Where it stands.
        at: usize,
    },
    /// The kernel ends within its own setup part.
    #[error("kernel of {len:#x} bytes is shorter than its setup part of {setup:#x} bytes")]
    ShortKernel {
        /// Bytes of the kernel.
        len: usize,
        /// Bytes that its header claims for the setup part.
        setup: usize,
    },
    /// A pointer or a table that does not lie in the ACPI tables.
    #[error("ACPI tables of {len:#x} bytes have no {what} at offset {at:#x}")]
    Acpi {
        /// What was to be there.
        what: &'static str,
        /// Where.
        at: usize,
        /// Bytes of the tables.
        len: usize,
    },
}

/// Contents of an fw_cfg device, in the form that its constructor takes.
#[derive(Clone, Default)]
pub struct FwCfgContents {
    /// Items by key.
    pub items: Vec<(u16, Blob)>,
    /// Items by name; the device gives them keys.
    pub files: Vec<(String, Blob)>,
}

impl FwCfgContents {
    /// The bytes of the item with a key.
    #[must_use]
    pub fn item(&self, key: u16) -> Option<&[u8]> {
        let found = self.items.iter().find(|(of, _)| *of == key);
        found.map(|(_, blob)| (**blob).as_ref())
    }

    /// The bytes of a file.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        let found = self.files.iter().find(|(of, _)| of == name);
        found.map(|(_, blob)| (**blob).as_ref())
    }

    fn push(&mut self, key: u16, bytes: Vec<u8>) {
        self.items.push((key, blob(bytes)));
    }

    fn push_file(&mut self, name: &str, blob: Blob) {
        self.files.push((name.into(), blob));
    }
}

impl core::fmt::Debug for FwCfgContents {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let len = |blob: &Blob| (**blob).as_ref().len();
        let items = self.items.iter().map(|(key, blob)| (*key, len(blob)));
        let files = self.files.iter().map(|(name, blob)| (name, len(blob)));
        f.debug_struct("FwCfgContents")
            .field("items", &items.collect::<Vec<_>>())
            .field("files", &files.collect::<Vec<_>>())
            .finish()
    }
}

/// S3 and S4 are not offered: neither a TD nor this VMM can sleep. One byte for each of S0 to S5:
/// bit 7 says that the state exists, the rest is its sleep type.
const SYSTEM_STATES: [u8; 6] = [0x80, 0, 0, 1, 2, 0x80];

/// Everything that `input` asks for.
///
/// # Errors
///
/// [`FwCfgError`].
pub fn contents(input: &FwCfgInput) -> Result<FwCfgContents, FwCfgError> {
    let mut all = FwCfgContents::default();
    all.push(key::CPUS, input.cpus.to_le_bytes().into());
    all.push(key::MAX_CPUS, input.cpus.to_le_bytes().into());
    let boot_menu = u16::from(input.boot_menu);
    all.push(key::BOOT_MENU, boot_menu.to_le_bytes().into());
    all.push_file("etc/e820", blob(e820::to_bytes(&input.memory_map)));
    all.push_file("etc/system-states", blob(SYSTEM_STATES.to_vec()));
    if let Some(order) = &input.boot_order {
        all.push_file("bootorder", blob(terminated("boot order", order)?));
    }
    kernel::add(&mut all, input.kernel.as_ref())?;
    if let Some(acpi) = &input.acpi {
        acpi::add(&mut all, acpi)?;
    }
    Ok(all)
}

/// `text` with a NUL at its end, and nowhere else.
fn terminated(what: &'static str, text: &str) -> Result<Vec<u8>, FwCfgError> {
    if let Some(at) = text.bytes().position(|byte| byte == 0) {
        return Err(FwCfgError::Nul { what, at });
    }
    Ok(text.bytes().chain([0]).collect())
}

fn size(what: &'static str, bytes: &[u8]) -> Result<Vec<u8>, FwCfgError> {
    let len = bytes.len();
    let size = u32::try_from(len).map_err(|_| FwCfgError::TooLarge { what, len })?;
    Ok(size.to_le_bytes().into())
}

impl core::fmt::Debug for FwCfgInput {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FwCfgInput")
            .field("cpus", &self.cpus)
            .field("kernel", &self.kernel)
            .field("boot_order", &self.boot_order)
            .finish_non_exhaustive()
    }
}
