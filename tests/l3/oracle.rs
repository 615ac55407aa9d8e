//! QEMU as the VMM in L1: shows that the testbed is sound without `tdvmm`.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::debian::Role;
use tdvmm_tests::guest::Then;
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Outcome, Program};

use crate::guests::{Guest, KERNEL, PLAIN};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![qemu_boots(), programs_stay_off_first_cpu()]
}

fn qemu_boots() -> Case {
    let guest = Guest {
        kernel: Role::Main,
        cpus: 2,
        memory_mib: 512,
        then: Then::PowerOff,
    };
    Case {
        name: "qemu-boot-2cpu".to_owned(),
        // In every run `boot-time-against-qemu` has QEMU boot two vCPUs.
        tier: Tier::Full,
        machine: &PLAIN,
        prepare: |machine| {
            machine.add_kernel(Role::Main, KERNEL)?;
            machine.add_qemu()
        },
        deadline: Duration::from_secs(180),
        run: Box::new(move |context| boot(context, guest)),
    }
}

/// The rule that keeps guests away from the emulator's defect on the first CPU.
fn programs_stay_off_first_cpu() -> Case {
    Case {
        name: "testbed-programs-stay-off-first-cpu".to_owned(),
        tier: Tier::Representative,
        machine: &PLAIN,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(60),
        run: Box::new(|context| {
            let program = Program::script("grep Cpus_allowed_list: /proc/self/status; exit 7");
            let (end, output) = context.l1.run(&program, context.left())?;
            ensure!(
                end.outcome == Outcome::Exited(7),
                "the shell ended with {:?}",
                end.outcome
            );
            let list = output.split_whitespace().last().unwrap_or_default();
            let last = context.l1.cpus - 1;
            ensure!(last >= 1, "this L1 has one CPU only");
            let expected = if last == 1 {
                "1".to_owned()
            } else {
                format!("1-{last}")
            };
            ensure!(
                list == expected,
                "programs may run on CPUs {list}, not {expected}"
            );
            Ok(())
        }),
    }
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
