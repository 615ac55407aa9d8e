//! Why a machine cannot be run, and the exit code that each reason has.

use std::path::PathBuf;

use tdvmm_firmware::measure::Digest;
use thiserror::Error;

use super::events::LoopError;
use super::functions::DeviceError;
use super::launch_plain::LaunchError;
use super::launch_td::TdLaunchError;
use super::open_files::TooManyFiles;
use crate::affinity::AffinityError;
use crate::ending::{
    BAD_CONFIG, HOST_ERROR, TD_LAUNCH_FAILED, TD_NO_KEY_ID, TD_UNEXPECTED_MRTD, TDX_NOT_READY,
};
use crate::kvm::KvmError;
use crate::payload::PayloadError;
use crate::plan::PlanError;

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
    /// This process may not open so many files.
    #[error(transparent)]
    OpenFiles(#[from] TooManyFiles),
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
            | Self::TooMuchMemory { .. }
            | Self::OpenFiles(_) => BAD_CONFIG,
            Self::UnexpectedMrtd { .. } => TD_UNEXPECTED_MRTD,
            Self::TdxNotReady(_) => TDX_NOT_READY,
            Self::TdLaunch(error) if error.is_out_of_key_ids() => TD_NO_KEY_ID,
            Self::TdLaunch(TdLaunchError::Refused(_) | TdLaunchError::TooManyVcpus { .. }) => {
                BAD_CONFIG
            }
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

fn why_not_provided(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "the host cannot provide the memory; give the guest less of it",
        _ => "the host cannot provide memory in advance; leave prefault=on out",
    }
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
