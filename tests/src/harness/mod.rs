//! Runs cases of lane L3: one L1 boot for all cases that want the same machine, each case reported
//! by itself, in the form that `cargo test` prints.
//!
//! A case is a function from a session to a result. It fails if it returns an error, if it outlives
//! its deadline, or if L1's kernel reports trouble meanwhile. It is never run a second time to see
//! whether it passes then. After a case that broke L1, the next one gets a new L1, and that is said.
//!
//! Lane L4 runs cases of lane L3 on a host with TDX: the session, the files and the paths are the same, and what was L1
//! is a folder ([`Machine::on_host`]).
#![expect(clippy::print_stdout, reason = "prints results as a test runner does")]

mod options;
mod supply;
mod tally;

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::debian::{Packages, Role};
use crate::l1::{self, L1, Machine};
use crate::programs;

pub use options::Options;
use supply::Supply;
pub use tally::required;
use tally::{Tally, ignore_all};

/// By how much the deadlines of cases are longer than on a machine of their own. Where the host gives its processors to
/// others, a case that is slow has not failed (half of the time stolen made some take ten times as long); one that hangs
/// still does.
const PATIENCE: u32 = 4;
/// But no longer than this, unless twice the deadline is: a case that hangs holds up the lane.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// The kernel of L1.
pub const L1_KERNEL: Role = Role::Main;

/// When a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// In every run.
    Representative,
    /// With `--full` or when it is named.
    Full,
}

/// A kind of L1.
pub struct MachineKind {
    /// Name in messages.
    pub name: &'static str,
    /// Puts it together, with nothing in it that only some cases need.
    pub build: for<'a> fn(&'a Packages) -> Result<Machine<'a>>,
}

/// Adds to a machine what a case needs.
pub type Preparation = for<'a, 'b> fn(&'a mut Machine<'b>) -> Result<()>;

/// What the function of a case looks like.
pub type CaseFn = Box<dyn Fn(&mut Context<'_>) -> Result<()>>;

/// A case.
pub struct Case {
    /// Name, unique among all cases.
    pub name: String,
    /// When it runs.
    pub tier: Tier,
    /// In what it runs.
    pub machine: &'static MachineKind,
    /// Adds to the machine what this case needs (called for the cases that are selected).
    pub prepare: Preparation,
    /// The whole case is over by then on an idle machine; see [`Case::limit`].
    pub deadline: Duration,
    /// What it does.
    pub run: CaseFn,
}

impl Case {
    /// How long the case may take: four times its deadline, but no more than 15 minutes or twice the deadline.
    pub fn limit(&self) -> Duration {
        (self.deadline * PATIENCE).min(LONGEST.max(self.deadline * 2))
    }
}

/// What a case works with.
pub struct Context<'a> {
    /// The running L1.
    pub l1: &'a mut L1,
    end: Instant,
    notes: Vec<String>,
}

/// Something is missing here that nobody promised, which shows while a machine is built or a case runs: the cases are
/// ignored with this reason, neither passed nor failed.
#[derive(Debug)]
pub struct Unmet {
    need: &'static str,
    reason: String,
}

impl Unmet {
    /// `need` is what `TDVMM_REQUIRE` calls it.
    pub fn new(need: &'static str, reason: String) -> Self {
        Self { need, reason }
    }
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Unmet {}

impl Context<'_> {
    /// Time until the deadline of the case, for the waits in it.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// A fact for the summary, for instance a time.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }
}

/// Runs the selected cases in the testbed; true if none failed.
pub fn run(lane: &str, cases: &[Case], options: &Options) -> Result<bool> {
    run_by(lane, cases, options, |selected, tally| match available() {
        Ok(packages) => run_groups(&packages, selected, options, tally),
        Err(error) => ignore_all(
            selected,
            "testbed",
            &format!("no testbed: {error:#}"),
            tally,
        ),
    })
}

/// Runs the selected cases on this host, which has to have TDX, in the one folder that `kind` makes.
pub fn run_on_host(
    lane: &str,
    cases: &[Case],
    options: &Options,
    kind: &MachineKind,
) -> Result<bool> {
    run_by(lane, cases, options, |selected, tally| {
        if let Err(error) = tdx_is_ready() {
            let reason = format!("no TDX on this host: {error:#}");
            return ignore_all(selected, "tdx", &reason, tally);
        }
        let result = Packages::open().and_then(|packages| {
            let machine = assemble(&packages, kind, selected)?;
            run_group(&machine, selected, options, tally);
            Ok(())
        });
        if let Err(error) = result {
            let fail = |case: &&Case| tally.fail(case, &error, Duration::ZERO, None);
            selected.iter().for_each(fail);
        }
    })
}

fn run_by(
    lane: &str,
    cases: &[Case],
    options: &Options,
    run: impl FnOnce(&[&Case], &mut Tally),
) -> Result<bool> {
    if options.list {
        cases.iter().for_each(|c| println!("{}: test", c.name));
        return Ok(true);
    }
    let selected = options.select(lane, cases)?;
    if let Err(error) = l1::remove_old_logs() {
        crate::say(&format!("old logs stay: {error}"));
    }
    let times = usize::try_from(options.count.unwrap_or(1))?;
    let selected: Vec<&Case> = selected
        .into_iter()
        .flat_map(|c| std::iter::repeat_n(c, times))
        .collect();
    let mut tally = Tally {
        filtered: cases.len().saturating_sub(selected.len()),
        ..Tally::default()
    };
    println!("\nrunning {} tests", selected.len());
    let begin = Instant::now();
    if !selected.is_empty() {
        run(&selected, &mut tally);
    }
    tally.print(options, begin.elapsed());
    Ok(tally.failed.is_empty())
}

fn run_groups(packages: &Packages, cases: &[&Case], options: &Options, tally: &mut Tally) {
    let mut kinds: Vec<&'static MachineKind> = Vec::new();
    for case in cases {
        if !kinds.iter().any(|k| std::ptr::eq(*k, case.machine)) {
            kinds.push(case.machine);
        }
    }
    for kind in kinds {
        let group: Vec<&Case> = cases
            .iter()
            .copied()
            .filter(|c| std::ptr::eq(c.machine, kind))
            .collect();
        match assemble(packages, kind, &group) {
            Ok(machine) => run_group(&machine, &group, options, tally),
            Err(error) => match error.downcast_ref::<Unmet>() {
                Some(unmet) => ignore_all(&group, unmet.need, &unmet.reason, tally),
                None => group
                    .iter()
                    .for_each(|case| tally.fail(case, &error, Duration::ZERO, None)),
            },
        }
    }
}

/// What every L1 is made of. Without it (no Debian mirror, no apt) the lane cannot run here.
fn available() -> Result<Packages> {
    let packages = Packages::open()?;
    packages.package("qemu")?;
    packages.package("busybox")?;
    packages.kernel(L1_KERNEL)?;
    Ok(packages)
}

/// `tdvmm check` says so, and of no emulation.
fn tdx_is_ready() -> Result<()> {
    #[derive(Deserialize)]
    struct Finding {
        level: String,
        what: String,
    }
    let check = Command::new(programs::build(programs::TDVMM)?)
        .args(["check", "--json"])
        .output()?;
    let findings: Vec<Finding> = serde_json::from_slice(&check.stdout)?;
    let failed = findings.iter().find(|finding| finding.level == "fail");
    let emulated = findings.iter().find(|f| f.what.contains("emulat"));
    match failed.or(emulated) {
        Some(finding) => bail!("{}", finding.what),
        None => Ok(()),
    }
}

fn assemble<'a>(
    packages: &'a Packages,
    kind: &MachineKind,
    cases: &[&Case],
) -> Result<Machine<'a>> {
    let mut machine = (kind.build)(packages)?;
    let mut done: Vec<Preparation> = Vec::new();
    for case in cases {
        // Cases share preparations; each is made once.
        if !done.iter().any(|d| std::ptr::fn_addr_eq(*d, case.prepare)) {
            (case.prepare)(&mut machine)?;
            done.push(case.prepare);
        }
    }
    Ok(machine)
}

fn run_group(machine: &Machine<'_>, cases: &[&Case], options: &Options, tally: &mut Tally) {
    let mut supply = Supply::new(|| machine.boot(), options.count.is_some());
    let mut current: Option<L1> = None;
    for case in cases {
        let mut l1 = match supply.next(current.take()) {
            Ok(l1) => l1,
            Err(error) => {
                tally.fail(case, &error, Duration::ZERO, None);
                continue;
            }
        };
        let begin = Instant::now();
        let mut context = Context {
            l1: &mut l1,
            end: begin + case.limit(),
            notes: Vec::new(),
        };
        let result = (case.run)(&mut context);
        let notes = context.notes;
        let log = keep_log(machine, case, &l1, options.keep_logs || result.is_err());
        // The log is taken before this, since it forgets what ran.
        let killed = l1.was_killed();
        let settled = if killed {
            Ok(Vec::new())
        } else {
            settle(&mut l1)
        };
        let healthy = settled.is_ok();
        match result.and(settled.and_then(|t| refuse_troubles(&t))) {
            Ok(()) => tally.pass(case, begin.elapsed(), &notes),
            Err(error) => match error.downcast_ref::<Unmet>() {
                Some(unmet) => ignore_all(&[case], unmet.need, &unmet.reason, tally),
                None => tally.fail(case, &error, begin.elapsed(), log.as_deref()),
            },
        }
        if killed {
            // The case meant to; the next one gets a new L1.
        } else if healthy {
            current = Some(l1);
        } else {
            crate::note(&format!(
                "L1 did not answer any more after {}; the next case got a new one",
                case.name
            ));
        }
    }
    if let Some(Err(error)) = current.map(L1::power_off) {
        crate::note(&format!("{error:#}"));
    }
    if !options.keep_logs && tally.failed.is_empty() {
        // Only logs of this process are in it.
        let _ = fs::remove_dir_all(&machine.log_folder);
    }
}

/// Ends what the case left running and asks for the kernel's reports.
fn settle(l1: &mut L1) -> Result<Vec<String>> {
    l1.end_all()?;
    l1.kernel_troubles()
}

fn refuse_troubles(troubles: &[String]) -> Result<()> {
    ensure!(
        troubles.is_empty(),
        "L1's kernel reports:\n    {}",
        troubles.join("\n    ")
    );
    Ok(())
}

fn keep_log(machine: &Machine<'_>, case: &Case, l1: &L1, wanted: bool) -> Option<PathBuf> {
    thread_local!(static NUMBER: Cell<u32> = const { Cell::new(0) });
    if !wanted {
        return None;
    }
    let number = NUMBER.replace(NUMBER.get() + 1);
    let path = machine
        .log_folder
        .join(format!("{number:03}-{}.log", case.name.replace('/', "-")));
    fs::write(&path, l1.transcript()).ok().map(|()| path)
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for MachineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineKind")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("left", &self.left())
            .finish_non_exhaustive()
    }
}
