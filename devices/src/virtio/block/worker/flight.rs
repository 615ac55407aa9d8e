//! What becomes of the requests that io_uring has.

use std::io;

use super::super::ending::{finish, flush_ended, is_transient, report};
use super::super::request::Status;
use super::super::slot::{Slot, Work};
use super::BlockServer;

impl BlockServer {
    /// After a completion: what is left of the request flies again; or the slot and how it ended. Neither for a
    /// worker that is to stop.
    pub(super) fn go_on(
        &mut self,
        mut slot: Box<Slot>,
        result: io::Result<usize>,
    ) -> Option<(Box<Slot>, Status)> {
        let status = match (slot.work, result) {
            (Work::Read | Work::Write { .. }, Ok(done)) if done > 0 => {
                slot.advance(done);
                if slot.left == 0 {
                    return Some((slot, Status::Ok));
                }
                return self.fly_again(slot);
            }
            (_, Err(error)) if is_transient(&error) => return self.fly_again(slot),
            // The file ends before the disk does: it was cut.
            (Work::Read | Work::Write { .. }, Ok(_)) => Status::IoError,
            (Work::Read | Work::Write { .. }, Err(error)) => {
                match error.raw_os_error() == Some(libc::EINVAL) && self.shared.backend.is_direct()
                {
                    // Not aligned in memory: by way of the page cache.
                    true => return self.finish_flight(slot),
                    false => report("transfer", &error),
                }
            }
            (Work::Flush, result) => flush_ended(&self.shared, result.map(drop)),
            (Work::Allocate { .. }, Ok(_)) => Status::Ok,
            // There may be another way, in which this thread waits.
            (Work::Allocate { .. }, Err(error)) => {
                match error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                    true => return self.finish_flight(slot),
                    false => report("discard or zero", &error),
                }
            }
        };
        Some((slot, status))
    }

    fn fly_again(&mut self, slot: Box<Slot>) -> Option<(Box<Slot>, Status)> {
        if self.stop.is_raised() {
            return Self::give_up(&slot);
        }
        let Some(uring) = &mut self.uring else {
            return self.finish_flight(slot);
        };
        let slot = uring.push(slot).err()?;
        self.finish_flight(slot)
    }

    /// Does all that is left of a request that has flown, waiting for the disk.
    fn finish_flight(&mut self, mut slot: Box<Slot>) -> Option<(Box<Slot>, Status)> {
        self.budget.spend(&slot);
        match finish(&self.shared, &mut slot, &self.stop) {
            Some(status) => Some((slot, status)),
            None => Self::give_up(&slot),
        }
    }

    /// The request is not answered, but some of it was done; the worker is about to be dropped.
    fn give_up(slot: &Slot) -> Option<(Box<Slot>, Status)> {
        let _ = slot.chain().check_after_io();
        None
    }
}
