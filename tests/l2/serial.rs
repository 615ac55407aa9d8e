//! The serial port's backends: a file (which the other cases use), standard streams, a socket, nothing.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tdvmm_tests::native::vm::Running;

use crate::lab::{Case, Lab};

const MACHINE: [&str; 2] = ["--memory", "size=64M"];
const OFF: &str = "the guest switched itself off";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::guest("serial_tty_without_terminal_uses_standard_streams", streams),
        Case::guest("serial_tty_with_closed_input_goes_on", closed_input),
        Case::guest("serial_socket_with_client_carries_both_ways", socket),
        Case::guest("serial_socket_left_behind_is_replaced", stale_socket),
        Case::guest("serial_file_that_exists_is_emptied", old_file),
        Case::guest("serial_null_output_goes_nowhere", |lab| silent(lab, "null")),
        Case::guest("serial_off_output_goes_nowhere", |lab| silent(lab, "off")),
    ]
}

fn streams(lab: &Lab) -> Result<()> {
    let (mut vm, kernel) = lab.bare("echo")?;
    vm.command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = vm
        .args(MACHINE)
        .args([&"--kernel".into(), &kernel])
        .start()?;
    let mut stdin = running.child().stdin.take().context("no pipe")?;
    let mut stdout = running.child().stdout.take().context("no pipe")?;
    // More than the port's FIFO holds: what does not fit has to wait, and none of it is lost.
    let sent = "HAL9000".repeat(100);
    stdin.write_all(format!("{sent}\n").as_bytes())?;
    let end = running.wait()?;
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    let shifted = "IBM:111".repeat(100);
    ensure!(
        text == format!("ready\n{shifted}\n"),
        "the guest says {text:?}"
    );
    end.expect(0, OFF)
}

fn closed_input(lab: &Lab) -> Result<()> {
    let (mut vm, kernel) = lab.bare("hello")?;
    vm.command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = vm
        .args(MACHINE)
        .args([&"--kernel".into(), &kernel])
        .start()?;
    drop(running.child().stdin.take());
    let mut stdout = running.child().stdout.take().context("no pipe")?;
    let end = running.wait()?;
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    ensure!(text == "hello\n", "the guest says {text:?}");
    end.expect(0, OFF)
}

fn socket(lab: &Lab) -> Result<()> {
    let (mut client, running) = connect(lab, |_| Ok(()))?;
    // What the guest said before the client came is kept for it.
    expect(&mut client, "ready\n")?;
    client.write_all(b"HAL")?;
    expect(&mut client, "IBM")?;
    // A client that goes, and another one.
    drop(client);
    let path = running.folder().join("socket");
    let mut running = running;
    let mut client = running.wait_until("a second client is served", |_| {
        let mut client = UnixStream::connect(&path)?;
        client.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        // As long as the first one's end has not been seen, a second one is turned away.
        client.write_all(b"A").or_else(gone)?;
        let mut byte = [0];
        Ok(matches!(client.read(&mut byte), Ok(1)).then_some(client))
    })?;
    client.write_all(b"\n")?;
    expect(&mut client, "\n")?;
    running.wait()?.expect(0, OFF)
}

fn gone(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Ok(()),
        _ => Err(error),
    }
}

fn stale_socket(lab: &Lab) -> Result<()> {
    // A socket that nobody listens on any more stays in the file system.
    let (mut client, running) = connect(lab, |path| {
        drop(std::os::unix::net::UnixListener::bind(path)?);
        Ok(())
    })?;
    client.write_all(b"\n")?;
    expect(&mut client, "ready\n\n")?;
    running.wait()?.expect(0, OFF)
}

/// Starts the echo guest on a socket, with `before` done to the path first, and connects.
fn connect(
    lab: &Lab,
    before: impl FnOnce(&std::path::Path) -> Result<()>,
) -> Result<(UnixStream, Running)> {
    let (vm, kernel) = lab.bare("echo")?;
    let path = vm.folder().join("socket");
    before(&path)?;
    let option = format!("socket={}", path.display());
    let vm = vm.args(MACHINE).args(["--serial", &option, "--kernel"]);
    let mut running = vm.args([kernel]).start()?;
    let client =
        running.wait_until("its socket listens", |_| match UnixStream::connect(&path) {
            Ok(client) => Ok(Some(client)),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        })?;
    client.set_read_timeout(Some(running.deadline().duration_since(Instant::now())))?;
    Ok((client, running))
}

fn expect(client: &mut UnixStream, text: &str) -> Result<()> {
    let mut read = vec![0; text.len()];
    client.read_exact(&mut read)?;
    let read = String::from_utf8_lossy(&read);
    ensure!(read == text, "the client gets {read:?}, not {text:?}");
    Ok(())
}

fn old_file(lab: &Lab) -> Result<()> {
    let vm = lab.machine("hello", &[])?;
    std::fs::write(
        vm.serial_file(),
        "something much longer than what the guest says",
    )?;
    let end = vm.run()?;
    end.expect_serial("hello\n")?;
    end.expect(0, OFF)
}

fn silent(lab: &Lab, mode: &str) -> Result<()> {
    let (mut vm, kernel) = lab.bare("hello")?;
    vm.command.stdout(Stdio::piped());
    let vm = vm.args(MACHINE).args(["--serial", mode, "--kernel"]);
    let mut running = vm.args([kernel]).start()?;
    let mut stdout = running.child().stdout.take().context("no pipe")?;
    let end = running.wait()?;
    let mut text = Vec::new();
    stdout.read_to_end(&mut text)?;
    ensure!(text.is_empty(), "standard output has {text:?}");
    end.expect(0, OFF)
}
