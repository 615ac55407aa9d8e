//! The items of direct kernel boot.
//!
//! The kernel is handed over twice: in two parts by the classic keys, and whole as `etc/boot/kernel`,
//! which newer OVMF prefers, as a signature covers the file as it is on disk. Its setup header is
//! never patched: OVMF starts the EFI stub, which needs no patch, and the kernel that is measured is
//! then the kernel file.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Blob, BlobPart, FwCfgContents, FwCfgError, blob, key, size, terminated};
use crate::wire;

/// Files for direct kernel boot.
#[derive(Clone)]
pub struct KernelFiles {
    /// A kernel with an EFI stub (a bzImage), or another EFI program.
    pub kernel: Blob,
    /// Its initramfs.
    pub initramfs: Option<Blob>,
    /// Its command line.
    pub cmdline: String,
    /// A shim that checks the kernel's signature and starts it.
    pub shim: Option<Blob>,
}

impl core::fmt::Debug for KernelFiles {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("KernelFiles")
            .field("cmdline", &self.cmdline)
            .field("initramfs", &self.initramfs.is_some())
            .field("shim", &self.shim.is_some())
            .finish_non_exhaustive()
    }
}

const SECTOR: usize = 512;

/// Bytes of a bzImage before its protected-mode part; 0 for a file that is no bzImage.
/// Source: Linux `Documentation/arch/x86/boot.rst`, `setup_sects`, `boot_flag`, `header`.
#[must_use]
pub fn setup_len(kernel: &[u8]) -> usize {
    let is_bzimage =
        wire::u16_at(kernel, 0x1fe) == Some(0xaa55) && wire::array(kernel, 0x202) == Some(*b"HdrS");
    if !is_bzimage {
        return 0;
    }
    let sectors = match kernel.get(0x1f1) {
        None | Some(0) => 4,
        Some(sectors) => usize::from(*sectors),
    };
    sectors.saturating_add(1).saturating_mul(SECTOR)
}

/// Adds the items. Without a kernel only the sizes are there, and are 0.
pub(super) fn add(to: &mut FwCfgContents, files: Option<&KernelFiles>) -> Result<(), FwCfgError> {
    let Some(files) = files else {
        for key in [
            key::KERNEL_SIZE,
            key::INITRD_SIZE,
            key::CMDLINE_SIZE,
            key::SETUP_SIZE,
        ] {
            to.push(key, 0_u32.to_le_bytes().into());
        }
        return Ok(());
    };
    let kernel = (*files.kernel).as_ref();
    let (len, setup) = (kernel.len(), setup_len(kernel));
    if setup >= len {
        return Err(FwCfgError::ShortKernel { len, setup });
    }
    let cmdline = blob(terminated("kernel command line", &files.cmdline)?);
    let initramfs = files.initramfs.clone().unwrap_or_else(|| blob(Vec::new()));
    let parts: [(u16, u16, &'static str, Blob); 4] = [
        (
            key::SETUP_SIZE,
            key::SETUP,
            "kernel setup",
            BlobPart::of(&files.kernel, 0..setup),
        ),
        (
            key::KERNEL_SIZE,
            key::KERNEL,
            "kernel",
            BlobPart::of(&files.kernel, setup..len),
        ),
        (key::INITRD_SIZE, key::INITRD, "initramfs", initramfs),
        (
            key::CMDLINE_SIZE,
            key::CMDLINE,
            "kernel command line",
            cmdline,
        ),
    ];
    for (size_key, data_key, what, part) in parts {
        to.push(size_key, size(what, (*part).as_ref())?);
        to.items.push((data_key, part));
    }
    to.push_file("etc/boot/kernel", Arc::clone(&files.kernel));
    if let Some(shim) = &files.shim {
        // Sizes of files are the device's to tell, with the same limit.
        size("shim", (**shim).as_ref())?;
        to.push_file("etc/boot/shim", Arc::clone(shim));
    }
    Ok(())
}
