//! What the launch of a TD goes through, and what TDs leave: interrupted calls, several at once, key ids that run out.

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::exit_codes;
use tdvmm_tests::fixture::witness;
use tdvmm_tests::harness::{Case, Context};
use tdvmm_tests::l1::{Outcome, RunId};

use super::emtdx;
use super::leftovers::{LEFT, Left};
use super::td_cases::{case, expect, run, run_well, said_by_tdvmm, tdvmm};

const PARAMETERS: &str = "/sys/module/kvm_amd/parameters";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        case("td-interrupted-launch", interrupted_launch),
        case("td-two-at-once", two_at_once),
        case("td-no-key-id", no_key_id),
        case("td-accounting-20-tds", accounting),
    ]
}

/// Gives parameters of the emulation other values while `body` runs, and then their own again.
fn with_parameters<T>(
    context: &mut Context<'_>,
    parameters: &[(&str, &str)],
    body: impl FnOnce(&mut Context<'_>) -> Result<T>,
) -> Result<T> {
    let mut own = Vec::new();
    for (name, _) in parameters {
        let path = format!("{PARAMETERS}/{name}");
        let before = context.l1.read(&path)?;
        own.push((path, before));
    }
    let wanted = own.iter().zip(parameters);
    let wanted: Vec<(String, Vec<u8>)> = wanted
        .map(|((path, _), (_, value))| (path.clone(), value.as_bytes().to_vec()))
        .collect();
    let result = write_all(context, &wanted).and_then(|()| body(context));
    write_all(context, &own)?;
    result
}

fn write_all(context: &mut Context<'_>, files: &[(String, Vec<u8>)]) -> Result<()> {
    files
        .iter()
        .try_for_each(|(path, bytes)| context.l1.write(path, 0o644, bytes))
}

/// Calls that stop early change neither the measurement nor the TD.
fn interrupted_launch(context: &mut Context<'_>) -> Result<()> {
    emtdx::needs_emulation(context, "fault injection")?;
    emtdx::hold(context)?;
    witness::take_ended(context.l1)?;
    run_well(context, &tdvmm("hello", 1))?;
    let plain = witness::take_ended(context.l1)?;
    let plain = plain.first().context("no TD ended")?;
    // No page that it shares was private and mapped.
    ensure!(plain.pages.converted == 0, "{:?}", plain.pages);
    let faults: [&[(&str, &str)]; 5] = [
        &[("tdx_fail_every", "2"), ("tdx_fail_errno", "11")],
        &[("tdx_fail_every", "3"), ("tdx_fail_errno", "4")],
        &[("tdx_init_vm_eagain", "20")],
        &[("tdx_finalize_busy", "20")],
        &[
            ("tdx_fail_every", "7"),
            ("tdx_fail_errno", "4"),
            ("tdx_init_vm_eagain", "3"),
        ],
    ];
    for faults in faults {
        with_parameters(context, faults, |context| {
            run_well(context, &tdvmm("hello", 2)).map(drop)
        })
        .with_context(|| format!("with {faults:?}"))?;
        let ended = witness::take_ended(context.l1)?;
        ensure!(ended.len() == 1, "{} TDs ended, not one", ended.len());
        ensure!(
            ended[0].mrtd == plain.mrtd && ended[0].pages.added == plain.pages.added,
            "with {faults:?}: MRTD {} of {} pages, not {} of {}",
            ended[0].mrtd,
            ended[0].pages.added,
            plain.mrtd,
            plain.pages.added
        );
    }
    Ok(())
}

/// A TD that waits for a byte, once it does.
pub fn start_waiting(context: &mut Context<'_>, cpus: u32) -> Result<RunId> {
    let run = context.l1.start(&tdvmm("wait", cpus))?;
    // At the start of a line: "already" is in messages.
    context.l1.wait_for(run, "\nready", context.left())?;
    Ok(run)
}

/// Gives it the byte; it ends as it should.
pub fn end_waiting(context: &mut Context<'_>, run: RunId) -> Result<()> {
    context.l1.input(run, b"x")?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(end.outcome == Outcome::Exited(0), "{:?}", end.outcome);
    expect(&context.l1.output(run), "left 0x0")
}

fn two_at_once(context: &mut Context<'_>) -> Result<()> {
    emtdx::hold(context)?;
    let first = start_waiting(context, 1)?;
    let second = start_waiting(context, 2)?;
    if !context.l1.is_host() {
        let used = witness::host_state(context.l1)?.key_ids_used;
        ensure!(used == 2, "{used} key ids are in use");
    }
    end_waiting(context, first)?;
    end_waiting(context, second)
}

/// The one line and the exit code of README.md, for both ways of running out.
fn no_key_id(context: &mut Context<'_>) -> Result<()> {
    emtdx::needs_emulation(context, "a host with one key id")?;
    emtdx::hold(context)?;
    let holder = start_waiting(context, 1)?;
    for limit in ["tdx_key_ids", "tdx_max_tds"] {
        let output = with_parameters(context, &[(limit, "1")], |context| {
            run(context, &tdvmm("hello", 1), exit_codes::TD_NO_KEY_ID)
        })?;
        let said = said_by_tdvmm(&output);
        ensure!(
            output.lines().count() == 1 && said.len() == 1 && said[0].contains("key id"),
            "with {limit}: {output}"
        );
        context.note(said[0].to_owned());
    }
    end_waiting(context, holder)
}

/// Descriptors, key ids and memory after 20 TDs. One script does it all, so that what the testbed itself keeps for each
/// run of a program is not counted; those before the first look fill the caches of a new L1's kernel.
fn accounting(context: &mut Context<'_>) -> Result<()> {
    emtdx::hold(context)?;
    let td: Vec<String> = tdvmm("storm 1", 2)
        .words()
        .iter()
        .map(|word| format!("'{word}'"))
        .collect();
    let script = format!(
        "b=/bin/busybox
        td() {{ {} < /dev/null > /tmp/td.log || exit 1; $b grep -q 'left 0x0' /tmp/td.log || exit 2; }}
        {}
        for i in $($b seq 8); do td; done
        left BEFORE
        for i in $($b seq 20); do td; done
        left AFTER",
        td.join(" "),
        LEFT
    );
    Left::check(context, &script)
}
