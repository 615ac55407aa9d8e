//! What becomes of the requests that io_uring has.

use std::io;

use super::super::ending::{finish, flush_ended, is_transient, report};
use super::super::request::Status;
use super::super::slot::{Slot, Work};
use super::BlockServer;
use crate::virtio::late;

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

impl Drop for BlockServer {
    /// What is in flight ends unanswered.
    fn drop(&mut self) {
        let Some(uring) = &mut self.uring else { return };
        let mut slots = Vec::new();
        let shared = &self.shared;
        uring.drain(|slot, result| {
            // The kernel tells of it once, and the next driver's flush must not claim what is lost. A write that was
            // to last claims nothing but its own data, and was never said to have ended.
            if slot.work == Work::Flush
                && let Err(error) = result
                && !is_transient(&error)
                && error.raw_os_error() != Some(libc::ECANCELED)
            {
                flush_ended(shared, Err(error));
            }
            slots.push(slot);
        });
        // They may have written to what is private by now; that their queue faults makes no odds any more.
        late::give_up(slots.iter().map(|slot| slot.chain()));
    }
}
