//! Unmodified kernels boot under `tdvmm` to user space, see what they were given, and power off.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::debian::Role;
use tdvmm_tests::exit_codes;
use tdvmm_tests::guest::Then;
use tdvmm_tests::harness::{Case, Context, Preparation, Tier};
use tdvmm_tests::l1::Outcome;

use crate::guests::{
    Guest, PLAIN, check_warnings, with_both, with_tdvmm, with_tdvmm_and_old_kernel,
};

/// A boot takes 7 to 14 s on an idle machine, and several times that on a busy one.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// Kernels, vCPUs and memory that are combined, in MiB.
const KERNELS: [Role; 2] = [Role::Main, Role::Old];
const CPUS: [u32; 3] = [1, 2, 4];
const SMALL: u64 = 512;
const LARGE: u64 = 6144;
/// What runs without `--full`: each kernel, low and high memory. The cases of serial ports boot one vCPU, and the
/// comparison with QEMU is `boot-2cpu` as well.
const REPRESENTATIVE: [(Role, u32, u64); 2] = [(Role::Old, 2, SMALL), (Role::Main, 4, LARGE)];
/// How often each VMM boots at most for the comparison; the best time counts.
const COMPARED_BOOTS: u32 = 5;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for memory_mib in [SMALL, LARGE] {
        for kernel in KERNELS {
            for cpus in CPUS {
                let guest = Guest {
                    kernel,
                    cpus,
                    memory_mib,
                    then: Then::PowerOff,
                };
                cases.push(boot_case(guest));
            }
        }
    }
    cases.push(Case {
        name: "boot-time-against-qemu".to_owned(),
        tier: Tier::Representative,
        machine: &PLAIN,
        prepare: with_both,
        deadline: 4 * BOOT_DEADLINE,
        run: Box::new(compare),
    });
    cases
}

/// `boot-2cpu`, `boot-6.12-4cpu-6g` and so on, the series being that of the old kernel.
fn boot_case(guest: Guest) -> Case {
    let kernel = match guest.kernel {
        Role::Main => "",
        other => &format!("{}-", other.series()),
    };
    let memory = if guest.memory_mib == SMALL { "" } else { "-6g" };
    let name = format!("boot-{kernel}{}cpu{memory}", guest.cpus);
    let tier = if REPRESENTATIVE.contains(&(guest.kernel, guest.cpus, guest.memory_mib)) {
        Tier::Representative
    } else {
        Tier::Full
    };
    let prepare: Preparation = if kernel.is_empty() {
        with_tdvmm
    } else {
        with_tdvmm_and_old_kernel
    };
    let run = Box::new(move |context: &mut Context<'_>| {
        let up = boot_under_tdvmm(context, guest)?;
        context.note(format!(
            "marker {:.1} s after the start of tdvmm",
            up.as_secs_f64()
        ));
        Ok(())
    });
    Case {
        name,
        tier,
        machine: &PLAIN,
        prepare,
        deadline: BOOT_DEADLINE,
        run,
    }
}

/// Boots a guest that powers off; gives the time to its marker.
fn boot_under_tdvmm(context: &mut Context<'_>, guest: Guest) -> Result<Duration> {
    let run = context.l1.start(&guest.under_tdvmm("tty"))?;
    let (report, up) = guest.check(context, run)?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(exit_codes::POWER_OFF),
        "tdvmm ended with {:?} after the guest's power-off",
        end.outcome
    );
    check_warnings(&report)?;
    Ok(up)
}

/// The same kernel, initramfs and L1 under both VMMs, taking turns.
fn compare(context: &mut Context<'_>) -> Result<()> {
    let guest = Guest {
        cpus: 2,
        ..Guest::small(Then::PowerOff)
    };
    let (mut ours, mut theirs) = (Duration::MAX, Duration::MAX);
    let mut boots = 0;
    // A VMM differs by a tenth from boot to boot: where ours leads by more than that, one boot of each tells.
    while boots < COMPARED_BOOTS && ours >= theirs / 10 * 9 {
        boots += 1;
        ours = ours.min(boot_under_tdvmm(context, guest)?);
        let run = context.l1.start(&guest.under_qemu())?;
        theirs = theirs.min(guest.check(context, run)?.1);
        context.l1.wait_end(run, context.left())?;
    }
    context.note(format!(
        "start to marker, best of {boots}: tdvmm {:.1} s, QEMU {:.1} s",
        ours.as_secs_f64(),
        theirs.as_secs_f64()
    ));
    ensure!(
        ours <= theirs,
        "tdvmm is slower than QEMU: {ours:.1?} against {theirs:.1?}"
    );
    Ok(())
}
