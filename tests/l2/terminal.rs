//! The operator's terminal: raw while the guest runs, and as it was afterwards, whatever the way out.
#![expect(
    clippy::print_stderr,
    reason = "the child of the panic case tells its parent how far it is"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use rustix::pty;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tdvmm::serial::terminal as subject;
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::vm::{Running, Vm};

use crate::lab::{Case, Lab};

/// Set for the child of [`panic`].
pub const PANIC_CHILD: &str = "TDVMM_L2_PANIC_CHILD";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::guest("escape_then_x_on_terminal_ends_and_restores", |lab| {
            let mut session = Session::start(lab, "idle")?;
            session.keyboard.write_all(b"\x01x")?;
            session.end(14, "ended by the operator (Ctrl-A x)")
        }),
        Case::guest("control_c_on_terminal_goes_to_the_guest", |lab| {
            let mut session = Session::start(lab, "echo")?;
            // 0x03 would be SIGINT on a terminal that is not raw; the guest sends back 0x04.
            session.keyboard.write_all(b"\x03")?;
            session.screen.wait_for("\x04", &session.running)?;
            session.keyboard.write_all(b"\n")?;
            session.end(0, "the guest switched itself off")
        }),
        Case::guest("sigterm_on_terminal_restores", |lab| {
            let session = Session::start(lab, "idle")?;
            session.running.signal(Signal::TERM)?;
            session.end(143, "ended by signal SIGTERM")
        }),
        Case::guest("virtio_console_has_the_size_of_the_terminal", resize),
        Case::needing("panic_on_terminal_restores", &[], |_| panic()),
    ]
}

/// The console starts with the terminal's size and gets another one with it. The terminal is not the one that
/// controls the process here, so the signal that comes with a new size is sent.
fn resize(lab: &Lab) -> Result<()> {
    let vm = lab.machine("console_size", &[])?;
    let (keyboard, slave) = terminal()?;
    tcsetwinsize(&slave, size(90, 30))?;
    let mut session = Session::between(vm.args(["--console", "tty"]), keyboard, slave)?;
    // Generation, rows, columns.
    let first = "00000001001e005a\n";
    session.running.wait_for_serial(first)?;
    tcsetwinsize(&session.slave, size(100, 40))?;
    session.running.signal(Signal::WINCH)?;
    let end = session.running.wait()?;
    end.expect_serial(&format!("{first}0000000200280064\n"))?;
    end.expect(0, "the guest switched itself off")
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Both sides of a new pseudo terminal.
fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY)?;
    pty::grantpt(&master)?;
    pty::unlockpt(&master)?;
    let name = pty::ptsname(&master, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty())?;
    Ok((master, slave))
}

/// A VMM on a pseudo terminal.
struct Session {
    running: Running,
    keyboard: File,
    screen: Screen,
    slave: OwnedFd,
    before: String,
}

impl Session {
    /// Starts `guest` and waits until it has said that it is ready.
    fn start(lab: &Lab, guest: &str) -> Result<Self> {
        let (vm, kernel) = lab.bare(guest)?;
        let vm = vm.args(["--memory", "size=64M", "--kernel"]).args([kernel]);
        let mut session = Self::on_terminal(vm)?;
        session.screen.wait_for("ready\n", &session.running)?;
        session.expect_raw()?;
        Ok(session)
    }

    fn on_terminal(vm: Vm) -> Result<Self> {
        let (master, slave) = terminal()?;
        Self::between(vm, master, slave)
    }

    fn between(mut vm: Vm, master: OwnedFd, slave: OwnedFd) -> Result<Self> {
        let before = settings(&slave)?;
        vm.command.stdin(slave.try_clone()?);
        vm.command.stdout(slave.try_clone()?);
        let running = vm.start()?;
        let keyboard = File::from(master);
        let screen = Screen::of(keyboard.try_clone()?);
        Ok(Self {
            running,
            keyboard,
            screen,
            slave,
            before,
        })
    }

    fn expect_raw(&self) -> Result<()> {
        let modes = tcgetattr(&self.slave)?.local_modes;
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        ensure!(!modes.intersects(cooked), "not raw: {modes:?}");
        Ok(())
    }

    fn end(self, code: i32, line: &str) -> Result<()> {
        let end = self.running.wait()?;
        let after = settings(&self.slave)?;
        ensure!(after == self.before, "{} is now {after}", self.before);
        end.expect(code, line)
    }
}

fn settings(terminal: &OwnedFd) -> Result<String> {
    Ok(format!("{:?}", tcgetattr(terminal)?))
}

/// What comes out of the terminal.
struct Screen {
    arrivals: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Screen {
    /// Reads in a thread of its own, which ends with the terminal.
    fn of(mut master: File) -> Self {
        let (sender, arrivals) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Ok(len @ 1..) = master.read(&mut bytes) {
                if sender.send(bytes[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            arrivals,
            seen: Vec::new(),
        }
    }

    /// Waits until `text` has come; a terminal shows a line feed with a carriage return before it.
    fn wait_for(&mut self, text: &str, running: &Running) -> Result<()> {
        loop {
            let shown = String::from_utf8_lossy(&self.seen).replace("\r\n", "\n");
            if shown.contains(text) {
                return Ok(());
            }
            let left = running.deadline().saturating_duration_since(Instant::now());
            let arrived = self.arrivals.recv_timeout(left);
            let arrived = arrived.with_context(|| format!("{text:?} never came: {shown:?}"))?;
            self.seen.extend(arrived);
        }
    }
}

/// No input makes `tdvmm` panic, so its own hook and its own terminal code run in a child of this program.
fn panic() -> Result<()> {
    let mut vm = Vm::new(std::env::current_exe()?, Folder::create()?)?;
    vm.command.env(PANIC_CHILD, "1");
    let session = Session::on_terminal(vm)?;
    let slave = session.slave;
    let end = session.running.wait()?;
    let after = settings(&slave)?;
    ensure!(end.status.success(), "the child failed: {}", end.stderr);
    ensure!(
        end.stderr.contains("raw: true"),
        "never raw: {}",
        end.stderr
    );
    ensure!(
        end.stderr.contains("as intended"),
        "no report: {}",
        end.stderr
    );
    ensure!(after == session.before, "{} is now {after}", session.before);
    Ok(())
}

/// Enters raw mode and panics in another thread, so that only the hook can restore the terminal.
pub fn panic_child() -> ExitCode {
    subject::restore_on_panic();
    let entered = subject::RawTerminal::enter();
    let raw = tcgetattr(std::io::stdin()).is_ok_and(|t| !t.local_modes.contains(LocalModes::ECHO));
    eprintln!("raw: {raw}");
    std::mem::forget(entered);
    let panicked = std::thread::spawn(|| panic!("as intended")).join();
    if panicked.is_err() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
