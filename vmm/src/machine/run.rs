//! From a checked configuration to the end of the guest: the main thread's way.

use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::events::{self, LoopError};
use super::functions::{self, DeviceError};
use super::launch_plain::{self, LaunchError};
use super::launch_td::{self, TdLaunchError};
use crate::config::{Console, Device, Machine, SerialBackend};
use crate::ending::{Ending, EndingCell};
use crate::kvm::host::Host;
use crate::kvm::{KvmError, kick};
use crate::payload::{PayloadError, PayloadFiles, open_payload};
use crate::plan::pci::Function;
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
    /// What a device needs cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The VM cannot be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The TD cannot be launched.
    #[error(transparent)]
    TdLaunch(#[from] TdLaunchError),
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
    /// Whether the operator asked for what cannot be, so that nothing was created.
    #[must_use]
    pub fn is_config(&self) -> bool {
        matches!(
            self,
            Self::Payload(_) | Self::Plan(_) | Self::Device(_) | Self::TooManyVcpus { .. }
        )
    }
}

/// A machine with its files opened and its plan made; nothing has been created.
#[derive(Debug)]
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    files: PayloadFiles,
}

impl Prepared {
    /// Opens the files of `machine` and plans it.
    ///
    /// # Errors
    ///
    /// If a file cannot be used or the parts do not fit together.
    pub fn new(machine: &Machine) -> Result<Self, RunError> {
        let (facts, files) = open_payload(&machine.payload)?;
        Ok(Self {
            plan: Plan::new(machine, &facts)?,
            files,
        })
    }

    /// Runs the machine until it ends.
    ///
    /// # Errors
    ///
    /// If the host refuses something.
    pub fn run(self) -> Result<Ending, RunError> {
        let Self { plan, files } = self;
        let host = Host::open()?;
        check_limits(&plan, &host)?;
        let signals = events::take_signals()?;
        kick::prepare()?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(process("make an event file descriptor"))?;
        let endings = Arc::new(EndingCell::new(wake));
        let devices = functions::open(&plan.pci, &endings)?;
        let machine = match &plan.td {
            None => launch_plain::launch(&plan, &host, files, devices, &endings)?,
            Some(td) => launch_td::launch(&plan, td, &host, devices, &endings)?.0,
        };
        let _terminal = match uses_terminal(&plan) {
            true => RawTerminal::enter().map_err(process("make the terminal raw"))?,
            false => None,
        };
        let board = machine.board;
        // Dropped first on the way out: the vCPUs stop before the devices go.
        let _vcpus = VcpuThreads::start(machine.vcpus, machine.slots, &board.buses, &endings)
            .map_err(process("start a thread for a vCPU"))?;
        Ok(events::wait_for_end(&endings, signals, board.input)?)
    }
}

fn uses_terminal(plan: &Plan) -> bool {
    let is_console = |function: &Function| function.device == Device::Console(Console::Tty);
    plan.serial == SerialBackend::Tty || plan.pci.iter().any(is_console)
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
