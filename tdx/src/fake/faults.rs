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

/// Stops that count pages, over all calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageStops {
    every: u64,
    errno: i32,
    tried: u64,
}

impl PageStops {
    /// Every `every`th page that is tried ends its call with `errno` instead; 0 is never.
    #[must_use]
    pub const fn every(every: u64, errno: i32) -> Option<Self> {
        if every == 0 {
            None
        } else {
            Some(Self {
                every,
                errno,
                tried: 0,
            })
        }
    }

    fn next(&mut self) -> Option<i32> {
        self.tried = self.tried.wrapping_add(1);
        self.tried.is_multiple_of(self.every).then_some(self.errno)
    }
}

/// What is to go wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Stops by page.
    pub page_stops: Option<PageStops>,
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

    /// The errno with which a call ends instead of adding its next page.
    pub(super) fn next_page_stop(&mut self) -> Option<i32> {
        self.page_stops.as_mut()?.next()
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
