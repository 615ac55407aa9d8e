//! Firmware that enforces secure boot, with Debian's shim, with Debian's signed kernel, and with one that is not signed.
//!
//! A refusal is for the guest's console, where the firmware then waits for a key. Whoever started `tdvmm` is told, too.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::efi;
use tdvmm_tests::exit_codes;
use tdvmm_tests::fixture::install::{FIRMWARE, blank_variables, firmware_variables};
use tdvmm_tests::guest::MARKER;
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, Tier};
use tdvmm_tests::kernel;
use tdvmm_tests::l1::{Machine, Outcome};

use super::emtdx::{self, KERNEL, TDX, ovmf_mrtd};
use super::guests;
use super::td_debian::{Td, case};

const SHIM: &str = "/tdx/shimx64.efi";
/// A program that the shim starts.
const SIGNED_PROGRAM: &str = "/tdx/grubx64.efi";
/// Variables of the same release without any key, so that nothing is enforced.
const BLANK: &str = "/tdx/vars-blank.fd";
/// The firmware's variables, with the key that signed Debian's kernel among those that may start.
const OWN_KEY: &str = "/tdx/vars-own-key.fd";
const SIGTERM: i32 = 15;
/// What the firmware says of a kernel that may not start.
const REFUSED: &str = "Secure boot image verification failed";
/// Debian's kernel without its signature.
const UNSIGNED_KERNEL: &str = "/tdx/kernel-unsigned";
/// A TD that may not start it.
const UNSIGNED: Td = Td {
    firmware: FIRMWARE,
    kernel: UNSIGNED_KERNEL,
    ..Td::SMALL
};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let full = Tier::Full;
    vec![
        case(
            "td-secure-boot-shim-and-unsigned-kernel",
            full,
            &TDX,
            with_shim,
            shim_and_unsigned,
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
                    ..Td::SMALL
                };
                let [output] = speak(context, [(td, "Security Violation")])?;
                explained(
                    &output,
                    "the shim refuses the kernel, which has no .sbat section",
                )
            },
        ),
        case(
            "td-secure-boot-other-variables",
            full,
            &TDX,
            with_shim,
            other_variables,
        ),
    ]
}

/// The shim starts what bears a signature that it trusts, and the firmware refuses a kernel that bears none. Both TDs boot
/// at once, which takes hardly longer here than one.
fn shim_and_unsigned(context: &mut Context<'_>) -> Result<()> {
    // Debian's kernels lack the section that the shim demands; Debian's GRUB has it.
    let shim = Td {
        firmware: FIRMWARE,
        kernel: SIGNED_PROGRAM,
        shim: Some(SHIM),
        ..Td::SMALL
    };
    let [_, refused] = speak(context, [(shim, "GNU GRUB"), (UNSIGNED, REFUSED)])?;
    explained(&refused, "refuses the kernel, which bears no signature")
}

/// Variables in the place of the firmware's own decide what may start, change `RTMR[0]` and leave MRTD as it was. Its own
/// refuse the kernel without a signature; blank ones let it start; with one key more the signed kernel may.
fn other_variables(context: &mut Context<'_>) -> Result<()> {
    emtdx::ended(context)?;
    speak(context, [(UNSIGNED, REFUSED)])?;
    // A TD that refuses its kernel cannot tell what it measured: the witness does, where there is one.
    let mut first_registers: Vec<String> = Vec::new();
    for ended in emtdx::ended(context)? {
        ensure!(ended.end.is_empty(), "the TD died: {}", ended.end);
        ensure!(ended.mrtd == ovmf_mrtd()?, "MRTD is {}", ended.mrtd);
        first_registers.push(ended.rtmr0);
    }
    let witnesses = usize::from(!context.l1.is_host());
    let count = first_registers.len();
    ensure!(count == witnesses, "{count} TDs ended, not {witnesses}");

    let blank = Td {
        vars: Some(BLANK),
        ..UNSIGNED
    };
    let own_key = Td {
        kernel: KERNEL,
        vars: Some(OWN_KEY),
        ..UNSIGNED
    };
    for td in [blank, own_key] {
        let report = td.boots(context)?;
        let mrtd = report.td_value("mrtd");
        ensure!(mrtd == Some(ovmf_mrtd()?), "the guest's MRTD is {mrtd:?}");
        let told = report
            .td_value("rtmr0")
            .context("no RTMR[0] in the report")?;
        first_registers.push(told.to_owned());
    }
    let zero = "0".repeat(96);
    let distinct: BTreeSet<&String> = first_registers.iter().filter(|r| **r != zero).collect();
    ensure!(
        distinct.len() == first_registers.len(),
        "RTMR[0] with each of the stores: {first_registers:?}"
    );
    Ok(())
}

/// Adds Debian's shim, a program for it, a kernel without a signature, variables with the kernel's key, and blank ones.
fn with_shim(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    let packages = machine.packages();
    let shim = packages.unpack("shim-signed")?;
    let shim = shim.join("usr/lib/shim/shimx64.efi.signed");
    let signed = fs::read(kernel::image(
        &packages.kernel_parts(L1_KERNEL, &["image"])?,
    )?)?;
    let unsigned = efi::without_signature(signed.clone()).context("the kernel is not signed")?;
    let certificate = efi::certificate(&signed).context("the signature has no certificate")?;
    let variables = efi::with_key(firmware_variables(packages)?, certificate)
        .context("the firmware's variables have no list of keys")?;
    let blank = blank_variables(packages)?;
    let grub = packages.unpack("grub-signed")?;
    let grub = grub.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let archive = machine.archive();
    archive.copy(SHIM, 0o644, &shim)?;
    archive.copy(SIGNED_PROGRAM, 0o644, &grub)?;
    archive.file(UNSIGNED_KERNEL, 0o644, unsigned);
    archive.file(OWN_KEY, 0o644, variables);
    archive.copy(BLANK, 0o644, &blank)?;
    Ok(())
}

/// Starts TDs, waits for the text of each on its console, where it then waits for a key, ends `tdvmm`, and gives all that
/// was said.
fn speak<const N: usize>(context: &mut Context<'_>, tds: [(Td, &str); N]) -> Result<[String; N]> {
    emtdx::hold(context)?;
    let mut runs = Vec::new();
    for (td, text) in tds {
        runs.push((context.l1.start(&td.program())?, text));
    }
    for &(run, text) in &runs {
        let after = context.l1.wait_for(run, text, context.left())?;
        context.note(format!("`{text}` after {:.1} s", after.as_secs_f64()));
    }
    let mut outputs = [const { String::new() }; N];
    for ((run, text), output) in runs.into_iter().zip(&mut outputs) {
        context.l1.signal(run, SIGTERM)?;
        let end = context.l1.wait_end(run, context.left())?;
        let outcome = Outcome::Exited(exit_codes::SIGTERM);
        ensure!(end.outcome == outcome, "{text}: {:?}", end.outcome);
        *output = context.l1.output(run);
        ensure!(!output.contains(MARKER), "{text}: the kernel was started");
    }
    Ok(outputs)
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
