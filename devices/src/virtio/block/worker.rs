//! The running half of a disk: one for each queue.
//!
//! A request is parsed, then answered at once if the page cache has it (RWF_NOWAIT). What would block,
//! what is for O_DIRECT, flushes and discards go to io_uring; where that is not allowed, they are done
//! here and the thread waits. Requests may end in any order; FLUSH covers what had ended before it came.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::budget::{Budget, discard_cost};
use super::ending::{Shared, answer, finish, flush_ended, parts_of};
use super::request::{HEADER_LEN, ID_LEN, Parts, Request, RequestError, Status, parse};
use super::slot::{NO_HIDE_STALE, Slot, Wait, Work};
use super::uring::Uring;
use crate::guest_warn;
use crate::virtio::chain::Chain;
use crate::virtio::device::{StopFlag, Token, Worker};
use crate::virtio::queue::{Queue, QueueFault};
use crate::virtio::served::{Served, ServedQueue, Server};

mod flight;

const KICK: Token = Token(0);
const COMPLETION: Token = Token(1);
const TIMER: Token = Token(2);
/// When the kernel is asked again to take requests that it had no memory for.
const AGAIN: Duration = Duration::from_millis(10);

/// See the module's text.
#[derive(Debug)]
pub(super) struct BlockWorker {
    served: ServedQueue,
    server: BlockServer,
}

#[derive(Debug)]
struct BlockServer {
    shared: Arc<Shared>,
    /// Writes last when they return, as the driver cannot flush (virtio 1.3, 5.2.6.2).
    write_through: bool,
    uring: Option<Uring>,
    timer: TimerFd,
    /// The timer runs, or has run out and was not yet seen to.
    waiting: bool,
    /// The request at hand.
    slot: Box<Slot>,
    /// Slots that are not in use; as many as there were requests in flight at most.
    #[expect(
        clippy::vec_box,
        reason = "a slot keeps its address from one flight to the next"
    )]
    spare: Vec<Box<Slot>>,
    /// Makes chains for further slots.
    new_chain: Chain,
    inline_reads: bool,
    inline_writes: bool,
    stop: StopFlag,
    /// Of this call.
    budget: Budget,
}

impl BlockWorker {
    pub fn new(
        served: ServedQueue,
        shared: Arc<Shared>,
        uring: Option<Uring>,
        write_through: bool,
    ) -> io::Result<Self> {
        // Without io_uring the second try would wait just as a first one does.
        let inline = uring.is_some() && !shared.backend.is_direct();
        let chain = served.queue.new_chain();
        let server = BlockServer {
            shared,
            write_through,
            uring,
            timer: TimerFd::new().map_err(io::Error::from)?,
            waiting: false,
            slot: Box::new(Slot::new(served.queue.new_chain())),
            spare: Vec::new(),
            new_chain: chain,
            inline_reads: inline,
            inline_writes: inline,
            stop: StopFlag::default(),
            budget: Budget::new(),
        };
        Ok(BlockWorker { served, server })
    }

    /// Gives back what io_uring has completed.
    fn complete(&mut self) -> Result<(), QueueFault> {
        let server = &mut self.server;
        self.served.queue.check_generation()?;
        server.budget = Budget::new();
        // A worker that is to stop leaves the rest to its drop.
        while !server.stop.is_raised()
            && server.budget.has_more()
            && let Some((slot, result)) = server.uring.as_mut().and_then(Uring::reap)
        {
            if let Some((slot, status)) = server.go_on(slot, result) {
                let written = server.answer(&slot, status);
                slot.chain().check_after_io()?;
                self.served.queue.add_used(slot.chain().head(), written?);
                if slot.is_usual() {
                    server.spare.push(slot);
                }
            }
        }
        if server.budget.is_exceeded()
            && let Some(uring) = &server.uring
        {
            uring.come_back();
        }
        server.submit();
        self.served.publish();
        Ok(())
    }
}

impl Worker for BlockWorker {
    fn event_sources(&self) -> Vec<(Token, &dyn AsRawFd)> {
        let mut sources: Vec<(Token, &dyn AsRawFd)> = vec![
            (KICK, self.served.kick_source()),
            (TIMER, &self.server.timer),
        ];
        if let Some(uring) = &self.server.uring {
            sources.push((COMPLETION, uring.event_source()));
        }
        sources
    }

    fn counts_writes(&self, token: Token) -> bool {
        token != TIMER
    }

    fn set_stop(&mut self, stop: StopFlag) {
        self.server.stop = stop;
    }

    fn on_event(&mut self, token: Token) -> Result<(), QueueFault> {
        match token {
            COMPLETION => self.complete()?,
            // One shot: it has run out, or was set anew for AGAIN, which is not long.
            TIMER if self.server.waiting => {
                let _ = self.server.timer.wait();
                self.server.waiting = false;
            }
            _ => {}
        }
        if self.server.waiting {
            return self.served.queue.check_generation();
        }
        self.server.budget = Budget::new();
        self.served.serve(&mut self.server)?;
        if self.server.budget.is_exceeded() {
            self.served.come_back();
        }
        Ok(())
    }
}

impl Server for BlockServer {
    fn chain(&mut self) -> &mut Chain {
        self.slot.chain_mut()
    }

    fn serve(&mut self) -> Result<Served, QueueFault> {
        if self.stop.is_raised() || self.waiting || !self.budget.has_more() {
            return Ok(Served::NotNow);
        }
        let parts = parts_of(self.slot.chain())?;
        let request = parse(&parts, &self.shared.limits);
        if let Some(wait) = self.must_wait(cost(&request, &parts)) {
            // A timer that cannot be set would leave the queue dead; then the limit is not kept.
            if self.timer.reset(wait, None).is_ok() {
                self.waiting = true;
                return Ok(Served::NotNow);
            }
        }
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                guest_warn!("disk request refused: {error}");
                return self.answer_now(error.status());
            }
        };
        self.start(request)
    }

    fn end_of_batch(&mut self, _: &mut Queue) -> Result<(), QueueFault> {
        self.submit();
        Ok(())
    }
}

/// Bytes that count against the limit: those that the host writes or forgets, where the driver only names them.
fn cost(request: &Result<Request, RequestError>, parts: &Parts) -> u64 {
    match *request {
        Ok(Request::WriteZeroes { len, .. }) => len,
        Ok(Request::Discard { len, .. }) => discard_cost(len),
        _ => u64::from(parts.given).saturating_add(u64::from(parts.wanted)),
    }
}

impl BlockServer {
    fn must_wait(&self, bytes: u64) -> Option<Duration> {
        let limiter = self.shared.limiter.as_ref()?;
        let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.pass(bytes, self.shared.started.elapsed()).err()
    }

    fn start(&mut self, request: Request) -> Result<Served, QueueFault> {
        let header = u32::try_from(HEADER_LEN).unwrap_or_default();
        match request {
            Request::Read { offset, len } => {
                self.slot.load(Work::Read, offset, 0, len);
                self.slot.written = len;
                self.read_or_write(self.inline_reads)
            }
            Request::Write { offset, len } => {
                let sync = self.write_through;
                // It would claim to last, which nothing does any more.
                if sync && self.shared.flush_failed.load(Ordering::Relaxed) {
                    return self.answer_now(Status::IoError);
                }
                self.slot.load(Work::Write { sync }, offset, header, len);
                self.slot.written = 0;
                self.read_or_write(self.inline_writes && !sync)
            }
            Request::GetId => {
                let id = self.shared.id;
                let room = self.slot.chain().writable_len().saturating_sub(1);
                let len = usize::try_from(room).unwrap_or(ID_LEN).min(ID_LEN);
                let done = self
                    .slot
                    .chain()
                    .write_at(0, id.get(..len).unwrap_or_default());
                self.slot.written = u32::try_from(done).unwrap_or_default();
                self.answer_now(Status::Ok)
            }
            Request::Flush => self.hand_over(Work::Flush, 0),
            Request::Discard { offset, len } => {
                let stale = match self.shared.backend.may_read_stale() {
                    true => NO_HIDE_STALE,
                    false => 0,
                };
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE | stale;
                let zeros = false;
                self.hand_over(Work::Allocate { mode, len, zeros }, offset)
            }
            Request::WriteZeroes { offset, len, unmap } => {
                let how = match unmap {
                    true => libc::FALLOC_FL_PUNCH_HOLE,
                    false => libc::FALLOC_FL_ZERO_RANGE,
                };
                let mode = how | libc::FALLOC_FL_KEEP_SIZE;
                let zeros = true;
                self.hand_over(Work::Allocate { mode, len, zeros }, offset)
            }
        }
    }

    fn read_or_write(&mut self, inline: bool) -> Result<Served, QueueFault> {
        if inline {
            match self.shared.backend.transfer(&self.slot, Wait::No) {
                Ok(0) => {}
                Ok(done) => {
                    self.budget.spend_bytes(done as u64);
                    self.slot.advance(done);
                    if self.slot.left == 0 {
                        self.shared.counters.inline.fetch_add(1, Ordering::Relaxed);
                        return self.answer_now(Status::Ok);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    return self.without_nowait();
                }
                // It would block, or it fails, which the other way finds out too.
                Err(_) => {}
            }
        }
        self.launch()
    }

    /// The file system knows no RWF_NOWAIT in this direction. A write to the page cache waits only when
    /// the host has too many dirty pages, so it stays here; a read waits for the disk.
    fn without_nowait(&mut self) -> Result<Served, QueueFault> {
        if self.slot.work == Work::Read {
            self.inline_reads = false;
            return self.launch();
        }
        self.finish_here()
    }

    fn hand_over(&mut self, work: Work, offset: u64) -> Result<Served, QueueFault> {
        self.slot.load(work, offset, 0, 0);
        self.slot.written = 0;
        if work == Work::Flush && self.shared.flush_failed.load(Ordering::Relaxed) {
            return self.answer_now(Status::IoError);
        }
        if self.write_through && work != Work::Flush {
            self.budget.spend(&self.slot);
            let status = match finish(&self.shared, &mut self.slot, &self.stop) {
                None => return Ok(Served::NotNow),
                Some(Status::Ok) => flush_ended(&self.shared, self.shared.backend.flush()),
                Some(failed) => failed,
            };
            return self.answer_now(status);
        }
        self.launch()
    }

    /// Gives the request at hand to io_uring, or does it here.
    fn launch(&mut self) -> Result<Served, QueueFault> {
        let Some(uring) = &mut self.uring else {
            return self.finish_here();
        };
        let fresh = self
            .spare
            .pop()
            .unwrap_or_else(|| Box::new(Slot::new(self.new_chain.another())));
        let slot = std::mem::replace(&mut self.slot, fresh);
        match uring.push(slot) {
            Ok(()) => {
                self.shared
                    .counters
                    .submitted
                    .fetch_add(1, Ordering::Relaxed);
                Ok(Served::Later)
            }
            Err(slot) => {
                self.spare.push(std::mem::replace(&mut self.slot, slot));
                self.finish_here()
            }
        }
    }

    /// Does all that is left of the request at hand, waiting for the disk, and answers it. A worker that is to
    /// stop leaves it where it is.
    fn finish_here(&mut self) -> Result<Served, QueueFault> {
        self.budget.spend(&self.slot);
        match finish(&self.shared, &mut self.slot, &self.stop) {
            Some(status) => self.answer_now(status),
            None => Ok(Served::NotNow),
        }
    }

    fn submit(&mut self) {
        let Some(Err(error)) = self.uring.as_mut().map(Uring::submit) else {
            return;
        };
        guest_warn!("io_uring takes no requests: {error}");
        // Nothing may be in flight whose end would call here again. Who waits for the rate limit is called early, and
        // computes the rest anew.
        self.waiting |= self.timer.reset(AGAIN, None).is_ok();
    }

    fn answer_now(&self, status: Status) -> Result<Served, QueueFault> {
        Ok(Served::Done(answer(&self.shared, &self.slot, status)?))
    }

    fn answer(&self, slot: &Slot, status: Status) -> Result<u32, QueueFault> {
        answer(&self.shared, slot, status)
    }
}
