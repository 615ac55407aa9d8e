//! The emulated TDX without a VMM: its ABI against the conformance list, TDs of one page, TDs under stress, and what
//! they leave behind. The prober runs in L1.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::debian::{Packages, Role};
use tdvmm_tests::fixture::Fixture;
use tdvmm_tests::fixture::install::{PROBE, STRESS_IMAGE};
use tdvmm_tests::harness::{Case, Context, MachineKind, Tier};
use tdvmm_tests::l1::{Outcome, Program};
use tdvmm_tests::probe;

use super::emtdx::{TDX, TDX_NEWEST, hold};
use super::leftovers::{LEFT, Left};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for name in probe::conformance_names() {
        cases.push(probe_case("tdx-conformance", &["conformance"], &name));
    }
    for name in probe::tiny_names() {
        cases.push(probe_case("tdx-tiny", &["tiny"], &name));
    }
    for name in probe::puppet_names() {
        cases.push(probe_case("tdx-calls", &["puppet", STRESS_IMAGE], &name));
    }
    let (quick, full) = (Tier::Representative, Tier::Full);
    cases.extend([
        stress("tdx-stress-2cpu", quick, &TDX, ["2", "1000", "accept", "0"]),
        stress(
            "tdx-stress-touch-2cpu",
            quick,
            &TDX,
            ["2", "500", "touch", "0"],
        ),
        stress(
            "tdx-stress-soak-2cpu",
            full,
            &TDX,
            ["2", "4000", "accept", "20000"],
        ),
        stress(
            "tdx-stress-4cpu",
            full,
            &TDX,
            ["4", "300", "accept", "1000"],
        ),
        accounting(),
        builds_for_newest(),
        whole_list_on_newest(),
        stress(
            "tdx-newest-stress-2cpu",
            full,
            &TDX_NEWEST,
            ["2", "1000", "accept", "0"],
        ),
    ]);
    cases
}

fn probe_case(group: &str, command: &'static [&'static str], name: &str) -> Case {
    let case = name.to_owned();
    Case {
        name: format!("{group}/{name}"),
        tier: Tier::Representative,
        machine: &TDX,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(60),
        run: Box::new(move |context| {
            let program = Program::new(PROBE).args(command.iter().copied());
            probe_passes(context, &program.args([case.as_str()])).map(drop)
        }),
    }
}

fn stress(
    name: &str,
    tier: Tier,
    machine: &'static MachineKind,
    [cpus, pages, how, soak]: [&'static str; 4],
) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(300),
        run: Box::new(move |context| {
            hold(context)?;
            let program =
                Program::new(PROBE).args(["stress", STRESS_IMAGE, cpus, pages, how, soak, "240"]);
            let output = probe_passes(context, &program)?;
            let figures = output.lines().find(|line| line.contains("pages: accepted"));
            context.note(figures.unwrap_or_default().trim().to_owned());
            Ok(())
        }),
    }
}

/// What `--full` runs on the newest kernel is built for it in every run, so that a kernel which breaks the module, or is
/// gone, is named at once.
fn builds_for_newest() -> Case {
    Case {
        name: "tdx-newest-build".to_owned(),
        tier: Tier::Representative,
        machine: &TDX,
        prepare: |_| Ok(()),
        // Packages and a build, where the cache has none.
        deadline: Duration::from_secs(900),
        run: Box::new(|context| {
            let fixture = Fixture::open(&Packages::open()?, Role::Newest)?;
            for module in ["kvm", "kvm-amd"] {
                let path = fixture.module(module);
                ensure!(path.is_file(), "there is no {}", path.display());
            }
            context.note(format!("for Linux {}", fixture.release));
            Ok(())
        }),
    }
}

/// The list as one case, where it need not be told line by line.
fn whole_list_on_newest() -> Case {
    Case {
        name: "tdx-newest-conformance".to_owned(),
        tier: Tier::Full,
        machine: &TDX_NEWEST,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(120),
        run: Box::new(|context| {
            hold(context)?;
            probe_passes(context, &Program::new(PROBE).args(["conformance"]))?;
            probe_passes(context, &Program::new(PROBE).args(["tiny"]))?;
            let calls = Program::new(PROBE).args(["puppet", STRESS_IMAGE]);
            probe_passes(context, &calls).map(drop)
        }),
    }
}

/// Runs the prober; its failures are the case's.
fn probe_passes(context: &mut Context<'_>, program: &Program) -> Result<String> {
    let (end, output) = context.l1.run(program, context.left())?;
    let failures: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    ensure!(
        end.outcome == Outcome::Exited(0) && failures.is_empty(),
        "the prober ended with {:?}: {}",
        end.outcome,
        if failures.is_empty() {
            output.as_str()
        } else {
            &failures[0]
        }
    );
    Ok(output)
}

/// Descriptors, key ids and memory after 20 TDs. One script does it all, so that what the testbed itself keeps for each
/// run of a program is not counted. In every run `td-accounting-20-tds` does the same with `tdvmm`.
fn accounting() -> Case {
    Case {
        name: "tdx-accounting-20-tds".to_owned(),
        tier: Tier::Full,
        machine: &TDX,
        prepare: |_| Ok(()),
        deadline: Duration::from_secs(300),
        run: Box::new(|context| {
            hold(context)?;
            let script = format!(
                "b=/bin/busybox
                td() {{ {PROBE} stress {STRESS_IMAGE} 1 400 accept 0 60 || exit 1; }}
                {LEFT}
                td; left BEFORE
                for i in $($b seq 20); do td; done
                left AFTER"
            );
            Left::check(context, &script)
        }),
    }
}
