//! A kernel that goes into sections of the firmware image, as TD-Shim wants it, and what cannot go there.
//!
//! Such firmware trusts what it finds: what it would trip over, or leave out without a word, is refused here, before
//! anything is created.

use std::fmt;
use std::path::Path;

use tdvmm_arch::Gpa;
use tdvmm_arch::layout::RamLayout;
use tdvmm_firmware::image::{Family, Image, SectionKind};
use tdvmm_firmware::td_shim::{self, DirectBoot, DirectBootError, PayloadInfo};
use thiserror::Error;

use super::boot::SetupHeader;
use crate::config::{FirmwarePayload, KernelPayload, Machine, Payload};
use crate::payload::{Firmware, Format, identify};

/// More of a command line is not repeated in a message.
const SHOWN: usize = 40;

/// What was asked for cannot be handed over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{option} {value}: {problem}; {remedy}")]
pub struct HandoverError {
    option: &'static str,
    value: String,
    problem: String,
    remedy: &'static str,
}

impl HandoverError {
    fn file(
        option: &'static str,
        path: &Path,
        problem: &dyn fmt::Display,
        remedy: &'static str,
    ) -> Self {
        Self {
            option,
            value: path.display().to_string(),
            problem: problem.to_string(),
            remedy,
        }
    }

    fn cmdline(cmdline: &str, problem: &dyn fmt::Display, remedy: &'static str) -> Self {
        let start: String = cmdline.chars().take(SHOWN).collect();
        Self {
            option: "--cmdline",
            value: format!("{start:?}"),
            problem: problem.to_string(),
            remedy,
        }
    }
}

/// What goes into the sections of `image`; `None` where it has none for a kernel. `names` says where `files` come from.
///
/// # Errors
///
/// If the image cannot start them, or needs a kernel and is given none.
pub fn handover<'a>(
    image: &Image<'_>,
    files: &'a Firmware,
    names: &FirmwarePayload,
    ram: &RamLayout,
) -> Result<Option<DirectBoot<'a>>, HandoverError> {
    let kernel = files.kernel.as_ref().zip(names.kernel.as_ref());
    let Some((kernel, kernel_names)) = kernel else {
        return if image.wants_payload() {
            Err(HandoverError::file(
                "--firmware",
                &names.image,
                &"starts the kernel of its Payload section, and there is none",
                "give --kernel with a bzImage (vmlinuz)",
            ))
        } else {
            Ok(None)
        };
    };
    if !image.wants_payload() {
        return if image.family() == Family::TdShim {
            Err(HandoverError::file(
                "--kernel",
                &kernel_names.kernel,
                &"this TD-Shim image brings what it starts, and takes no kernel",
                "leave it out, or take an image with an empty Payload section",
            ))
        } else {
            Ok(None)
        };
    }
    if let Some(shim) = &names.shim {
        return Err(HandoverError::file(
            "--shim",
            shim,
            &format_args!(
                "{} firmware is handed its kernel in memory and checks no signature",
                image.family()
            ),
            "leave it out",
        ));
    }
    let bytes = (*kernel.kernel).as_ref();
    let initramfs = kernel.initramfs.as_ref().map(|blob| (**blob).as_ref());
    let boot = td_shim::direct_boot(image, bytes, &kernel.cmdline, initramfs)
        .map_err(|error| refusal(error, kernel_names))?;
    if boot.info == PayloadInfo::BzImage {
        check_header(bytes, kernel_names, image, ram)?;
    }
    Ok(Some(boot))
}

/// The firmware jumps to the 64-bit entry without a look at the header, and the kernel cuts its command line off where
/// it has no more room.
fn check_header(
    kernel: &[u8],
    names: &KernelPayload,
    image: &Image<'_>,
    ram: &RamLayout,
) -> Result<(), HandoverError> {
    let refused = |problem: &str| {
        HandoverError::file("--kernel", &names.kernel, &problem, "give another kernel")
    };
    let kind = identify(kernel).map_err(refused)?;
    let Format::BzImage { setup_header } = kind else {
        return Ok(());
    };
    let header = SetupHeader(&setup_header);
    let max = header.cmdline_max();
    if names.cmdline.len() as u64 > max {
        return Err(HandoverError::cmdline(
            &names.cmdline,
            &format_args!(
                "has {} bytes, and the kernel takes {max}",
                names.cmdline.len()
            ),
            "shorten it",
        ));
    }
    let payload = image.section(SectionKind::Payload);
    let load = payload.map_or(Gpa(0), |section| section.range().start());
    let (needed, end) = (header.needs_until(load), ram.low().end());
    if needed > end {
        return Err(HandoverError {
            option: "--memory",
            value: format!("size={}", ram.size()),
            problem: format!("the kernel needs RAM up to {needed} to start, and RAM ends at {end}"),
            remedy: "give the guest more memory",
        });
    }
    Ok(())
}

fn refusal(error: DirectBootError, names: &KernelPayload) -> HandoverError {
    let kernel = |remedy| HandoverError::file("--kernel", &names.kernel, &error, remedy);
    match error {
        DirectBootError::Initramfs => HandoverError::file(
            "--initramfs",
            names.initramfs.as_deref().unwrap_or(Path::new("")),
            &"TD-Shim takes no separate initramfs",
            "build it into the kernel, or take OVMF",
        ),
        DirectBootError::CmdlineTooLong { .. } => {
            HandoverError::cmdline(&names.cmdline, &error, "shorten it")
        }
        DirectBootError::Nul(_) => HandoverError::cmdline(&names.cmdline, &error, "take it out"),
        DirectBootError::KernelTooLong { .. } => {
            kernel("take a smaller kernel, or firmware with a larger section")
        }
        DirectBootError::Elsewhere { .. } | DirectBootError::Overlap(_) => {
            kernel("give a bzImage (vmlinuz), which finds its place itself")
        }
        DirectBootError::Format | DirectBootError::Segment(_) => kernel("give a bzImage (vmlinuz)"),
        DirectBootError::NoSection(_) | DirectBootError::Occupied => {
            kernel("take firmware with empty Payload and PayloadParam sections")
        }
    }
}

/// Whether a kernel for the image `bytes` goes into its memory and not into fw_cfg.
pub fn is_in_memory(bytes: &[u8]) -> bool {
    Image::parse(bytes).is_ok_and(|image| image.wants_payload())
}

/// Whether the kernel of `files`, if there is one, is what firmware starts that finds it in fw_cfg: an EFI program.
///
/// # Errors
///
/// If it is none.
pub fn check_efi_program(files: &Firmware, machine: &Machine) -> Result<(), HandoverError> {
    let Payload::Firmware(names) = &machine.payload else {
        return Ok(());
    };
    match files.kernel.as_ref().zip(names.kernel.as_ref()) {
        Some((kernel, names)) if !(*kernel.kernel).as_ref().starts_with(b"MZ") => {
            Err(HandoverError::file(
                "--kernel",
                &names.kernel,
                &"is no EFI program",
                "firmware starts a bzImage (vmlinuz) with an EFI stub",
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
