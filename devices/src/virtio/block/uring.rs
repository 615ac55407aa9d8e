//! io_uring for what would block: one ring per queue, one registered file, an eventfd for completions.
//!
//! A slot that was pushed belongs to the kernel until its completion; it stays boxed in `flying` and is
//! not touched. Dropping the engine cancels what can be cancelled and waits for the rest, so that no
//! I/O touches guest memory after a reset.
#![expect(unsafe_code, reason = "submissions carry pointers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::IoUring;
use io_uring::types::CancelBuilder;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::slot::Slot;

/// See the module's text.
pub(super) struct Uring {
    ring: IoUring,
    event: EventFd,
    flying: Vec<Option<Box<Slot>>>,
    /// Places of `flying` that are `None`.
    free: Vec<u32>,
    /// Entries pushed since the last submission.
    pushed: u32,
}

impl Uring {
    /// An engine for at most `depth` requests at a time on `file`.
    pub fn new(file: &File, depth: u16) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(depth))?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Uring {
            ring,
            event,
            flying: (0..depth).map(|_| None).collect(),
            free: (0..u32::from(depth)).collect(),
            pushed: 0,
        })
    }

    /// What is written when requests have completed.
    pub fn event_source(&self) -> &dyn AsRawFd {
        &self.event
    }

    /// Has the event loop call again, as if more had completed.
    pub fn come_back(&self) {
        // An error means that the counter is full: the event is there already.
        let _ = self.event.write(1);
    }

    pub fn in_flight(&self) -> usize {
        self.flying.len().wrapping_sub(self.free.len())
    }

    /// Takes a slot on board; it leaves with the next [`Uring::submit`]. Gives it back if there is no
    /// room, which a queue no larger than the depth never sees.
    pub fn push(&mut self, slot: Box<Slot>) -> Result<(), Box<Slot>> {
        let Some(place) = self.free.pop() else {
            return Err(slot);
        };
        let Some(seat) = usize::try_from(place)
            .ok()
            .and_then(|at| self.flying.get_mut(at))
        else {
            return Err(slot);
        };
        let entry = slot.submission().user_data(u64::from(place));
        *seat = Some(slot);
        // SAFETY: the entry points to the slot's pieces and through them to guest memory. The slot is
        // boxed, so its list does not move, and stays in `flying`, unchanged, until `reap` sees its
        // completion or `drain` has waited for it; its chain keeps the guest memory mapped. The file is
        // the registered one.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // Full: there are as many entries as seats, so this takes entries that were not submitted.
            let back = seat.take();
            self.free.push(place);
            return match back {
                Some(slot) => Err(slot),
                None => Ok(()),
            };
        }
        self.pushed = self.pushed.wrapping_add(1);
        Ok(())
    }

    /// Hands what was pushed to the kernel.
    pub fn submit(&mut self) -> io::Result<()> {
        while self.pushed > 0 {
            #[cfg(test)]
            if refusals::is_refused() {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            match self.ring.submit() {
                Ok(count) => {
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    self.pushed = self.pushed.saturating_sub(count.max(1));
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next completed slot with its result, as a system call would give it.
    pub fn reap(&mut self) -> Option<(Box<Slot>, io::Result<usize>)> {
        loop {
            let entry = self.ring.completion().next()?;
            let Ok(place) = u32::try_from(entry.user_data()) else {
                continue;
            };
            let seat = usize::try_from(place)
                .ok()
                .and_then(|at| self.flying.get_mut(at));
            let Some(slot) = seat.and_then(Option::take) else {
                continue;
            };
            self.free.push(place);
            let result = entry.result();
            let result = usize::try_from(result)
                .map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()));
            return Some((slot, result));
        }
    }

    /// Cancels what can be cancelled and waits for the rest. `ended` gets each slot with its result.
    pub fn drain(&mut self, mut ended: impl FnMut(Box<Slot>, io::Result<usize>)) {
        // What the kernel will not cancel is waited for below.
        let _ = self.submit();
        if self.in_flight() > 0 {
            let all = CancelBuilder::any();
            let _ = self.ring.submitter().register_sync_cancel(None, all);
        }
        while self.in_flight() > 0 {
            if let Some((slot, result)) = self.reap() {
                ended(slot, result);
                continue;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // Without the kernel's word, memory that it may write must not be given back.
                Err(_) => {
                    for slot in self.flying.drain(..).flatten() {
                        std::mem::forget(slot);
                    }
                    self.free.clear();
                }
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.drain(|_, _| ());
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod refusals {
    use std::cell::Cell;

    thread_local! {
        /// Submissions of this thread that fail from now on, as if the kernel had no memory.
        pub static REFUSED: Cell<u32> = const { Cell::new(0) };
    }

    pub fn is_refused() -> bool {
        let left = REFUSED.get().checked_sub(1);
        REFUSED.set(left.unwrap_or_default());
        left.is_some()
    }
}
