//! How a run can end, and the exit code of each way.
//!
//! Every end has one line that says why and one exit code; README.md has the table. Codes 148 to 157
//! keep the meaning that other monitors gave them, 160 to 169 are for TDX.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tdvmm_devices::power::{PowerEvent, PowerSink};
use vmm_sys_util::eventfd::EventFd;

/// The host failed: a file, a system call, KVM.
pub const HOST_ERROR: u8 = 1;
/// The configuration asks for what cannot be.
pub const BAD_CONFIG: u8 = 152;
/// The command line cannot be understood.
pub const BAD_ARGUMENTS: u8 = 153;

/// The host cannot run TDs.
pub const TDX_NOT_READY: u8 = 160;
/// A step of the launch of a TD failed.
pub const TD_LAUNCH_FAILED: u8 = 161;
/// The TD's measurement is not the expected one.
pub const TD_UNEXPECTED_MRTD: u8 = 162;
/// No TDX key id is free.
pub const TD_NO_KEY_ID: u8 = 165;

/// Why the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset, which a run answers by ending; through which register.
    Reset(&'static str),
    /// A vCPU could not deliver an exception (`KVM_EXIT_SHUTDOWN`).
    TripleFault {
        /// The vCPU.
        vcpu: u32,
    },
    /// KVM cannot go on with a vCPU (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError {
        /// The vCPU.
        vcpu: u32,
        /// Suberror, instruction pointer and bytes, as far as KVM told them.
        report: String,
    },
    /// The host does not let a vCPU run.
    HostFailed {
        /// The vCPU.
        vcpu: u32,
        /// What failed, and what the system said.
        report: String,
    },
    /// KVM left a vCPU for a reason that this program does not serve.
    UnexpectedExit {
        /// The vCPU.
        vcpu: u32,
        /// The reason's name and numbers.
        report: String,
    },
    /// The TD reported that it cannot go on.
    TdFatal {
        /// The vCPU.
        vcpu: u32,
        /// Code and text, as far as they can be printed.
        report: String,
    },
    /// KVM has given the TD up: mostly because it touched a page that it had not accepted.
    TdDead {
        /// The vCPU.
        vcpu: u32,
    },
    /// A signal asked this process to end.
    Signal(i32),
    /// The operator pressed Ctrl-A x.
    Operator,
}

impl Ending {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::HostFailed { .. } => HOST_ERROR,
            Self::Reset(_) => 10,
            Self::TripleFault { .. } => 11,
            Self::InternalError { .. } => 12,
            Self::UnexpectedExit { .. } => 13,
            Self::Operator => 14,
            Self::TdFatal { .. } => 163,
            Self::TdDead { .. } => 166,
            // As shells do: 128 and the number of the signal.
            Self::Signal(number) => 128_u8.saturating_add(u8::try_from(*number).unwrap_or(u8::MAX)),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched itself off"),
            Self::Reset(register) => write!(f, "the guest asked for a reset ({register})"),
            Self::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            Self::InternalError { vcpu, report } => {
                write!(f, "KVM cannot go on with vCPU {vcpu}: {report}")
            }
            Self::HostFailed { vcpu, report } => {
                write!(f, "the host failed vCPU {vcpu}: {report}")
            }
            Self::UnexpectedExit { vcpu, report } => {
                write!(f, "unexpected exit of vCPU {vcpu}: {report}")
            }
            Self::TdFatal { vcpu, report } => {
                write!(f, "the TD gave up on vCPU {vcpu}: {report}")
            }
            Self::TdDead { vcpu } => write!(
                f,
                "KVM gave the TD up at vCPU {vcpu}: it touched a private page that it had not accepted, \
                 or the TDX module failed (see the host's kernel log)"
            ),
            Self::Signal(number) => write!(f, "ended by signal {}", signal_name(*number)),
            Self::Operator => f.write_str("ended by the operator (Ctrl-A x)"),
        }
    }
}

fn signal_name(number: i32) -> String {
    match number {
        libc::SIGHUP => "SIGHUP".into(),
        libc::SIGINT => "SIGINT".into(),
        libc::SIGQUIT => "SIGQUIT".into(),
        libc::SIGTERM => "SIGTERM".into(),
        other => other.to_string(),
    }
}

/// Where the first ending wins, and the main thread is woken for it.
///
/// Any thread may end the machine, any number of times.
#[derive(Debug)]
pub struct EndingCell {
    ending: OnceLock<Ending>,
    stop: Arc<AtomicBool>,
    wake: EventFd,
}

impl EndingCell {
    /// A cell whose `wake` is written once, when the machine is to stop.
    #[must_use]
    pub fn new(wake: EventFd) -> Self {
        Self {
            ending: OnceLock::new(),
            stop: Arc::default(),
            wake,
        }
    }

    /// Ends the machine, unless it has ended already.
    pub fn end(&self, ending: Ending) {
        if self.ending.set(ending).is_ok() {
            // First of all, so that the vCPU that asks for the end is not entered again.
            self.stop.store(true, Ordering::Release);
            // Can only fail when the counter would overflow, and it is written once.
            let _ = self.wake.write(1);
        }
    }

    /// The ending, once there is one.
    #[must_use]
    pub fn get(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Set with the ending: vCPUs are not to be entered any more.
    #[must_use]
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// Becomes readable with the ending.
    #[must_use]
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

impl PowerSink for EndingCell {
    fn request(&self, event: PowerEvent) {
        self.end(match event {
            PowerEvent::PowerOff => Ending::PowerOff,
            PowerEvent::Reset(register) => Ending::Reset(register),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_ending_wins() {
        let cell = EndingCell::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        assert_eq!(cell.get(), None);
        assert!(!cell.stop().load(Ordering::Acquire));
        cell.request(PowerEvent::PowerOff);
        cell.end(Ending::Operator);
        assert_eq!(cell.get(), Some(&Ending::PowerOff));
        assert_eq!(cell.wake().read().unwrap(), 1);
        assert!(cell.stop().load(Ordering::Acquire));
    }

    #[test]
    fn failure_of_the_host_has_the_code_that_it_has_before_the_guest_runs() {
        let report = "KVM_RUN failed: Cannot allocate memory (os error 12)".to_owned();
        let ending = Ending::HostFailed { vcpu: 1, report };
        assert_eq!(ending.exit_code(), HOST_ERROR);
        let said = "the host failed vCPU 1: KVM_RUN failed: Cannot allocate memory (os error 12)";
        assert_eq!(ending.to_string(), said);
    }

    #[test]
    fn exit_codes_are_distinct() {
        let endings = [
            Ending::PowerOff,
            // The code of what fails before the guest runs as well.
            Ending::HostFailed {
                vcpu: 0,
                report: String::new(),
            },
            Ending::Reset("port 0xcf9"),
            Ending::TripleFault { vcpu: 0 },
            Ending::InternalError {
                vcpu: 0,
                report: String::new(),
            },
            Ending::UnexpectedExit {
                vcpu: 0,
                report: String::new(),
            },
            Ending::Operator,
            Ending::TdFatal {
                vcpu: 0,
                report: String::new(),
            },
            Ending::TdDead { vcpu: 0 },
            Ending::Signal(libc::SIGTERM),
            Ending::Signal(libc::SIGINT),
        ];
        let mut codes: Vec<u8> = endings.iter().map(Ending::exit_code).collect();
        codes.extend([BAD_CONFIG, BAD_ARGUMENTS]);
        codes.extend([
            TDX_NOT_READY,
            TD_LAUNCH_FAILED,
            TD_UNEXPECTED_MRTD,
            TD_NO_KEY_ID,
        ]);
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), 17);
    }
}
