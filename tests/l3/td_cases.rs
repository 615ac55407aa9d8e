//! TDs of a second: the firmware of `tests/emulated-tdx/guest/cases.c` under `tdvmm`.
//!
//! What a TD can ask for, how it can end, and what it can do to the host; `td_launch.rs` has what a launch goes through.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::exit_codes;
use tdvmm_tests::guest::firmware;
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Machine, Outcome, Program};

use super::emtdx::{self, TDX};
use super::guests::{self, TDVMM};

/// TDVMCALL status in R10.
const SUCCESS: u64 = 0;
const INVALID_OPERAND: u64 = 1 << 63;
const ALIGN_ERROR: u64 = 1 << 63 | 2;
const UNSUPPORTED: u64 = 1 << 63 | 3;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        case("td-power-off-and-reset", power_off_and_reset),
        case("td-fatal-error", fatal_error),
        case("td-unaccepted-access", unaccepted_access),
        case("td-msr-of-the-host", msr_of_the_host),
        case("td-conversions-2cpu", |context| conversions(context, 2, 30)),
        case("td-conversions-4cpu", |context| conversions(context, 4, 20)),
        case("td-hostile-map-gpa", hostile_map_gpa),
        case("td-other-calls", other_calls),
        case("td-flood", flood),
    ]
}

pub fn case(name: &str, run: fn(&mut Context<'_>) -> Result<()>) -> Case {
    Case {
        name: name.to_owned(),
        tier: Tier::Representative,
        machine: &TDX,
        prepare: with_firmware,
        deadline: Duration::from_secs(120),
        run: Box::new(run),
    }
}

/// Adds `tdvmm` and the small firmware.
pub fn with_firmware(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    let image = firmware::build()?;
    let archive = machine.archive();
    archive.copy(firmware::IMAGE, 0o644, &image)?;
    archive.file(firmware::NO_KERNEL, 0o644, firmware::NO_KERNEL_CONTENT);
    Ok(())
}

/// `tdvmm` with the small firmware, which does what `orders` say.
pub fn tdvmm(orders: &str, cpus: u32) -> Program {
    tdvmm_on("tdx=on", orders, cpus)
}

fn tdvmm_on(platform: &str, orders: &str, cpus: u32) -> Program {
    Program::new(TDVMM)
        .args(["--platform", platform, "--firmware", firmware::IMAGE])
        .args(["--kernel", firmware::NO_KERNEL, "--cmdline", orders])
        .args(["--cpus", &format!("boot={cpus}"), "--memory", "size=64M"])
        .args(["--serial", "tty"])
}

/// Runs a TD to its end and gives all it and `tdvmm` said.
pub fn run(context: &mut Context<'_>, program: &Program, code: i32) -> Result<String> {
    let (end, output) = context.l1.run(program, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(code),
        "tdvmm ended with {:?}, not {code}: {output}",
        end.outcome
    );
    Ok(output)
}

/// The same for a TD that does its work and switches itself off, its memory as good as before.
pub fn run_well(context: &mut Context<'_>, program: &Program) -> Result<String> {
    let output = run(context, program, exit_codes::POWER_OFF)?;
    expect(&output, "left 0x0")?;
    expect(&output, "done")?;
    Ok(output)
}

/// One of the lines is `line`.
pub fn expect(output: &str, line: &str) -> Result<()> {
    ensure!(
        output.lines().any(|said| said.trim_end() == line),
        "no line `{line}` in: {output}"
    );
    Ok(())
}

/// The lines that `tdvmm` itself wrote.
pub fn said_by_tdvmm(output: &str) -> Vec<&str> {
    let lines = output.lines();
    lines.filter(|line| line.starts_with("tdvmm")).collect()
}

fn power_off_and_reset(context: &mut Context<'_>) -> Result<()> {
    emtdx::hold(context)?;
    let output = run_well(context, &tdvmm("hello", 4))?;
    expect(&output, "vcpus 0x4")?;
    let output = run(context, &tdvmm("reset", 1), exit_codes::RESET)?;
    expect(&output, "tdvmm: the guest asked for a reset (port 0xcf9)")
}

/// The text of registers and page, each bounded, and nothing in it that a terminal would obey.
fn fatal_error(context: &mut Context<'_>) -> Result<()> {
    emtdx::hold(context)?;
    let text = "no root device.[2J.and 42 more words in eight registers......!";
    let line = format!(
        "tdvmm: the TD gave up on vCPU 0: the guest reports a fatal error, code 0x2a: \"{text}\""
    );
    let output = run(context, &tdvmm("fatal", 2), exit_codes::TD_FATAL)?;
    expect(&output, &line)?;
    let output = run(context, &tdvmm("fatal-page", 1), exit_codes::TD_FATAL)?;
    let start = format!(
        "tdvmm: the TD gave up on vCPU 0: the guest reports a fatal error, code 0x7: \"{text}\"; \
         page text: \"page.]0;owned...xxx"
    );
    let said = said_by_tdvmm(&output);
    ensure!(said.len() == 1 && said[0].starts_with(&start), "{said:?}");
    ensure!(
        said[0].len() < 4096 + 256,
        "a line of {} bytes",
        said[0].len()
    );
    Ok(())
}

/// With SEPT_VE_DISABLE the TD is over, and the line says why; without it the guest has an exception.
fn unaccepted_access(context: &mut Context<'_>) -> Result<()> {
    emtdx::hold(context)?;
    let output = run(context, &tdvmm("unaccepted", 1), exit_codes::TD_DEAD)?;
    let said = said_by_tdvmm(&output);
    let told = "touched a private page that it had not accepted";
    ensure!(said.len() == 1 && said[0].contains(told), "{said:?}");
    let lenient = tdvmm_on("tdx=on,sept_ve_disable=off", "unaccepted", 1);
    let output = run(context, &lenient, exit_codes::POWER_OFF)?;
    // Exit reason 48: EPT violation.
    expect(&output, "#VE reason 0x30")?;
    // Linear addresses are physical ones there.
    expect(&output, "#VE GPA 0xe00000")?;
    expect(&output, "#VE GLA 0xe00000")
}

/// An MSR that no list of the module has is #VE, exit reason 31, whatever the host's KVM knows of it.
fn msr_of_the_host(context: &mut Context<'_>) -> Result<()> {
    const AMD_HWCR: &str = "3221291029";
    emtdx::hold(context)?;
    let orders = format!("rdmsr {AMD_HWCR}");
    let output = run(context, &tdvmm(&orders, 1), exit_codes::POWER_OFF)?;
    expect(&output, "#VE reason 0x1f")
}

/// MapGPA in both directions on all vCPUs at once: in blocks of their own, and in one for all.
fn conversions(context: &mut Context<'_>, cpus: u32, rounds: u32) -> Result<()> {
    emtdx::hold(context)?;
    emtdx::ended(context)?;
    let output = run_well(context, &tdvmm(&format!("storm {rounds}"), cpus))?;
    expect(&output, "bad 0x0")?;
    let ended = emtdx::ended(context)?;
    ensure!(context.l1.is_host() || ended.len() == 1, "{ended:?}");
    for td in ended {
        let (converted, removed) = (td.pages.converted, td.pages.removed);
        ensure!(0 < converted && converted < removed, "{:?}", td.pages);
        context.note(format!(
            "{} MapGPA, {} pages converted, {} accepted",
            td.exits.map_gpa, td.pages.converted, td.pages.accepted
        ));
    }
    Ok(())
}

/// Each `call NAME R10 R11` of the guest, against (name, R10).
fn check_calls(output: &str, expected: &[(&str, u64)]) -> Result<()> {
    for (name, status) in expected {
        let (got, _) = call(output, name)?;
        ensure!(
            got == *status,
            "{name} was answered {got:#x}, not {status:#x}"
        );
    }
    let calls = output.lines().filter(|line| line.starts_with("call "));
    ensure!(
        calls.count() == expected.len(),
        "calls unlike expected: {output}"
    );
    Ok(())
}

fn call(output: &str, name: &str) -> Result<(u64, u64)> {
    let start = format!("call {name} ");
    let line = output.lines().find_map(|line| line.strip_prefix(&start));
    let line = line.with_context(|| format!("no call {name} in: {output}"))?;
    let number = |word: Option<&str>| {
        let digits = word.and_then(|word| word.trim_end().strip_prefix("0x"));
        digits.and_then(|digits| u64::from_str_radix(digits, 16).ok())
    };
    let mut words = line.split(' ');
    let mut next = || number(words.next()).with_context(|| format!("no number in `{line}`"));
    Ok((next()?, next()?))
}

fn hostile_map_gpa(context: &mut Context<'_>) -> Result<()> {
    emtdx::hold(context)?;
    let output = run_well(context, &tdvmm("map-calls", 2))?;
    let expected = [
        ("map-outside-private", INVALID_OPERAND),
        // What is no memory is shared already.
        ("map-outside-shared", SUCCESS),
        ("map-huge-outside", SUCCESS),
        ("map-over-the-end", INVALID_OPERAND),
        ("map-unaligned", ALIGN_ERROR),
        ("map-unaligned-size", ALIGN_ERROR),
        ("map-nothing", INVALID_OPERAND),
        ("map-wrapping", INVALID_OPERAND),
        ("map-across-the-shared-bit", INVALID_OPERAND),
        ("map-beyond-the-width", INVALID_OPERAND),
        ("map-mmio-private", INVALID_OPERAND),
        // KVM's own hypercall, which it passes on as MapGPA: our answer (EINVAL), or its own.
        ("hypercall-map-outside", 22),
        ("hypercall-map-huge", SUCCESS),
        ("hypercall-map-wrapping", 22_u64.wrapping_neg()),
        ("hypercall-unknown", 1000_u64.wrapping_neg()),
    ];
    check_calls(&output, &expected)?;
    // R11 is where it failed: the first address that is no RAM.
    let (_, at) = call(&output, "map-over-the-end")?;
    ensure!(at == 64 << 20, "the range was refused at {at:#x}");
    Ok(())
}

fn other_calls(context: &mut Context<'_>) -> Result<()> {
    emtdx::hold(context)?;
    let output = run_well(context, &tdvmm("other-calls", 1))?;
    let expected = [
        ("subfunction-service", UNSUPPORTED),
        ("subfunction-unknown", UNSUPPORTED),
        ("subfunction-all-ones", UNSUPPORTED),
        ("subfunction-wbinvd", UNSUPPORTED),
        ("io-of-three-bytes", INVALID_OPERAND),
        ("mmio-of-private", INVALID_OPERAND),
        // KVM passes on what is asked as MMIO, be it RAM: no device has it.
        ("mmio-of-ram", SUCCESS),
        ("mmio-to-ram", SUCCESS),
        // Its last bytes are not in the shared half.
        ("mmio-out-of-shared", INVALID_OPERAND),
        // There is no quote service: the guest is told at once, and can go on.
        ("quote", UNSUPPORTED),
        ("quote-private", INVALID_OPERAND),
        ("quote-nowhere", UNSUPPORTED),
        ("notify", UNSUPPORTED),
        ("notify-bad-vector", INVALID_OPERAND),
        ("info-0", SUCCESS),
        ("info-1", SUCCESS),
        ("info-2", INVALID_OPERAND),
    ];
    check_calls(&output, &expected)?;
    let (_, read) = call(&output, "mmio-of-ram")?;
    ensure!(read == 0xffff_ffff, "RAM read as MMIO gave {read:#x}");
    // What info-1 promises is what the calls above keep.
    let (_, leaves) = call(&output, "info-1")?;
    ensure!(leaves == 0, "GetTdVmCallInfo promises {leaves:#x}");
    Ok(())
}

/// A guest that provokes messages gets a bounded number of them.
fn flood(context: &mut Context<'_>) -> Result<()> {
    const ROUNDS: usize = 4000;
    emtdx::hold(context)?;
    let program = tdvmm(&format!("flood {ROUNDS}"), 1).args(["-v"]);
    let run = context.l1.start(&program)?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(end.outcome == Outcome::Exited(0), "{:?}", end.outcome);
    let output = context.l1.output(run);
    expect(&output, "flood over")?;
    let lines = said_by_tdvmm(&output);
    // The debug port may write 1000 lines at once and 100 a second, each after a count of what was left out; each place
    // that warns ten and one a second.
    let (debug, other): (Vec<&str>, Vec<&str>) = lines
        .iter()
        .filter(|line| !line.ends_with("lines suppressed)"))
        .partition(|line| line.ends_with(" #"));
    let seconds = usize::try_from(end.after.as_secs())? + 1;
    context.note(format!(
        "{} debug lines and {} others in {:.1} s",
        debug.len(),
        other.len(),
        end.after.as_secs_f64()
    ));
    ensure!(
        (500..=1000 + 100 * seconds).contains(&debug.len()) && debug.len() < ROUNDS,
        "{} lines of the debug port in {seconds} s",
        debug.len()
    );
    ensure!(
        other.len() <= 10 * (12 + seconds),
        "{} other lines",
        other.len()
    );
    Ok(())
}
