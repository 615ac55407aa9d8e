//! The files that a guest is made of, opened and looked at before anything is created.

mod elf;
pub mod file;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tdvmm_arch::addr::{GpaRange, PAGE_SIZE};
use tdvmm_arch::map::FIRMWARE_MAX;
use tdvmm_firmware::fwcfg::{Blob, KernelFiles, blob};
use thiserror::Error;

use crate::config::{FirmwarePayload, KernelPayload, Payload};
use crate::plan::PayloadFacts;
use file::{Limit, open, read};

/// The first bytes of a kernel file that say what it is, with all of a bzImage's setup header.
const HEAD: usize = 1024;

/// What is said of a larger image than [`FIRMWARE_MAX`].
pub(crate) const TOO_LARGE: &str = "is larger than the 16 MiB that lie below 4 GiB for firmware";

/// Of a firmware image, and so of its variable store.
const FIRMWARE: Limit = Limit {
    bytes: FIRMWARE_MAX,
    beyond: TOO_LARGE,
};

/// Of what fw_cfg offers, whose sizes have 32 bits.
const OFFERED: Limit = Limit {
    bytes: u32::MAX as u64,
    beyond: "is larger than 4 GiB, and firmware cannot be told its size",
};

/// A file of the payload cannot be used. Each message names the option and the file.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// It cannot be opened or read.
    #[error("{option} {}: cannot be read", path.display())]
    Read {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{option} {}: {problem}", path.display())]
    Unusable {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What it is, and what it should be.
        problem: &'static str,
    },
}

/// What kind of kernel a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelKind {
    /// A Linux bzImage with a 64-bit entry point.
    BzImage {
        /// The setup header, from file offset 0x1f1.
        #[serde(skip)]
        setup_header: Vec<u8>,
    },
    /// An ELF executable for x86-64.
    Elf {
        /// From the first byte of its lowest segment to the last of its highest.
        extent: GpaRange,
    },
}

/// An opened kernel file.
#[derive(Debug)]
pub struct Kernel {
    /// The file, at its start.
    pub file: File,
    /// What is in it.
    pub kind: KernelKind,
}

impl Kernel {
    /// Opens a kernel file and finds out what it is.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is no kernel.
    pub fn open(path: &Path) -> Result<Self, PayloadError> {
        let (mut file, _) = open("--kernel", path)?;
        let read_error = |source| PayloadError::Read {
            option: "--kernel",
            path: path.to_owned(),
            source,
        };
        let mut head = Vec::with_capacity(HEAD);
        (&file)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(read_error)?;
        file.seek(SeekFrom::Start(0)).map_err(read_error)?;
        let unusable = |problem| PayloadError::Unusable {
            option: "--kernel",
            path: path.to_owned(),
            problem,
        };
        let kind = match identify(&head).map_err(unusable)? {
            Format::BzImage { setup_header } => KernelKind::BzImage { setup_header },
            Format::Elf => {
                let segments = elf::program_headers(&head, &file).map_err(read_error)?;
                KernelKind::Elf {
                    extent: elf::extent(&segments).map_err(unusable)?,
                }
            }
        };
        Ok(Self { file, kind })
    }
}

/// An opened initramfs.
#[derive(Debug)]
pub struct Initramfs {
    /// The file, at its start.
    pub file: File,
    /// Its length in bytes, not 0.
    pub len: u64,
}

impl Initramfs {
    /// Opens an initramfs.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is empty.
    pub fn open(path: &Path) -> Result<Self, PayloadError> {
        let (file, len) = open("--initramfs", path)?;
        if len == 0 {
            return Err(PayloadError::Unusable {
                option: "--initramfs",
                path: path.to_owned(),
                problem: "is empty; leave the option out to start without one",
            });
        }
        Ok(Self { file, len })
    }
}

/// The files that are read while the machine is launched; those of firmware have been read before.
#[derive(Debug)]
pub enum PayloadFiles {
    /// Of a kernel that is entered directly.
    Kernel {
        /// The kernel.
        kernel: Kernel,
        /// Its initramfs.
        initramfs: Option<Initramfs>,
    },
    /// All is in the plan.
    Firmware,
}

/// Opens and looks at the files of `payload`.
///
/// # Errors
///
/// If one cannot be used.
pub fn open_payload(payload: &Payload) -> Result<(PayloadFacts, PayloadFiles), PayloadError> {
    match payload {
        Payload::Kernel(files) => {
            let kernel = Kernel::open(&files.kernel)?;
            let initramfs = files
                .initramfs
                .as_deref()
                .map(Initramfs::open)
                .transpose()?;
            let facts = PayloadFacts::Kernel {
                kind: kernel.kind.clone(),
                initramfs: initramfs.as_ref().map(|file| file.len),
                cmdline: files.cmdline.clone(),
            };
            Ok((facts, PayloadFiles::Kernel { kernel, initramfs }))
        }
        Payload::Firmware(files) => Ok((
            PayloadFacts::Firmware(Firmware::read(files)?),
            PayloadFiles::Firmware,
        )),
    }
}

/// A firmware image, in memory; what is measured and what is loaded are the same bytes.
#[derive(Clone)]
pub struct Firmware {
    /// The image: whole pages, at most [`FIRMWARE_MAX`].
    pub image: Blob,
    /// The variable store that replaces the image's own.
    pub vars: Option<Blob>,
    /// A kernel for the firmware to start.
    pub kernel: Option<KernelFiles>,
}

impl Firmware {
    /// Reads the files of `payload`.
    ///
    /// # Errors
    ///
    /// If one cannot be read or cannot be firmware.
    pub fn read(payload: &FirmwarePayload) -> Result<Self, PayloadError> {
        let image = read("--firmware", &payload.image, FIRMWARE)?;
        let unusable = |problem| PayloadError::Unusable {
            option: "--firmware",
            path: payload.image.clone(),
            problem,
        };
        let len = image.len() as u64;
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(unusable(
                "is no firmware image: its size is no multiple of 4 KiB",
            ));
        }
        let vars = payload
            .vars
            .as_deref()
            .map(|path| read("--firmware-vars", path, FIRMWARE))
            .transpose()?;
        Ok(Self {
            image: blob(image),
            vars: vars.map(blob),
            kernel: payload
                .kernel
                .as_ref()
                .map(|k| read_kernel(k, payload))
                .transpose()?,
        })
    }
}

impl std::fmt::Debug for Firmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Firmware")
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

fn read_kernel(
    files: &KernelPayload,
    payload: &FirmwarePayload,
) -> Result<KernelFiles, PayloadError> {
    let optional = |option, path: Option<&Path>| -> Result<Option<Blob>, PayloadError> {
        path.map(|path| read(option, path, OFFERED).map(blob))
            .transpose()
    };
    let kernel = read("--kernel", &files.kernel, OFFERED)?;
    // Any EFI program will do for firmware that starts it as one; which does is known when it has been looked at.
    if !kernel.starts_with(b"MZ") && identify(&kernel).is_err() {
        return Err(PayloadError::Unusable {
            option: "--kernel",
            path: files.kernel.clone(),
            problem: "is neither an EFI program nor a kernel; give a bzImage (vmlinuz)",
        });
    }
    Ok(KernelFiles {
        kernel: blob(kernel),
        initramfs: optional("--initramfs", files.initramfs.as_deref())?,
        cmdline: files.cmdline.clone(),
        shim: optional("--shim", payload.shim.as_deref())?,
    })
}

/// The formats of kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    BzImage { setup_header: Vec<u8> },
    Elf,
}

/// What the head of a kernel file says. Linux: Documentation/arch/x86/boot.rst; ELF: gABI, 4.
pub(crate) fn identify(head: &[u8]) -> Result<Format, &'static str> {
    const ELF_X86_64_LITTLE_ENDIAN: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    const EM_X86_64: &[u8] = &[62, 0];
    const OLDEST_PROTOCOL: u16 = 0x20c;
    const LOADED_HIGH: u8 = 1;
    const KERNEL_64: u16 = 1;
    if head.starts_with(&ELF_X86_64_LITTLE_ENDIAN) {
        return match head.get(18..20) {
            Some(EM_X86_64) => Ok(Format::Elf),
            _ => Err("is an ELF file for another machine; x86-64 is needed"),
        };
    }
    if head.starts_with(b"\x7fELF") {
        return Err("is an ELF file, but not a 64-bit little-endian one");
    }
    if head.get(0x202..0x206) != Some(b"HdrS") || head.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) {
        return Err("is no kernel; give a bzImage (vmlinuz) or an ELF vmlinux");
    }
    let u16_at = |at: usize| match head.get(at..at + 2) {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        _ => 0,
    };
    // From 2.12 on the header says whether there is a 64-bit entry point (xloadflags).
    if u16_at(0x206) < OLDEST_PROTOCOL || u16_at(0x236) & KERNEL_64 == 0 {
        return Err(
            "is a bzImage without a 64-bit entry point; use a 64-bit kernel of 3.8 or newer",
        );
    }
    if head.get(0x211).is_none_or(|flags| flags & LOADED_HIGH == 0) {
        return Err("is a zImage; use a bzImage");
    }
    let end = 0x202 + usize::from(head.get(0x201).copied().unwrap_or(0));
    match head.get(0x1f1..end) {
        Some(header) => Ok(Format::BzImage {
            setup_header: header.to_vec(),
        }),
        None => Err("is a bzImage whose setup header is cut off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage() -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        head[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        head[0x211] = 1;
        head[0x236] = 0x7f;
        head
    }

    #[test]
    fn bzimage_gives_its_whole_setup_header() {
        let Ok(Format::BzImage { setup_header }) = identify(&bzimage()) else {
            panic!()
        };
        assert_eq!(setup_header.len(), 0x202 + 0x6a - 0x1f1);
    }

    #[test]
    fn what_is_no_64_bit_kernel_is_refused() {
        for (at, byte) in [(0x202, 0), (0x1fe, 0), (0x207, 1), (0x236, 0), (0x211, 0)] {
            let mut head = bzimage();
            head[at] = byte;
            assert!(identify(&head).is_err(), "{at:#x}");
        }
        assert!(identify(b"").is_err());
        assert!(identify(&bzimage()[..0x230]).is_err());
        assert!(identify(b"\x7fELF\x01\x01").unwrap_err().contains("64-bit"));
        assert!(
            identify(&[0x7f, b'E', b'L', b'F', 2, 1])
                .unwrap_err()
                .contains("another machine")
        );
    }

    #[test]
    fn missing_file_names_the_option_and_the_file() {
        let error = Kernel::open(Path::new("/no/such/kernel")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--kernel /no/such/kernel: cannot be read"
        );
        let error = Initramfs::open(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("no regular file"));
    }
}
