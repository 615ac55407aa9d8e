//! From a checked configuration to the end of the guest: the main thread's way.

use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use nix::sys::signalfd::SignalFd;
use serde::Serialize;
use tdvmm_firmware::measure::Digest;
use tdvmm_tdx::error::one_line;
use tdvmm_tdx::host::{Finding, first_failure};
use tdvmm_tdx::transcript::{Recorder, Transcript};
use vmm_sys_util::eventfd::EventFd;

use super::events;
use super::functions::{self, Opened};
use super::launch_plain::{self, ReadyMachine};
use super::launch_td;
use super::open_files;
use super::run_error::RunError;
use crate::affinity;
use crate::cli::LaunchOptions;
use crate::config::{Console, Device, Machine, SerialBackend};
use crate::ending::{Ending, EndingCell};
use crate::host_check;
use crate::kvm::host::Host;
use crate::kvm::slots::OrdinaryMemory;
use crate::kvm::td::PrivateMemory;
use crate::kvm::{kick, slots, td};
use crate::memory::prefault;
use crate::observe::progress::Progress;
use crate::payload::{PayloadFiles, open_payload};
use crate::plan::Plan;
use crate::plan::pci::Function;
use crate::plan::td::TdPlan;
use crate::serial::terminal::RawTerminal;
use crate::vcpu::thread::VcpuThreads;

/// A machine with its files opened and its plan made; nothing has been created.
#[derive(Debug)]
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    files: PayloadFiles,
    options: LaunchOptions,
}

impl Prepared {
    /// Opens the files of `machine` and plans it.
    ///
    /// # Errors
    ///
    /// If a file cannot be used or the parts do not fit together.
    pub fn new(machine: &Machine, options: LaunchOptions) -> Result<Self, RunError> {
        let (facts, files) = open_payload(&machine.payload)?;
        let plan = Plan::new(machine, &facts)?;
        match (&plan.td, options.mrtd) {
            (Some(td), Some(expected)) if td.mrtd != expected => Err(RunError::UnexpectedMrtd {
                computed: td.mrtd,
                expected,
            }),
            _ => Ok(Self {
                plan,
                files,
                options,
            }),
        }
    }

    /// Runs the machine until it ends.
    ///
    /// # Errors
    ///
    /// If the host refuses something.
    pub fn run(self) -> Result<Ending, RunError> {
        let Self {
            plan,
            files,
            options,
        } = self;
        affinity::check(&plan.affinity)?;
        let host = Host::open()?;
        check_limits(&plan, &host)?;
        if plan.td.is_some() && !td::is_supported(&host) {
            return Err(RunError::TdxNotReady(why_not_ready()));
        }
        if plan.prefault {
            match &plan.td {
                Some(_) => td::check_prefault(&host)?,
                None => slots::check_prefault().map_err(RunError::Prefault)?,
            }
        }
        // Before the signal of a kick, which the parent may have blocked, can come.
        kick::prepare()?;
        let signals = events::take_signals()?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(process("make an event file descriptor"))?;
        let endings = Arc::new(EndingCell::new(wake));
        let Opened { backends, terminal } = functions::open(&plan.pci, &plan.serial, &endings)?;
        let machine = match &plan.td {
            None => launch_plain::launch(&plan, &host, files, backends, &endings)?,
            Some(td) => {
                let path = options.transcript.as_deref();
                let transcript = path.map(create_transcript).transpose()?;
                let calls = Recorder::default();
                let machine = launch_td::launch(&plan, td, &host, backends, &endings, &calls);
                // That of a launch that failed is wanted most.
                let error = machine.as_ref().err().map(|error| one_line(error));
                let written = transcript.map_or(Ok(()), |(path, file)| {
                    write_transcript(path, file, td, error, &calls.transcript())
                });
                let machine = machine?;
                written?;
                machine
            }
        };
        if plan.prefault
            && let Some(signal) = provide_memory(&plan, &machine, &signals)?
        {
            return Ok(Ending::Signal(signal));
        }
        let on_terminal = uses_terminal(&plan);
        let affinity = plan.affinity.clone();
        // Images and kernels of firmware need not stay in memory twice.
        drop(plan);
        let _terminal = match on_terminal {
            true => RawTerminal::enter().map_err(process("make the terminal raw"))?,
            false => None,
        };
        let board = machine.board;
        // Dropped first on the way out: the vCPUs stop before the devices go.
        let _vcpus = VcpuThreads::start(
            machine.vcpus,
            machine.slots,
            &affinity,
            &board.buses,
            &endings,
        )
        .map_err(process("start a thread for a vCPU"))?;
        Ok(events::wait_for_end(
            &endings,
            signals,
            board.input,
            terminal,
        )?)
    }
}

/// Has the host provide all of RAM. Gives the signal that called it off, if one did.
fn provide_memory(
    plan: &Plan,
    machine: &ReadyMachine,
    signals: &SignalFd,
) -> Result<Option<i32>, RunError> {
    let mut threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    // The host takes the memory from near the CPU that asks for it: where the vCPUs may run only there, ask there.
    let host_cpus = plan.affinity.of_all(plan.topology.vcpus());
    if let Some(host_cpus) = &host_cpus {
        threads = threads.min(host_cpus.len());
    }
    let prepare = || host_cpus.as_deref().map_or(Ok(()), affinity::bind);
    let ranges: Vec<_> = plan.ram.ranges().collect();
    let mut progress = Progress::new("memory provided");
    let mut signal = None;
    let go_on = |done, total| {
        progress.show(done, total);
        signal = events::ending_signal(signals);
        signal.is_none()
    };
    let outcome = if plan.td.is_some() {
        let vcpus = machine.vcpus.iter().take(threads).map(PrivateMemory);
        prefault::provide(vcpus.collect(), &ranges, prepare, go_on)
    } else {
        machine.slots.prefer_large_pages();
        let workers = (0..threads).map(|_| OrdinaryMemory(&machine.slots));
        prefault::provide(workers.collect(), &ranges, prepare, go_on)
    };
    outcome.map_err(RunError::Prefault)?;
    Ok(signal)
}

fn uses_terminal(plan: &Plan) -> bool {
    let is_console = |function: &Function| function.device == Device::Console(Console::Tty);
    plan.serial == SerialBackend::Tty || plan.pci.iter().any(is_console)
}

/// The first condition that fails, with its remedy.
fn why_not_ready() -> String {
    let findings = host_check::findings();
    match first_failure(&findings) {
        Some(Finding {
            what,
            remedy: Some(remedy),
            ..
        }) => format!("{what}: {remedy}"),
        Some(Finding { what, .. }) => what.clone(),
        None => "KVM of this host makes no VMs of type TDX".into(),
    }
}

/// Made before anything else, so that a launch is not done in vain.
fn create_transcript(path: &Path) -> Result<(&Path, File), RunError> {
    let file = File::create(path).map_err(|source| RunError::Transcript {
        path: path.to_owned(),
        source,
    })?;
    Ok((path, file))
}

fn write_transcript(
    path: &Path,
    mut file: File,
    td: &TdPlan,
    error: Option<String>,
    calls: &Transcript,
) -> Result<(), RunError> {
    #[derive(Serialize)]
    struct Written<'a> {
        mrtd: Digest,
        /// Why the launch failed; not each step of it is a call of TDX.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        #[serde(flatten)]
        transcript: &'a Transcript,
    }
    let written = Written {
        mrtd: td.mrtd,
        error,
        transcript: calls,
    };
    serde_json::to_writer_pretty(&mut file, &written)
        .map_err(std::io::Error::from)
        .and_then(|()| file.write_all(b"\n"))
        .map_err(|source| RunError::Transcript {
            path: path.to_owned(),
            source,
        })
}

/// Refuses what this host's KVM, or this process, cannot have, before anything is created.
fn check_limits(plan: &Plan, host: &Host) -> Result<(), RunError> {
    let (wanted, max) = (plan.topology.vcpus(), host.max_vcpus());
    if wanted > max {
        return Err(RunError::TooManyVcpus { wanted, max });
    }
    let bits = host.physical_address_bits();
    if plan.ram.top().0 > 1 << bits {
        return Err(RunError::TooMuchMemory {
            size: plan.ram.size(),
            bits,
        });
    }
    open_files::make_room(plan)?;
    Ok(())
}

fn process(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::Process { what, source }
}
