//! QEMU as the VMM in L1: shows that the testbed is sound without `tdvmm`.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::guest::Then;
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::Outcome;

use crate::guests::{Guest, PLAIN};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let guest = Guest {
        kernel: "7.2",
        cpus: 2,
        memory_mib: 512,
        then: Then::PowerOff,
    };
    vec![Case {
        name: "qemu-boot-2cpu".to_owned(),
        tier: Tier::Representative,
        machine: &PLAIN,
        prepare: |machine| {
            machine.add_kernel("7.2", "/guest/7.2")?;
            machine.add_qemu()
        },
        deadline: Duration::from_secs(180),
        run: Box::new(move |context| boot(context, guest)),
    }]
}

fn boot(context: &mut Context<'_>, guest: Guest) -> Result<()> {
    let run = context.l1.start(&guest.under_qemu())?;
    let (_, up) = guest.check(context, run)?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(0),
        "QEMU ended with {:?}",
        end.outcome
    );
    context.note(format!("QEMU: marker after {:.1} s", up.as_secs_f64()));
    Ok(())
}
