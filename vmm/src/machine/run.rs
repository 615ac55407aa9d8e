//! From a checked configuration to the end of the guest: the main thread's way.

use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signalfd::SignalFd;
use serde::Serialize;
use tdvmm_firmware::measure::Digest;
use tdvmm_tdx::host::{Finding, first_failure};
use tdvmm_tdx::transcript::Transcript;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::board::BoardError;
use super::events::{self, LoopError};
use super::functions::{self, DeviceError, Opened};
use super::launch_plain::{self, LaunchError, ReadyMachine};
use super::launch_td::{self, TdLaunchError};
use crate::affinity::{self, AffinityError};
use crate::cli::LaunchOptions;
use crate::config::{Console, Device, Machine, SerialBackend};
use crate::ending::{
    BAD_CONFIG, Ending, EndingCell, HOST_ERROR, TD_LAUNCH_FAILED, TD_NO_KEY_ID, TD_UNEXPECTED_MRTD,
    TDX_NOT_READY,
};
use crate::host_check;
use crate::kvm::host::Host;
use crate::kvm::slots::OrdinaryMemory;
use crate::kvm::td::PrivateMemory;
use crate::kvm::{KvmError, kick, slots, td};
use crate::memory::prefault;
use crate::observe::progress::Progress;
use crate::payload::{PayloadError, PayloadFiles, open_payload};
use crate::plan::pci::Function;
use crate::plan::td::TdPlan;
use crate::plan::{Plan, PlanError};
use crate::serial::terminal::RawTerminal;
use crate::vcpu::thread::VcpuThreads;

/// The machine cannot be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// A file of the payload cannot be used.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The machine cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// This host's KVM has not so many vCPUs.
    #[error(
        "--cpus boot={wanted}: KVM of this host runs at most {max} vCPUs in one VM; ask for fewer"
    )]
    TooManyVcpus {
        /// How many were asked for.
        wanted: u32,
        /// How many there can be.
        max: u32,
    },
    /// Guest-physical addresses of this host do not reach so far.
    #[error(
        "--memory size={size}: guests of this host have {bits} bits of physical address; ask for less"
    )]
    TooMuchMemory {
        /// Bytes of RAM that were asked for.
        size: u64,
        /// Width of guest-physical addresses.
        bits: u32,
    },
    /// A vCPU cannot be bound as asked for.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// Memory cannot be provided in advance.
    #[error("--memory prefault=on: {}", why_not_provided(.0))]
    Prefault(#[source] std::io::Error),
    /// What a device needs cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The VM cannot be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The TD would be measured as something else than expected.
    #[error("--expect mrtd={expected}: the TD would have MRTD {computed}; nothing was started")]
    UnexpectedMrtd {
        /// What the plan makes MRTD.
        computed: Digest,
        /// What was given.
        expected: Digest,
    },
    /// The transcript cannot be written.
    #[error("--transcript {}: cannot be written", path.display())]
    Transcript {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TD cannot be launched.
    #[error(transparent)]
    TdLaunch(#[from] TdLaunchError),
    /// This host cannot run TDs; the line is that of `tdvmm check`.
    #[error("--platform tdx=on: {0}")]
    TdxNotReady(String),
    /// The main loop failed.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// Something of the process cannot be set up.
    #[error("cannot {what}")]
    Process {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RunError {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Payload(_)
            | Self::Plan(_)
            | Self::Device(_)
            | Self::Affinity(AffinityError::NotAllowed { .. })
            | Self::TooManyVcpus { .. }
            | Self::TooMuchMemory { .. } => BAD_CONFIG,
            Self::UnexpectedMrtd { .. } => TD_UNEXPECTED_MRTD,
            Self::TdxNotReady(_) => TDX_NOT_READY,
            Self::TdLaunch(error) if error.is_out_of_key_ids() => TD_NO_KEY_ID,
            Self::TdLaunch(
                TdLaunchError::Refused(_)
                | TdLaunchError::TooManyVcpus { .. }
                | TdLaunchError::Board(BoardError::Serial { .. }),
            )
            | Self::Launch(LaunchError::Board(BoardError::Serial { .. })) => BAD_CONFIG,
            Self::TdLaunch(_) => TD_LAUNCH_FAILED,
            Self::Kvm(_)
            | Self::Affinity(_)
            | Self::Prefault(_)
            | Self::Launch(_)
            | Self::Loop(_)
            | Self::Transcript { .. }
            | Self::Process { .. } => HOST_ERROR,
        }
    }
}

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
        let signals = events::take_signals()?;
        kick::prepare()?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(process("make an event file descriptor"))?;
        let endings = Arc::new(EndingCell::new(wake));
        let Opened { devices, terminal } = functions::open(&plan.pci, &endings)?;
        let machine = match &plan.td {
            None => launch_plain::launch(&plan, &host, files, devices, &endings)?,
            Some(td) => {
                let transcript = options
                    .transcript
                    .as_deref()
                    .map(create_transcript)
                    .transpose()?;
                let (machine, calls) = launch_td::launch(&plan, td, &host, devices, &endings)?;
                if let Some((path, file)) = transcript {
                    write_transcript(path, file, td, &calls)?;
                }
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

fn why_not_provided(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "the host cannot provide the memory; give the guest less of it",
        _ => "the host cannot provide memory in advance; leave prefault=on out",
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
    calls: &Transcript,
) -> Result<(), RunError> {
    #[derive(Serialize)]
    struct Written<'a> {
        mrtd: Digest,
        #[serde(flatten)]
        transcript: &'a Transcript,
    }
    let written = Written {
        mrtd: td.mrtd,
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

/// Refuses what this host's KVM cannot have, before anything is created.
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
    Ok(())
}

fn process(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::Process { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_memory_is_the_remedy_for_want_of_memory_only() {
        let text = |errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            RunError::Prefault(source).to_string()
        };
        let less =
            "--memory prefault=on: the host cannot provide the memory; give the guest less of it";
        assert_eq!(text(libc::ENOMEM), less);
        let leave_out = "--memory prefault=on: the host cannot provide memory in advance; leave prefault=on out";
        assert_eq!(text(libc::EINVAL), leave_out);
    }
}
