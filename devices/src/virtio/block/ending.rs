//! What the queues of a disk share, and how a request ends.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::disk::Backend;
use super::limit::Limiter;
use super::request::{HEADER_LEN, ID_LEN, Limits, Parts, Status};
use super::slot::{Slot, Wait, Work};
use crate::guest_warn;
use crate::virtio::chain::Chain;
use crate::virtio::device::StopFlag;
use crate::virtio::queue::QueueFault;

/// How often a request that ends early is tried again without any progress.
const RETRIES: u32 = 8;
/// Bytes that are zeroed, and that are discarded, before the worker looks whether it is to stop. A step ends at a
/// multiple of it, and so at the end of a cluster.
const ZERO_STEP: u64 = 4 << 20;
const DISCARD_STEP: u64 = 64 << 20;

/// What the queues of a disk have in common, over resets.
#[derive(Debug)]
pub(super) struct Shared {
    pub backend: Arc<dyn Backend>,
    pub limits: Limits,
    pub id: [u8; ID_LEN],
    /// Once a flush has failed, the host may have dropped what it could not write, and a later one that
    /// succeeds would say nothing about it (fsync(2), and the kernel marks such pages clean).
    pub flush_failed: AtomicBool,
    /// Lock rank: innermost; held for a few additions. Only where a limit is configured.
    pub limiter: Option<Mutex<Limiter>>,
    pub started: Instant,
    pub counters: Counters,
}

/// What a disk has done, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that ended well.
    pub done: AtomicU64,
    /// Requests that the driver was told have failed.
    pub failed: AtomicU64,
    /// Requests that were answered at once, from or to the page cache.
    pub inline: AtomicU64,
    /// Requests that io_uring took.
    pub submitted: AtomicU64,
}

/// Copies what decides over a request, once.
pub(super) fn parts_of(chain: &Chain) -> Result<Parts, QueueFault> {
    let mut header = [0; HEADER_LEN];
    let mut segment = [0; HEADER_LEN];
    if chain.read_at(0, &mut header) < HEADER_LEN {
        return Err(QueueFault::Request("no header"));
    }
    let (readable, writable) = (chain.readable_len(), chain.writable_len());
    let header_len = u32::try_from(HEADER_LEN).unwrap_or_default();
    let given = readable.saturating_sub(header_len);
    // The status is the last byte that the driver lets us write (virtio 1.3, 5.2.6).
    let wanted = writable
        .checked_sub(1)
        .ok_or(QueueFault::Request("no room for the status"))?;
    if given == header_len {
        chain.read_at(header_len, &mut segment);
    }
    Ok(Parts {
        header,
        segment,
        given,
        wanted,
    })
}

/// Writes the status; how many bytes the driver got in all. Those before the status do not count where
/// the request failed, as nothing is promised of them.
pub(super) fn answer(shared: &Shared, slot: &Slot, status: Status) -> Result<u32, QueueFault> {
    let counter = match status {
        Status::Ok => &shared.counters.done,
        _ => &shared.counters.failed,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let chain = slot.chain();
    let at = chain.writable_len().saturating_sub(1);
    if chain.write_at(at, &[status as u8]) == 0 {
        return Err(QueueFault::Request("no room for the status"));
    }
    Ok(match status {
        Status::Ok => slot.written.saturating_add(1),
        _ => 1,
    })
}

/// Does all that is left of `slot`, waiting for the disk. Nothing where `stop` was raised before the end: the
/// request is not answered then.
pub(super) fn finish(shared: &Shared, slot: &mut Slot, stop: &StopFlag) -> Option<Status> {
    let status = match slot.work {
        // Only the kernel knows of writes that last (RWF_DSYNC); others are flushed, once for a request.
        Work::Write { sync: true } if shared.backend.file().is_none() => {
            match transfer_all(shared, slot, stop)? {
                Status::Ok => flush_ended(shared, shared.backend.flush()),
                failed => failed,
            }
        }
        Work::Read | Work::Write { .. } => transfer_all(shared, slot, stop)?,
        Work::Flush => flush_ended(shared, shared.backend.flush()),
        Work::Allocate { mode, len, zeros } => {
            let step = if zeros { ZERO_STEP } else { DISCARD_STEP };
            let (mut at, mut left) = (slot.offset, len);
            let mut status = Status::Ok;
            while left > 0 && status == Status::Ok {
                if stop.is_raised() {
                    return None;
                }
                let here = step.wrapping_sub(at.checked_rem(step)?).min(left);
                let result = shared.backend.allocate(mode, at, here);
                status = allocate_ended(shared, zeros, (at, here), result);
                at = at.wrapping_add(here);
                left = left.wrapping_sub(here);
            }
            status
        }
    };
    Some(status)
}

fn transfer_all(shared: &Shared, slot: &mut Slot, stop: &StopFlag) -> Option<Status> {
    let mut tries = 0u32;
    while slot.left > 0 {
        if stop.is_raised() {
            return None;
        }
        match shared.backend.transfer(slot, Wait::Yes) {
            Ok(0) => return Some(Status::IoError),
            Ok(done) => slot.advance(done),
            Err(error) if is_transient(&error) && tries < RETRIES => tries = tries.wrapping_add(1),
            Err(error) => return Some(report("transfer", &error)),
        }
    }
    Some(Status::Ok)
}

pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// A flush that ends well after another has failed claims nothing either.
pub(super) fn flush_ended(shared: &Shared, result: io::Result<()>) -> Status {
    match result {
        Ok(()) if shared.flush_failed.load(Ordering::Relaxed) => Status::IoError,
        Ok(()) => Status::Ok,
        Err(error) => {
            shared.flush_failed.store(true, Ordering::Relaxed);
            report("flush", &error)
        }
    }
}

/// A discard is a hint, and one that the host cannot take is not an error (virtio 1.3, 5.2.6.2); zeros
/// that it cannot make by itself are written.
fn allocate_ended(
    shared: &Shared,
    zeros: bool,
    (offset, len): (u64, u64),
    result: io::Result<()>,
) -> Status {
    let result = match result {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => match zeros {
            true => shared.backend.zero(offset, len),
            false => forget(shared, offset, len),
        },
        result => result,
    };
    match result {
        Ok(()) => Status::Ok,
        Err(error) => report("discard or zero", &error),
    }
}

/// Kernels differ in whether fallocate discards on a block device; the ioctl always does.
fn forget(shared: &Shared, offset: u64, len: u64) -> io::Result<()> {
    match shared.backend.discard(offset, len) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}

pub(super) fn report(what: &str, error: &io::Error) -> Status {
    guest_warn!("disk: cannot {what}: {error}");
    Status::IoError
}
