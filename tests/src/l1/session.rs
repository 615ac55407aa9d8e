//! A running L1: programs are started in it and waited for, with a deadline for every wait.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::kmsg;
use super::program::Program;
use super::protocol::{Answer, Event, Request, receive, send};
use super::run::{Ended, Run, RunId};

/// An L1 that says nothing for so long did not come up (typical: 4 to 8 s).
const UP_WAIT: Duration = Duration::from_secs(120);
/// How long the agent may take to answer (under load; typical: a millisecond).
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// How long L1 may take to power off.
const OFF_WAIT: Duration = Duration::from_secs(15);

/// A running L1. Dropping it ends QEMU.
#[derive(Debug)]
pub struct L1 {
    qemu: Child,
    to_agent: BufWriter<ChildStdin>,
    events: Receiver<Event>,
    answers: VecDeque<Result<Answer, String>>,
    runs: BTreeMap<RunId, Run>,
    kernel_log: Vec<String>,
    console: PathBuf,
    lock: Option<File>,
    killed: bool,
    on_host: bool,
    /// How long L1 took to come up.
    pub boot_time: Duration,
    /// CPUs of L1.
    pub cpus: u32,
}

impl L1 {
    pub(super) fn launch(mut command: Command, console: PathBuf) -> Result<Self> {
        let begin = Instant::now();
        let mut qemu = command.spawn().context("cannot start QEMU")?;
        let to_agent = qemu.stdin.take().context("QEMU's input is a pipe")?;
        let from_agent = qemu.stdout.take().context("QEMU's output is a pipe")?;
        let mut l1 = Self {
            qemu,
            to_agent: BufWriter::new(to_agent),
            events: read_events(from_agent),
            answers: VecDeque::new(),
            runs: BTreeMap::new(),
            kernel_log: Vec::new(),
            console,
            lock: None,
            killed: false,
            on_host: false,
            boot_time: Duration::ZERO,
            cpus: 0,
        };
        match l1.events.recv_timeout(UP_WAIT) {
            Ok(Event::Up {
                cpus,
                kvm,
                troubles,
            }) => {
                ensure!(
                    troubles.is_empty(),
                    "L1 came up with troubles: {}",
                    troubles.join("; ")
                );
                ensure!(kvm, "L1 has no /dev/kvm");
                l1.cpus = cpus;
                l1.boot_time = begin.elapsed();
                Ok(l1)
            }
            Ok(other) => bail!("L1 began with {other:?}"),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "L1's agent was silent for {} s{}",
                    UP_WAIT.as_secs(),
                    l1.last_words()
                )
            }
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended{}", l1.last_words()),
        }
    }

    pub(super) fn holding(mut self, lock: File) -> Self {
        self.lock = Some(lock);
        self
    }

    pub(super) fn marked_on_host(mut self) -> Self {
        self.on_host = true;
        self
    }

    /// Whether this is no L1 but a host with TDX, where nothing is emulated and nothing can be injected.
    pub fn is_host(&self) -> bool {
        self.on_host
    }

    /// Starts a program.
    pub fn start(&mut self, program: &Program) -> Result<RunId> {
        let id = self.new_run(&program.path, &program.args.join(" "));
        let request = Request::Start {
            run: id.0,
            program: program.path.clone(),
            args: program.args.clone(),
            env: program.env.clone(),
            streams: program.streams,
        };
        self.ask(&request)
            .with_context(|| format!("cannot start {} in L1", program.path))?;
        Ok(id)
    }

    /// Connects to a unix socket that a program listens on.
    pub fn connect(&mut self, path: &str) -> Result<RunId> {
        let id = self.new_run(path, "");
        self.ask(&Request::Connect {
            run: id.0,
            path: path.to_owned(),
        })
        .with_context(|| format!("cannot connect to {path} in L1"))?;
        Ok(id)
    }

    /// Runs a program to its end and gives its output.
    pub fn run(&mut self, program: &Program, wait: Duration) -> Result<(Ended, String)> {
        let id = self.start(program)?;
        let end = self.wait_end(id, wait)?;
        Ok((end, self.output(id)))
    }

    /// Sends bytes to the standard input of a program, or over a connection.
    pub fn input(&mut self, run: RunId, data: &[u8]) -> Result<()> {
        self.ask(&Request::Input {
            run: run.0,
            data: data.to_vec(),
        })
        .map(drop)
    }

    /// Ends a program's standard input.
    pub fn close_input(&mut self, run: RunId) -> Result<()> {
        self.ask(&Request::CloseInput { run: run.0 }).map(drop)
    }

    /// Sends a signal to a program.
    pub fn signal(&mut self, run: RunId, signal: i32) -> Result<()> {
        self.ask(&Request::Signal { run: run.0, signal }).map(drop)
    }

    /// The content of a file in L1.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        match self.ask(&Request::Read {
            path: path.to_owned(),
        }) {
            Ok(Answer::Content(data)) => Ok(data),
            Ok(other) => bail!("unexpected answer {other:?}"),
            Err(e) => Err(e.context(format!("cannot read {path} in L1"))),
        }
    }

    /// Writes a file in L1.
    pub fn write(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        let request = Request::Write {
            path: path.to_owned(),
            mode,
            data: data.to_vec(),
        };
        self.ask(&request)
            .with_context(|| format!("cannot write {path} in L1"))
            .map(drop)
    }

    /// Waits until the output of a run has `text` in it, and tells when it came (L1's time since the
    /// start of the run).
    pub fn wait_for(&mut self, run: RunId, text: &str, wait: Duration) -> Result<Duration> {
        let what = format!("`{text}` in the output of {}", self.name(run));
        let mut searched = 0;
        self.wait_until(&what, wait, |l1| {
            let run = l1.runs.get(&run).context("no such run")?;
            if let Some(time) = run.said(text, &mut searched) {
                return Ok(Some(time));
            }
            match run.ended {
                Some(end) => bail!("{} ended ({:?}) before `{text}`", run.name, end.outcome),
                None => Ok(None),
            }
        })
    }

    /// Waits until a run ends.
    pub fn wait_end(&mut self, run: RunId, wait: Duration) -> Result<Ended> {
        let what = format!("the end of {}", self.name(run));
        self.wait_until(&what, wait, |l1| {
            Ok(l1.runs.get(&run).and_then(|r| r.ended))
        })
    }

    /// Whether a run has ended, as far as is known now.
    pub fn has_ended(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|r| r.ended.is_some())
    }

    /// The output of a run so far; bytes that are no UTF-8 are replaced.
    pub fn output(&self, run: RunId) -> String {
        self.runs.get(&run).map_or_else(String::new, |r| {
            String::from_utf8_lossy(&r.output).into_owned()
        })
    }

    /// The output of a run so far.
    pub fn output_bytes(&self, run: RunId) -> &[u8] {
        self.runs.get(&run).map_or(&[], |r| r.output.as_slice())
    }

    /// Takes in what L1 says for a while, at once if it has said something.
    pub fn poll(&mut self, wait: Duration) -> Result<()> {
        match self.events.recv_timeout(wait) {
            Ok(event) => {
                self.take(event);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => bail!("L1 ended{}", self.last_words()),
        }
    }

    /// What ran since the last [`Self::end_all`], with all output and how it ended.
    pub fn transcript(&self) -> String {
        self.runs.values().map(Run::to_string).collect()
    }

    /// Ends all programs that still run, with SIGKILL, and forgets all runs.
    pub fn end_all(&mut self) -> Result<()> {
        let open: Vec<RunId> = self
            .runs
            .iter()
            .filter(|(_, r)| r.ended.is_none())
            .map(|(id, _)| *id)
            .collect();
        for run in open {
            // A connection has no process, and a process may end by itself at this very moment.
            if self.signal(run, 9).is_ok() {
                self.wait_end(run, ANSWER_WAIT)?;
            } else {
                let _ = self.close_input(run);
            }
        }
        // Output of these may still come; `take` drops what belongs to no run.
        self.runs.clear();
        Ok(())
    }

    /// Records of L1's kernel log since the last time this was called.
    pub fn kernel_log(&mut self) -> Result<Vec<String>> {
        match self.ask(&Request::KernelLog)? {
            Answer::Lines(lines) => {
                self.kernel_log.extend(lines.iter().cloned());
                Ok(lines)
            }
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Reports of L1's kernel against itself since the last call of [`Self::kernel_log`] or this.
    pub fn kernel_troubles(&mut self) -> Result<Vec<String>> {
        Ok(kmsg::troubles(&self.kernel_log()?))
    }

    /// Whether QEMU still runs.
    pub fn is_up(&mut self) -> bool {
        matches!(self.qemu.try_wait(), Ok(None))
    }

    /// Ends QEMU with SIGKILL, as if the machine had lost power but for this machine's page cache.
    pub fn kill(&mut self) -> Result<()> {
        self.killed = true;
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(())
    }

    /// Whether [`Self::kill`] ended it.
    pub fn was_killed(&self) -> bool {
        self.killed
    }

    /// Powers L1 off and waits for QEMU.
    pub fn power_off(mut self) -> Result<()> {
        // The answer does not come: the machine is off before.
        let _ = send(&mut self.to_agent, &Request::PowerOff);
        let begin = Instant::now();
        while self.is_up() {
            ensure!(begin.elapsed() < OFF_WAIT, "L1 does not power off");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// L1's serial console so far.
    pub fn console(&self) -> &Path {
        &self.console
    }

    fn new_run(&mut self, name: &str, arguments: &str) -> RunId {
        let id = RunId::next();
        self.runs.insert(id, Run::new(name, arguments));
        id
    }

    fn name(&self, run: RunId) -> String {
        self.runs
            .get(&run)
            .map_or_else(|| "a forgotten run".to_owned(), |r| r.name.clone())
    }

    fn ask(&mut self, request: &Request) -> Result<Answer> {
        if send(&mut self.to_agent, request).is_err() {
            bail!("L1 is gone{}", self.last_words());
        }
        let what = "the agent's answer";
        let answer = self.wait_until(what, ANSWER_WAIT, |l1| Ok(l1.answers.pop_front()))?;
        answer.map_err(|e| anyhow!(e))
    }

    /// Takes events until `done` gives a value.
    fn wait_until<T>(
        &mut self,
        what: &str,
        wait: Duration,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let begin = Instant::now();
        loop {
            if let Some(value) = done(self)? {
                return Ok(value);
            }
            let left = wait.saturating_sub(begin.elapsed());
            match self.events.recv_timeout(left) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("waited {:.0} s for {what}", wait.as_secs_f64())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("L1 ended while waiting for {what}{}", self.last_words())
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Output { run, micros, data } => {
                if let Some(run) = self.runs.get_mut(&RunId(run)) {
                    run.hear(Duration::from_micros(micros), &data);
                }
            }
            Event::Ended {
                run,
                micros,
                outcome,
            } => {
                if let Some(run) = self.runs.get_mut(&RunId(run)) {
                    run.ended = Some(Ended {
                        outcome,
                        after: Duration::from_micros(micros),
                    });
                }
            }
            Event::Answer(answer) => self.answers.push_back(answer),
            Event::Up { .. } => {}
        }
    }

    /// The end of L1's console and of QEMU's own output, for an error message.
    fn last_words(&self) -> String {
        let tail = |path: &Path| {
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<&str> = text.lines().rev().take(8).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n    ")
        };
        let console = tail(&self.console);
        let qemu = tail(&self.console.with_file_name("qemu.log"));
        format!(
            "; its console ({}) ends with:\n    {console}\n    {qemu}",
            self.console.display()
        )
    }
}

impl Drop for L1 {
    fn drop(&mut self) {
        // Either may fail because QEMU has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn read_events(mut from: ChildStdout) -> Receiver<Event> {
    let (to, events) = mpsc::channel();
    thread::spawn(move || {
        // Ends with QEMU, with a broken stream, or when the session is dropped.
        while let Ok(Some(event)) = receive(&mut from) {
            if to.send(event).is_err() {
                return;
            }
        }
    });
    events
}
