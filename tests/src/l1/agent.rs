//! The first process of an L1: sets the machine up, then starts programs and passes on what they
//! say, as the session asks.
//!
//! The same program serves the session on a host that has TDX itself (lane L4), in a folder instead of a machine.
//!
//! One thread takes requests; each program or connection has a thread that reads its output and one
//! that waits for its end. Nothing here decides on a test: that is done on the machine.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount, mount_bind_recursive};
use rustix::process::{Pid, Signal, chdir, chroot, kill_process};
use rustix::pty;
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::protocol::{
    Answer, Event, Outcome, PORT_PATH, Request, SETUP_PATH, Setup, Streams, receive, send,
};

/// How long the port may take to appear.
const PORT_WAIT: Duration = Duration::from_secs(10);
/// How long the agent waits for more of an output before it passes on what there is. A guest's serial port gives one byte
/// at a time, and a frame of its own for each is work for both sides.
const GATHER_WAIT: Duration = Duration::from_millis(2);
/// The longest piece of output in a frame.
const PIECE_MAX: usize = 16384;
/// How long output may take to end after the program that made it (children may hold the pipe).
const DRAIN_WAIT: Duration = Duration::from_secs(2);

/// Runs as the first process. Returns only on an error.
pub fn run() -> io::Result<()> {
    let mut troubles = mount_all();
    let setup: Setup = serde_json::from_slice(&fs::read(SETUP_PATH)?)?;
    troubles.extend(install_applets());
    troubles.extend(load_modules(&setup.modules));
    troubles.extend(setup.share.iter().filter_map(|tag| mount_share(tag).err()));
    let cpus = online_cpus();
    keep_off_first_cpu(cpus)?;
    let mut port = open_port()?;
    let agent = Agent {
        out: Arc::new(Mutex::new(port.try_clone()?)),
        inputs: HashMap::new(),
        kernel_log: Some(open_kernel_log()?),
    };
    agent.emit(&Event::Up {
        cpus,
        kvm: Path::new("/dev/kvm").exists(),
        troubles,
    })?;
    agent.serve(&mut port)?;
    Err(io::Error::other("the session ended"))
}

/// Runs in the folder `root` of a host, in namespaces of its own for users, mounts and processes; the session is on
/// the standard streams. Returns when the session ends.
pub fn run_on_host(root: &Path) -> io::Result<()> {
    for name in ["dev", "sys", "proc", "tmp", "run"] {
        fs::create_dir_all(root.join(name))?;
    }
    mount_bind_recursive("/dev", root.join("dev"))?;
    mount_bind_recursive("/sys", root.join("sys"))?;
    mount("proc", root.join("proc"), "proc", MountFlags::empty(), None)?;
    chroot(root)?;
    chdir("/")?;
    let troubles = install_applets().into_iter().collect();
    let mut port = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let agent = Agent {
        out: Arc::new(Mutex::new(File::from(
            io::stdout().as_fd().try_clone_to_owned()?,
        ))),
        inputs: HashMap::new(),
        // A user may not be allowed to read it.
        kernel_log: open_kernel_log().ok(),
    };
    if let Some(mut log) = agent.kernel_log.as_ref() {
        // What was said before the first case is no concern of ours.
        log.seek(SeekFrom::End(0))?;
    }
    agent.emit(&Event::Up {
        cpus: online_cpus(),
        kvm: Path::new("/dev/kvm").exists(),
        troubles,
    })?;
    agent.serve(&mut port)
}

fn open_kernel_log() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/kmsg")
}

fn mount_all() -> Vec<String> {
    let mounts = [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("devtmpfs", "/dev", "devtmpfs"),
        ("devpts", "/dev/pts", "devpts"),
        ("tmpfs", "/dev/shm", "tmpfs"),
        ("tmpfs", "/tmp", "tmpfs"),
        ("tmpfs", "/run", "tmpfs"),
        ("debugfs", "/sys/kernel/debug", "debugfs"),
    ];
    let mut troubles = Vec::new();
    for (source, target, kind) in mounts {
        // The folders are there, or belong to the file system mounted before.
        let _ = fs::create_dir_all(target);
        if let Err(e) = mount(source, target, kind, MountFlags::empty(), None) {
            troubles.push(format!("cannot mount {kind} at {target}: {e}"));
        }
    }
    troubles
}

fn mount_share(tag: &str) -> Result<(), String> {
    let options = c"trans=virtio,version=9p2000.L,msize=262144";
    fs::create_dir_all("/host")
        .and_then(|()| Ok(mount(tag, "/host", "9p", MountFlags::empty(), options)?))
        .map_err(|e| format!("cannot mount the shared folder: {e}"))
}

fn install_applets() -> Option<String> {
    if !Path::new("/bin/busybox").exists() {
        return None;
    }
    let status = Command::new("/bin/busybox")
        .args(["--install", "-s", "/bin"])
        .status();
    (!status.is_ok_and(|s| s.success())).then(|| "cannot install busybox".to_owned())
}

fn load_modules(modules: &[(String, String)]) -> Vec<String> {
    let load = |path: &str, parameters: &str| -> io::Result<()> {
        let parameters = std::ffi::CString::new(parameters)?;
        Ok(finit_module(File::open(path)?, &parameters, 0)?)
    };
    let failed = modules.iter().filter_map(|(path, parameters)| {
        load(path, parameters)
            .err()
            .map(|e| format!("cannot load {path} {parameters}: {e}"))
    });
    failed.collect()
}

fn online_cpus() -> u32 {
    let count = thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Children inherit the mask, so no guest ever runs on the first CPU.
fn keep_off_first_cpu(cpus: u32) -> io::Result<()> {
    if cpus < 2 {
        return Ok(());
    }
    let mut set = CpuSet::new();
    (1..cpus.min(1024))
        .filter_map(|c| usize::try_from(c).ok())
        .for_each(|c| set.set(c));
    Ok(sched_setaffinity(None, &set)?)
}

fn open_port() -> io::Result<File> {
    let start = Instant::now();
    loop {
        match OpenOptions::new().read(true).write(true).open(PORT_PATH) {
            Err(e) if e.kind() == ErrorKind::NotFound && start.elapsed() < PORT_WAIT => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

struct Agent {
    // Held for one frame at a time.
    out: Arc<Mutex<File>>,
    inputs: HashMap<u32, Input>,
    kernel_log: Option<File>,
}

struct Input {
    pid: Option<Pid>,
    to: Option<Box<dyn Write + Send>>,
}

impl Agent {
    fn emit(&self, event: &Event) -> io::Result<()> {
        emit(&self.out, event)
    }

    fn serve(mut self, port: &mut File) -> io::Result<()> {
        while let Some(request) = receive(port)? {
            if matches!(request, Request::PowerOff) && !Self::serves_a_machine() {
                return Ok(());
            }
            let answer = self.act(request).map_err(|e| e.to_string());
            self.emit(&Event::Answer(answer))?;
        }
        Ok(())
    }

    /// A machine can be switched off, a folder on a host cannot.
    fn serves_a_machine() -> bool {
        Path::new(SETUP_PATH).exists()
    }

    fn act(&mut self, request: Request) -> io::Result<Answer> {
        match request {
            Request::Start {
                run,
                program,
                args,
                env,
                streams,
            } => {
                let mut command = Command::new(&program);
                command
                    .args(args)
                    .env("PATH", "/bin:/usr/bin")
                    .envs(env)
                    .current_dir("/tmp");
                let pid = match streams {
                    Streams::Pipes => self.start_with_pipes(run, command)?,
                    Streams::Terminal => self.start_on_terminal(run, command)?,
                };
                Ok(Answer::Started(pid))
            }
            Request::Connect { run, path } => self.connect(run, &path),
            Request::Input { run, data } => {
                let to = self.input(run)?.to.as_mut();
                to.ok_or_else(|| io::Error::other("its input is closed"))?
                    .write_all(&data)?;
                Ok(Answer::Done)
            }
            Request::CloseInput { run } => {
                self.input(run)?.to = None;
                Ok(Answer::Done)
            }
            Request::Signal { run, signal } => {
                let pid = self.input(run)?.pid;
                let signal = Signal::from_named_raw(signal);
                let (Some(pid), Some(signal)) = (pid, signal) else {
                    return Err(io::Error::other("no such process or signal"));
                };
                kill_process(pid, signal)?;
                Ok(Answer::Done)
            }
            Request::Read { path } => Ok(Answer::Content(fs::read(path)?)),
            Request::Write { path, mode, data } => {
                fs::write(&path, data)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
                Ok(Answer::Done)
            }
            Request::KernelLog => Ok(Answer::Lines(self.read_kernel_log()?)),
            Request::PowerOff => {
                reboot(RebootCommand::PowerOff)?;
                Ok(Answer::Done)
            }
        }
    }

    fn input(&mut self, run: u32) -> io::Result<&mut Input> {
        self.inputs
            .get_mut(&run)
            .ok_or_else(|| io::Error::other(format!("no run {run}")))
    }

    fn start_with_pipes(&mut self, run: u32, mut command: Command) -> io::Result<u32> {
        let (output, for_child) = io::pipe()?;
        command
            .stdin(Stdio::piped())
            .stdout(for_child.try_clone()?)
            .stderr(for_child);
        let start = Instant::now();
        let mut child = command.spawn()?;
        // The pipe ends when the child's copies are gone, so those held by `command` must go.
        drop(command);
        let stdin = child
            .stdin
            .take()
            .map(|s| Box::new(s) as Box<dyn Write + Send>);
        Ok(self.watch(run, start, child, output, stdin))
    }

    fn start_on_terminal(&mut self, run: u32, mut command: Command) -> io::Result<u32> {
        let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY)?;
        pty::grantpt(&master)?;
        pty::unlockpt(&master)?;
        let name = pty::ptsname(&master, Vec::new())?;
        let name = name.to_str().map_err(io::Error::other)?.to_owned();
        let slave: OwnedFd = OpenOptions::new().read(true).write(true).open(name)?.into();
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        let start = Instant::now();
        let child = command.spawn()?;
        drop(command);
        let master = File::from(master);
        let input = Box::new(master.try_clone()?) as Box<dyn Write + Send>;
        Ok(self.watch(run, start, child, master, Some(input)))
    }

    fn connect(&mut self, run: u32, path: &str) -> io::Result<Answer> {
        let stream = UnixStream::connect(path)?;
        let input = Box::new(stream.try_clone()?) as Box<dyn Write + Send>;
        self.inputs.insert(
            run,
            Input {
                pid: None,
                to: Some(input),
            },
        );
        let out = Arc::clone(&self.out);
        let start = Instant::now();
        thread::spawn(move || {
            pass_output(&out, run, start, stream);
            let _ = emit(&out, &ended(run, start, Outcome::Closed));
        });
        Ok(Answer::Done)
    }

    fn watch(
        &mut self,
        run: u32,
        start: Instant,
        mut child: Child,
        output: impl Read + AsFd + Send + 'static,
        to: Option<Box<dyn Write + Send>>,
    ) -> u32 {
        let id = child.id();
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        self.inputs.insert(run, Input { pid, to });
        let (done, drained) = mpsc::channel::<()>();
        let out = Arc::clone(&self.out);
        thread::spawn(move || {
            pass_output(&out, run, start, output);
            drop(done);
        });
        let out = Arc::clone(&self.out);
        thread::spawn(move || {
            let outcome = child.wait().map_or(Outcome::Closed, outcome_of);
            let end = ended(run, start, outcome);
            // Ends when the sender is dropped, or when a grandchild keeps the output open.
            let _ = drained.recv_timeout(DRAIN_WAIT);
            let _ = emit(&out, &end);
        });
        id
    }

    fn read_kernel_log(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        let Some(log) = &mut self.kernel_log else {
            return Ok(lines);
        };
        loop {
            match log.read(&mut record) {
                Ok(n) => lines.push(String::from_utf8_lossy(&record[..n]).trim_end().to_owned()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(lines),
                // Records were overwritten before they were read.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                    lines.push("4,0,0,-;kernel log: records lost".to_owned());
                }
                Err(e) => return Err(e),
            }
        }
    }
}

fn emit(out: &Mutex<File>, event: &Event) -> io::Result<()> {
    // A thread that panicked while it wrote has ended the process.
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    send(&mut *out, event)
}

fn ended(run: u32, start: Instant, outcome: Outcome) -> Event {
    Event::Ended {
        run,
        micros: micros(start),
        outcome,
    }
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Passes on output until it ends, what comes within [`GATHER_WAIT`] as one piece, with the time of its first byte.
fn pass_output(out: &Mutex<File>, run: u32, start: Instant, mut from: impl Read + AsFd) {
    let mut buffer = [0; PIECE_MAX];
    let mut open = true;
    while open {
        let mut length = read_some(&mut from, &mut buffer);
        if length == 0 {
            return;
        }
        let micros = micros(start);
        if length < PIECE_MAX {
            thread::sleep(GATHER_WAIT);
        }
        while open && length < PIECE_MAX && is_ready(from.as_fd()) {
            let more = read_some(&mut from, &mut buffer[length..]);
            open = more > 0;
            length += more;
        }
        let data = buffer[..length].to_vec();
        if emit(out, &Event::Output { run, micros, data }).is_err() {
            return;
        }
    }
}

/// Waits for bytes; gives their number, 0 at the end.
fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> usize {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // A terminal without programs gives EIO.
            result => return result.unwrap_or(0),
        }
    }
}

/// Whether a read returns at once.
fn is_ready(from: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&from, PollFlags::IN)];
    // What goes wrong here does so again in the next read, which ends the output.
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn outcome_of(status: ExitStatus) -> Outcome {
    match (status.code(), status.signal()) {
        (Some(code), _) => Outcome::Exited(code),
        (None, Some(signal)) => Outcome::Signalled(signal),
        (None, None) => Outcome::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, as a serial port does.
    struct Bytewise(io::PipeReader);

    impl Read for Bytewise {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let one = buffer.len().min(1);
            self.0.read(&mut buffer[..one])
        }
    }

    impl AsFd for Bytewise {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    /// The pieces in which the agent passes on an output that has come to its end.
    fn pieces(output: &[u8]) -> Vec<Vec<u8>> {
        let (from, mut to) = io::pipe().unwrap();
        to.write_all(output).unwrap();
        drop(to);
        let (mut frames, out) = io::pipe().unwrap();
        let out = Mutex::new(File::from(OwnedFd::from(out)));
        pass_output(&out, 1, Instant::now(), Bytewise(from));
        drop(out);
        let mut pieces = Vec::new();
        while let Some(event) = receive::<Event>(&mut frames).unwrap() {
            match event {
                Event::Output { run: 1, data, .. } => pieces.push(data),
                other => panic!("{other:?}"),
            }
        }
        pieces
    }

    #[test]
    fn output_that_comes_bytewise_is_passed_on_as_one_piece() {
        assert_eq!(pieces(b"a line\n"), [b"a line\n"]);
        assert!(pieces(b"").is_empty());
    }

    #[test]
    fn output_longer_than_a_piece_is_passed_on_whole() {
        let output: Vec<u8> = (0..=255).cycle().take(PIECE_MAX + 100).collect();
        let pieces = pieces(&output);
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces.concat(), output);
    }
}
