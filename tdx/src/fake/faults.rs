//! Failures and early stops to inject.

use std::collections::VecDeque;

use crate::error::Command;

/// An early stop of one INIT_MEM_REGION call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Pages that the call adds before it stops; a call with fewer pages is not stopped.
    pub after: u64,
    /// `EINTR` or `EAGAIN`.
    pub errno: i32,
}

/// A failure of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which call.
    pub command: Command,
    /// How many calls of this kind pass first.
    pub skip: u32,
    /// What it fails with. `EIO` also kills the VM, as a failed SEAMCALL does.
    pub errno: i32,
    /// The module's status.
    pub hw_error: u64,
}

/// What is to go wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Early stops, one for each INIT_MEM_REGION call from the first on.
    pub stops: VecDeque<Stop>,
    /// An early stop of every call once `stops` is used up.
    pub stop_always: Option<Stop>,
    /// Failures.
    pub faults: Vec<Fault>,
}

impl Faults {
    /// The stop for the next INIT_MEM_REGION call.
    pub(super) fn next_stop(&mut self) -> Option<Stop> {
        self.stops.pop_front().or(self.stop_always)
    }

    /// The failure of this call, if it is to fail.
    pub(super) fn next_fault(&mut self, command: Command) -> Option<Fault> {
        let at = self
            .faults
            .iter()
            .position(|fault| fault.command == command)?;
        let fault = self.faults.get_mut(at)?;
        match fault.skip.checked_sub(1) {
            Some(left) => {
                fault.skip = left;
                None
            }
            None => Some(self.faults.remove(at)),
        }
    }
}
