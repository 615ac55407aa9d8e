//! The serial port on a file, a socket and a terminal.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use tdvmm_tests::exit_codes;
use tdvmm_tests::guest::{MARKER, PANIC, REPORT_END, Then};
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Outcome, Program, RunId};

use crate::guests::{Guest, PLAIN, with_tdvmm};

const FILE: &str = "/tmp/serial.log";
const SOCKET: &str = "/tmp/serial.sock";

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
        // In every run `console-follows-the-terminal` has its serial port on a file.
        case("serial-to-file", Tier::Full, to_file),
        case(
            "serial-to-socket-and-terminal",
            Tier::Representative,
            to_socket_and_terminal,
        ),
        // In every run lane L2 shows the same with a guest of its own.
        case(
            "terminal-restored-after-operator-ends",
            Tier::Full,
            operator,
        ),
    ]
}

fn to_file(context: &mut Context<'_>) -> Result<()> {
    let guest = Guest::small(Then::PowerOff);
    let run = context
        .l1
        .start(&guest.under_tdvmm(&format!("file={FILE}")))?;
    expect_code(context, run, exit_codes::POWER_OFF)?;
    let console = context.l1.read(FILE)?;
    guest
        .check_report(&String::from_utf8_lossy(&console))
        .map(drop)
}

/// What is sent to a guest over the socket comes back over it, and characters typed on a terminal reach another guest one
/// by one. The first then restarts, and the other's kernel panics, which with `panic=-1` is a restart as well; the terminal
/// is as it was. Both boot at once, which takes hardly longer here than one.
fn to_socket_and_terminal(context: &mut Context<'_>) -> Result<()> {
    let guest = Guest::small(Then::Echo);
    let on_socket = guest.under_tdvmm(&format!("socket={SOCKET}"));
    let on_socket = context.l1.start(&on_socket)?;
    let on_terminal = start_on_terminal(context, guest)?;

    let console = connect(context, on_socket)?;
    ask(context, console, Then::Reboot).context("on the socket")?;
    expect_code(context, on_socket, exit_codes::RESET)?;

    ask(context, on_terminal, Then::Panic).context("on the terminal")?;
    context.l1.wait_for(on_terminal, PANIC, context.left())?;
    expect_terminal_restored(context, on_terminal, exit_codes::RESET)
}

/// Connects as soon as the socket is there.
fn connect(context: &mut Context<'_>, run: RunId) -> Result<RunId> {
    loop {
        match context.l1.connect(SOCKET) {
            Ok(console) => return Ok(console),
            Err(error) if context.l1.has_ended(run) || context.left().is_zero() => {
                return Err(error.context("tdvmm made no socket"));
            }
            Err(_) => {}
        }
    }
}

/// Types what the guest shall do, once it has reported, and waits until it has said that back.
fn ask(context: &mut Context<'_>, console: RunId, then: Then) -> Result<()> {
    let word = then.word();
    context.l1.wait_for(console, REPORT_END, context.left())?;
    context.l1.input(console, format!("{word}\r").as_bytes())?;
    context
        .l1
        .wait_for(console, &format!("echo {word}"), context.left())
        .map(drop)
}

/// Ctrl-A x ends the machine and gives the terminal back.
fn operator(context: &mut Context<'_>) -> Result<()> {
    let run = start_on_terminal(context, Guest::small(Then::Echo))?;
    context.l1.wait_for(run, MARKER, context.left())?;
    context.l1.input(run, b"\x01x")?;
    expect_terminal_restored(context, run, exit_codes::OPERATOR)
}

/// Runs `tdvmm` on a terminal, with the terminal's settings printed before and after it.
fn start_on_terminal(context: &mut Context<'_>, guest: Guest) -> Result<RunId> {
    let script = "echo before $(stty -g); \"$@\"; code=$?; echo after $(stty -g); echo code $code";
    let tdvmm = guest.under_tdvmm("tty");
    let shell = Program::new("/bin/busybox").args(["sh", "-c", script, "sh"]);
    context.l1.start(&shell.args(tdvmm.words()).on_terminal())
}

fn expect_terminal_restored(context: &mut Context<'_>, run: RunId, code: i32) -> Result<()> {
    context.l1.wait_end(run, context.left())?;
    let output = context.l1.output(run);
    let find = |key: &str| -> Result<String> {
        let line = output
            .lines()
            .find_map(|l| l.trim().strip_prefix(key)?.strip_prefix(' '));
        Ok(line
            .ok_or_else(|| anyhow!("no line `{key}` on the terminal"))?
            .to_owned())
    };
    let (before, after) = (find("before")?, find("after")?);
    ensure!(
        !before.is_empty() && before == after,
        "terminal was {before} and is now {after}"
    );
    let ended: i32 = find("code")?.parse().context("exit code on the terminal")?;
    ensure!(ended == code, "tdvmm ended with {ended}, not {code}");
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
