//! The time of a TD's boot beside QEMU's.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::guest::MARKER;
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Machine, Program};

use super::emtdx::{self, TDX};
use super::guests;
use super::qemu_td::QemuTd;
use super::td;

/// Boots of each VMM that are compared.
const ROUNDS: u32 = 10;
/// The time of a TD's boot under `tdvmm`, in proportion to QEMU's.
const RATIO_MAX: f64 = 0.9;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![time_against_qemu()]
}

/// Both VMMs boot the same TD in turns in one L1: the median time from the VMM's start to the guest's marker.
fn time_against_qemu() -> Case {
    Case {
        name: "td-time-against-qemu".to_owned(),
        tier: Tier::Full,
        machine: &TDX,
        prepare: with_tdvmm_and_qemu,
        deadline: Duration::from_secs(u64::from(ROUNDS) * 300),
        run: Box::new(|context| {
            emtdx::hold(context)?;
            let theirs = QemuTd {
                cpus: 2,
                memory_mib: 512,
                words: "",
            }
            .command();
            let ours = td::td_program(2);
            let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                our_times.push(time_to_marker(context, &ours)?);
                their_times.push(time_to_marker(context, &theirs)?);
            }
            let (us, them) = (median(&mut our_times), median(&mut their_times));
            let ratio = us / them;
            context.note(format!(
                "marker after {us:.1} s under tdvmm, {them:.1} s under QEMU (medians of {ROUNDS}): {ratio:.2}"
            ));
            ensure!(
                ratio <= RATIO_MAX,
                "a TD's boot takes {ratio:.2} of the time that it takes under QEMU, not {RATIO_MAX} at most: \
                 {our_times:.1?} against {their_times:.1?} s"
            );
            Ok(())
        }),
    }
}

fn with_tdvmm_and_qemu(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    machine.add_qemu()
}

/// Seconds from the start of the VMM to the guest's marker; what comes after it is not waited for.
fn time_to_marker(context: &mut Context<'_>, program: &Program) -> Result<f64> {
    let run = context.l1.start(program)?;
    let up = context.l1.wait_for(run, MARKER, context.left())?;
    context.l1.signal(run, libc::SIGTERM)?;
    context.l1.wait_end(run, context.left())?;
    Ok(up.as_secs_f64())
}

/// The middle of some times; the upper one of two middles.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
