//! Firmware that enforces secure boot, with Debian's shim, with Debian's signed kernel, and with one that is not signed.
//!
//! A refusal is for the guest's console, where the firmware then waits for a key. Whoever started `tdvmm` is told, too.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::efi;
use tdvmm_tests::exit_codes;
use tdvmm_tests::fixture::install::{FIRMWARE, firmware_variables};
use tdvmm_tests::guest::MARKER;
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, Tier};
use tdvmm_tests::kernel;
use tdvmm_tests::l1::{Machine, Outcome};

use super::emtdx::{self, TDX};
use super::guests;
use super::td_debian::{Td, case};

const SHIM: &str = "/tdx/shimx64.efi";
/// A program that the shim starts.
const SIGNED_PROGRAM: &str = "/tdx/grubx64.efi";
/// The firmware's variables, with the key that signed Debian's kernel among those that may start.
const OWN_KEY: &str = "/tdx/vars-own-key.fd";
const SIGTERM: i32 = 15;
/// Debian's kernel without its signature.
const UNSIGNED_KERNEL: &str = "/tdx/kernel-unsigned";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let (quick, full) = (Tier::Representative, Tier::Full);
    vec![
        case("td-secure-boot-shim", quick, &TDX, with_shim, |context| {
            // Debian's kernels lack the section that the shim demands; Debian's GRUB has it.
            let td = Td {
                firmware: FIRMWARE,
                kernel: SIGNED_PROGRAM,
                shim: Some(SHIM),
                ..Td::default()
            };
            speaks(context, td, "GNU GRUB").map(drop)
        }),
        case(
            "td-secure-boot-refuses-unsigned-kernel",
            quick,
            &TDX,
            with_shim,
            |context| {
                let td = Td {
                    firmware: FIRMWARE,
                    kernel: UNSIGNED_KERNEL,
                    ..Td::default()
                };
                let output = speaks(context, td, "Secure boot image verification failed")?;
                explained(&output, "refuses the kernel, which bears no signature")
            },
        ),
        case(
            "td-secure-boot-shim-refuses-kernel-without-sbat",
            full,
            &TDX,
            with_shim,
            |context| {
                let td = Td {
                    firmware: FIRMWARE,
                    shim: Some(SHIM),
                    ..Td::default()
                };
                let output = speaks(context, td, "Security Violation")?;
                explained(
                    &output,
                    "the shim refuses the kernel, which has no .sbat section",
                )
            },
        ),
        case("td-secure-boot-own-key", full, &TDX, with_shim, |context| {
            let td = Td {
                firmware: FIRMWARE,
                vars: Some(OWN_KEY),
                ..Td::default()
            };
            td.boots(context).map(drop)
        }),
    ]
}

/// Adds Debian's shim, a program for it, a kernel without a signature, and variables with the kernel's key.
fn with_shim(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    let packages = machine.packages();
    let shim = packages.unpack("shim-signed")?;
    let shim = shim.join("usr/lib/shim/shimx64.efi.signed");
    let signed = fs::read(kernel::image(&packages.kernel(L1_KERNEL)?)?)?;
    let unsigned = efi::without_signature(signed.clone()).context("the kernel is not signed")?;
    let certificate = efi::certificate(&signed).context("the signature has no certificate")?;
    let variables = efi::with_key(firmware_variables(packages)?, certificate)
        .context("the firmware's variables have no list of keys")?;
    let grub = packages.unpack("grub-signed")?;
    let grub = grub.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let archive = machine.archive();
    archive.copy(SHIM, 0o644, &shim)?;
    archive.copy(SIGNED_PROGRAM, 0o644, &grub)?;
    archive.file(UNSIGNED_KERNEL, 0o644, unsigned);
    archive.file(OWN_KEY, 0o644, variables);
    Ok(())
}

/// Waits for `text` on the console of a TD that then waits for a key, ends `tdvmm`, and gives all that was said.
fn speaks(context: &mut Context<'_>, td: Td, text: &str) -> Result<String> {
    emtdx::hold(context)?;
    let run = context.l1.start(&td.program())?;
    let after = context.l1.wait_for(run, text, context.left())?;
    context.note(format!("`{text}` after {:.1} s", after.as_secs_f64()));
    context.l1.signal(run, SIGTERM)?;
    let end = context.l1.wait_end(run, context.left())?;
    let outcome = Outcome::Exited(exit_codes::SIGTERM);
    ensure!(end.outcome == outcome, "{:?}", end.outcome);
    let output = context.l1.output(run);
    ensure!(!output.contains(MARKER), "the kernel was started");
    Ok(output)
}

/// `tdvmm` says before the start and at the end why the kernel does not come up.
fn explained(output: &str, why: &str) -> Result<()> {
    let mut said = output.lines().filter(|line| line.contains(why));
    let (before, after) = (said.next(), said.next());
    let warned = before.is_some_and(|line| line.contains("WARN  --kernel: "));
    // The guest's own line, on the same terminal, may not be over.
    let told = after.is_some_and(|line| line.contains("tdvmm: ended by signal SIGTERM; "));
    ensure!(warned && told, "tdvmm says {before:?} and {after:?}");
    Ok(())
}
