//! Every way for a machine to end has its own exit code.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::exit_codes;
use tdvmm_tests::guest::{MARKER, PANIC, Then};
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Outcome, RunId};

use crate::guests::{Guest, PLAIN, with_tdvmm};

const SIGTERM: i32 = 15;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let case = |name: &str, tier, run: fn(&mut Context<'_>) -> Result<()>| Case {
        name: name.to_owned(),
        tier,
        machine: &PLAIN,
        prepare: with_tdvmm,
        deadline: Duration::from_secs(180),
        run: Box::new(run),
    };
    vec![
        // With one vCPU, `serial-to-socket-and-terminal` shows these in every run.
        case("reset-2cpu-ends-with-its-code", Tier::Full, |context| {
            restart(context, Then::Reboot).map(drop)
        }),
        case("panic-2cpu-restarts", Tier::Full, |context| {
            let run = restart(context, Then::Panic)?;
            ensure!(context.l1.output(run).contains(PANIC), "there was no panic");
            Ok(())
        }),
        case("sigterm-in-mid-boot", Tier::Representative, sigterm),
    ]
}

/// A restart of the guest, also after a panic with `panic=-1`, ends the VMM with the reset's code.
fn restart(context: &mut Context<'_>, then: Then) -> Result<RunId> {
    let guest = Guest {
        cpus: 2,
        ..Guest::small(then)
    };
    let run = context.l1.start(&guest.under_tdvmm("tty"))?;
    context.l1.wait_for(run, MARKER, context.left())?;
    expect_code(context, run, exit_codes::RESET)?;
    Ok(run)
}

/// The kernel has said its first words and its user space has not started.
fn sigterm(context: &mut Context<'_>) -> Result<()> {
    let guest = Guest {
        cpus: 2,
        ..Guest::small(Then::PowerOff)
    };
    let run = context
        .l1
        .start(&guest.under_tdvmm_with("tty", "console=ttyS0 panic=-1"))?;
    context.l1.wait_for(run, "Linux version", context.left())?;
    context.l1.signal(run, SIGTERM)?;
    expect_code(context, run, exit_codes::SIGTERM)?;
    ensure!(
        !context.l1.output(run).contains(MARKER),
        "the guest was up before the signal"
    );
    Ok(())
}

fn expect_code(context: &mut Context<'_>, run: RunId, code: i32) -> Result<()> {
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(code),
        "tdvmm ended with {:?}, not {code}",
        end.outcome
    );
    Ok(())
}
