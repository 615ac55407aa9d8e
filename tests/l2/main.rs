//! Lane L2: guests in assembly under the real `tdvmm`, natively on `/dev/kvm`.
//!
//! A case that needs what this machine lacks is reported as ignored, with the reason; naming the need in
//! `TDVMM_REQUIRE` (such as `TDVMM_REQUIRE=kvm,cc`) makes it fail instead. Every run of the VMM has a
//! watchdog, and no case is run a second time.

mod disk;
mod endings;
mod exits;
mod hostile;
mod interrupts;
mod lab;
mod ratchet;
mod refusals;
mod serial;
mod terminal;

use std::process::ExitCode;
use std::sync::Arc;

use lab::{Case, Lab};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tdvmm_tests::native::needs::Need;

fn main() -> ExitCode {
    if std::env::var_os(terminal::PANIC_CHILD).is_some() {
        return terminal::panic_child();
    }
    let lab = Arc::new(Lab::default());
    let cases = [
        disk::cases(),
        exits::cases(),
        interrupts::cases(),
        serial::cases(),
        endings::cases(),
        terminal::cases(),
        refusals::cases(),
        hostile::cases(),
        ratchet::cases(),
    ];
    let mut missing = Vec::new();
    let trials = cases.into_iter().flatten().map(|case| {
        let reason = case
            .needs
            .iter()
            .find_map(|need| lacks(*need, &mut missing));
        trial(case, reason, &lab)
    });
    let trials = trials.collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Why `need` is missing. Each need is looked at once.
fn lacks(need: Need, known: &mut Vec<(Need, Option<String>)>) -> Option<Lack> {
    let at = known.iter().position(|(one, _)| *one == need);
    let at = at.unwrap_or_else(|| {
        known.push((need, need.missing()));
        known.len() - 1
    });
    known[at].1.clone().map(|reason| Lack { need, reason })
}

struct Lack {
    need: Need,
    reason: String,
}

fn trial(case: Case, lack: Option<Lack>, lab: &Arc<Lab>) -> Trial {
    let lab = Arc::clone(lab);
    Trial::ignorable_test(case.name, move || match lack {
        Some(Lack { need, reason }) if tdvmm_tests::harness::required(need.name()) => Err(
            Failed::from(format!("{} is required: {reason}", need.name())),
        ),
        Some(Lack { reason, .. }) => Ok(Completion::ignored_with(reason)),
        None => match (case.run)(&lab) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        },
    })
}
