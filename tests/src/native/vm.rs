//! A run of the VMM with a watchdog.
//!
//! Standard error and the serial port go to files in the run's folder. Whatever waits does so until the
//! run's deadline; past it the process is killed and the case fails with all that was said until then.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::folder::Folder;

/// How long a case may take: a guest needs well below a second, but the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks at something that cannot be waited for.
const TICK: Duration = Duration::from_millis(2);

/// A VMM to be started.
#[derive(Debug)]
pub struct Vm {
    /// The command; standard input is `/dev/null` unless it is set.
    pub command: Command,
    folder: Folder,
    patience: Duration,
}

/// A running VMM. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: Folder,
    deadline: Instant,
}

/// How a run ended.
#[derive(Debug)]
pub struct End {
    /// The status of the process.
    pub status: ExitStatus,
    /// What the guest wrote to a serial port that went to [`Vm::serial_file`].
    pub serial: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Vm {
    /// `program` with files in `folder`.
    pub fn new(program: impl AsRef<OsStr>, folder: Folder) -> Result<Self> {
        // Whoever started the tests may ignore a signal (nohup), and `tdvmm` would go on ignoring it. `env`
        // becomes the program, so that its process is the one that is signalled and waited for.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=HUP,INT,QUIT,TERM")
            .arg(program);
        let stderr = File::create(folder.join(STDERR))?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(stderr);
        Ok(Self {
            command,
            folder,
            patience: PATIENCE,
        })
    }

    /// Appends the options of a small machine that runs `kernel` with its serial port in a file.
    #[must_use]
    pub fn machine(mut self, kernel: &Path) -> Self {
        let serial = format!("file={}", self.serial_file().display());
        self.command.arg("--kernel").arg(kernel);
        self.command.args(["--memory", "size=64M", "--serial"]);
        self.command.arg(serial);
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Waits longer than [`PATIENCE`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Where [`Vm::machine`] lets the serial port write.
    #[must_use]
    pub fn serial_file(&self) -> PathBuf {
        self.folder.join(SERIAL)
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Running> {
        let child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start {:?}", self.command))?;
        Ok(Running {
            child,
            folder: self.folder,
            deadline: Instant::now() + self.patience,
        })
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Result<End> {
        self.start()?.wait()
    }
}

impl Running {
    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Until when it may run.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits until the serial file has `text` in it.
    pub fn wait_for_serial(&mut self, text: &str) -> Result<()> {
        self.wait_until(&format!("the guest says {text:?}"), |running| {
            let serial = running.read(SERIAL);
            let mut windows = serial.windows(text.len());
            Ok(windows.any(|part| part == text.as_bytes()).then_some(()))
        })
    }

    /// Waits until `look` finds something. `what` is for the message if it never does.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            // Before the look: what it says last may come just before its end.
            let status = self.child.try_wait()?;
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if let Some(status) = status {
                bail!("ended before {what}: {status}\n{}", self.said());
            }
            self.check_deadline(what)?;
            sleep(TICK);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok();
        let pid = pid.and_then(rustix::process::Pid::from_raw);
        Ok(rustix::process::kill_process(
            pid.context("no process id")?,
            signal,
        )?)
    }

    /// Waits for the end.
    pub fn wait(self) -> Result<End> {
        self.wait_watching(|_| Ok(()))
    }

    /// Waits for the end, and calls `look` again and again, the last time when it has ended.
    pub fn wait_watching(mut self, mut look: impl FnMut(&Self) -> Result<()>) -> Result<End> {
        loop {
            let status = self.child.try_wait()?;
            look(&self)?;
            if let Some(status) = status {
                return Ok(End {
                    status,
                    serial: self.read(SERIAL),
                    stderr: String::from_utf8_lossy(&self.read(STDERR)).into_owned(),
                });
            }
            self.check_deadline("it ended")?;
            sleep(TICK);
        }
    }

    fn check_deadline(&self, what: &str) -> Result<()> {
        ensure!(
            Instant::now() < self.deadline,
            "watchdog: time was up before {what}\n{}",
            self.said()
        );
        Ok(())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.join(name)).unwrap_or_default()
    }

    /// The ends of what it said, for messages.
    fn said(&self) -> String {
        let end = |name| {
            let bytes = self.read(name);
            let from = bytes.len().saturating_sub(2000);
            String::from_utf8_lossy(&bytes[from..]).into_owned()
        };
        format!("serial: {:?}\nstderr: {}", end(SERIAL), end(STDERR))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// Checks the exit code and the last line of standard error (without `tdvmm: `).
    pub fn expect(&self, code: i32, line: &str) -> Result<()> {
        ensure!(
            self.status.code() == Some(code),
            "exit code {:?} (signal {:?}), not {code}\nserial: {:?}\nstderr: {}",
            self.status.code(),
            self.status.signal(),
            String::from_utf8_lossy(&self.serial),
            self.stderr
        );
        let last = self.stderr.lines().last().unwrap_or_default();
        ensure!(
            last.strip_prefix("tdvmm: ")
                .is_some_and(|l| l.starts_with(line)),
            "the last line is {last:?}, not {line:?}"
        );
        Ok(())
    }

    /// Checks all that the guest wrote.
    pub fn expect_serial(&self, text: &str) -> Result<()> {
        ensure!(
            self.serial == text.as_bytes(),
            "the guest says {:?}, not {text:?}",
            String::from_utf8_lossy(&self.serial)
        );
        Ok(())
    }
}

const SERIAL: &str = "serial";
const STDERR: &str = "stderr";
