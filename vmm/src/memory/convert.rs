//! Conversion of pages between private and shared, at the guest's word.
//!
//! Order, for the reasons in ARCHITECTURE.md, "Page states":
//!
//! - to private: mark (so that no new request of a device gets in), tell KVM, discard the shared side;
//! - to shared: tell KVM, discard the private side, mark.
//!
//! The answer to the guest comes after all of it. Conversions of distinct 2 MiB blocks run side by side;
//! those of one block take turns. No lock is held while a device works.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tdvmm_arch::addr::{LARGE_PAGE_SIZE, PAGE_SIZE};
use tdvmm_arch::{Gpa, GpaRange};
use tdvmm_devices::dma::PageState;
use tdvmm_devices::guest_warn;
use tdvmm_tdx::exit::{MapGpaStatus, Visibility};

use super::pages::PageBits;

/// Locks, one of which serves each 2 MiB block.
const STRIPES: usize = 64;
/// Blocks that may have a large page, or a part of one, at one time: 8 GiB. Each that stands alone splits a mapping of
/// this process in three, and a process has 65530 at most.
const LARGE_MAX: usize = 4096;

/// The two backings of a TD's memory, and what KVM is told of them.
pub trait Backings: Debug + Send + Sync {
    /// Tells KVM which side the pages of `range` are on.
    ///
    /// # Errors
    ///
    /// KVM's.
    fn set_visibility(&self, range: GpaRange, to: Visibility) -> io::Result<()>;

    /// Gives the memory of one side of `range` back to the host. `range` lies in one range of memory.
    ///
    /// # Errors
    ///
    /// The host's.
    fn discard(&self, range: GpaRange, side: Visibility) -> io::Result<()>;

    /// Says that the host may use a large page for the shared side of `block`, an aligned 2 MiB.
    ///
    /// # Errors
    ///
    /// The host's; nothing but speed is lost.
    fn allow_large_page(&self, block: GpaRange) -> io::Result<()>;

    /// Says that it may not any more, and has it split the one that there may be, so that `part` can be given back
    /// without the rest of `block`.
    ///
    /// # Errors
    ///
    /// The host's; it then splits the page when it is short of memory.
    fn split_large_page(&self, block: GpaRange, part: GpaRange) -> io::Result<()>;
}

/// The memory of a TD, convertible.
#[derive(Debug)]
pub struct TdMemory<B> {
    ranges: Vec<GpaRange>,
    bits: PageBits,
    backings: B,
    /// Leaf locks: taken one at a time, held while KVM converts one block.
    stripes: [Mutex<Stripe>; STRIPES],
    /// Blocks in all stripes.
    large: AtomicUsize,
}

/// Numbers of the blocks of one stripe that were allowed a large page and have not been private as a whole since.
type Stripe = BTreeSet<u64>;

impl<B: Backings> TdMemory<B> {
    /// The memory at `ranges`, all of it private, as it has been told to KVM.
    pub fn new(ranges: Vec<GpaRange>, backings: B) -> Self {
        let bits = PageBits::new(ranges.iter().copied());
        Self {
            ranges,
            bits,
            backings,
            stripes: std::array::from_fn(|_| Mutex::default()),
            large: AtomicUsize::new(0),
        }
    }

    /// Converts the pages of `range`, as a guest may ask at any time and of any range.
    ///
    /// What is no memory is shared anyway: asking for that is granted, asking for the opposite refused.
    pub fn convert(&self, range: GpaRange, to: Visibility) -> MapGpaStatus {
        if to == Visibility::Private && !self.is_memory(range) {
            return MapGpaStatus::Invalid;
        }
        for block in self.blocks(range) {
            if let Err(error) = self.convert_block(block, to) {
                return self.failed(block, to, &error);
            }
        }
        MapGpaStatus::Done
    }

    /// The memory in `range`, cut where blocks of 2 MiB meet.
    fn blocks(&self, range: GpaRange) -> impl Iterator<Item = GpaRange> {
        self.ranges.iter().flat_map(move |memory| {
            let end = range.end().min(memory.end());
            let cut = move |start: Gpa| {
                let next = Gpa((start.0 | (LARGE_PAGE_SIZE - 1)).saturating_add(1));
                GpaRange::new(start, next.min(end)).filter(|block| !block.is_empty())
            };
            let first = cut(range.start().max(memory.start()));
            std::iter::successors(first, move |block| cut(block.end()))
        })
    }

    /// Whether all of `range` is memory.
    #[must_use]
    pub fn is_memory(&self, range: GpaRange) -> bool {
        self.ranges
            .iter()
            .any(|memory| memory.contains_range(range))
    }

    fn convert_block(&self, block: GpaRange, to: Visibility) -> io::Result<()> {
        let mut stripe = self.take_turn(block.start());
        match to {
            Visibility::Private => {
                self.bits.mark_private(block);
                self.split_large_page(&mut stripe, block);
                self.backings.set_visibility(block, to)?;
                self.backings.discard(block, Visibility::Shared)
            }
            Visibility::Shared => {
                self.backings.set_visibility(block, to)?;
                self.backings.discard(block, Visibility::Private)?;
                self.bits.mark_shared(block);
                self.allow_large_page(&mut stripe, block);
                Ok(())
            }
        }
    }

    /// Waits until nobody converts in the block around `at`.
    fn take_turn(&self, at: Gpa) -> MutexGuard<'_, Stripe> {
        let number = usize::try_from(at.0 / LARGE_PAGE_SIZE).unwrap_or(0);
        let stripe = &self.stripes[number % STRIPES];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows a large page for the block around `part` when all of it is shared: bounce buffers are, as a rule.
    /// In a block that is shared in part one would hold the memory of private pages a second time.
    fn allow_large_page(&self, stripe: &mut Stripe, part: GpaRange) {
        let Some((number, block)) = block_around(part) else {
            return;
        };
        if !self.bits.is_shared(block.start().0..block.end().0) {
            return;
        }
        let is_new = !stripe.contains(&number);
        let one_more = |count| (count < LARGE_MAX).then_some(count + 1);
        if is_new
            && self
                .large
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
                .is_err()
        {
            return;
        }
        match self.backings.allow_large_page(block) {
            Ok(()) => {
                stripe.insert(number);
            }
            Err(_) if is_new => {
                self.large.fetch_sub(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
    }

    /// Takes the permission back before `part` turns private, and splits the page, of which nothing could be given back
    /// otherwise. Where that fails, since a device is using the page, the next conversion in the block tries again:
    /// so it stays known until nothing of it is shared.
    fn split_large_page(&self, stripe: &mut Stripe, part: GpaRange) {
        let Some((number, block)) = block_around(part) else {
            return;
        };
        if !stripe.contains(&number) {
            return;
        }
        let _ = self.backings.split_large_page(block, part);
        if !self.bits.has_shared(block) {
            stripe.remove(&number);
            self.large.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The pages of `block` that are private, in runs as long as they come.
    fn private_runs(&self, block: GpaRange) -> impl Iterator<Item = GpaRange> {
        let mut at = block.start().0;
        let end = block.end().0;
        let is_shared = |page: u64| self.bits.is_shared(page..page + PAGE_SIZE);
        std::iter::from_fn(move || {
            while at < end && is_shared(at) {
                at += PAGE_SIZE;
            }
            let start = at;
            while at < end && !is_shared(at) {
                at += PAGE_SIZE;
            }
            GpaRange::new(Gpa(start), Gpa(at)).filter(|run| !run.is_empty())
        })
    }

    fn failed(&self, block: GpaRange, to: Visibility, error: &io::Error) -> MapGpaStatus {
        match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => MapGpaStatus::Retry,
            _ => {
                guest_warn!("cannot make {block} {to:?}: {error}");
                MapGpaStatus::Invalid
            }
        }
    }
}

impl<B: Backings> PageState for TdMemory<B> {
    fn is_shared(&self, range: Range<u64>) -> bool {
        self.bits.is_shared(range)
    }

    fn generation(&self) -> u64 {
        self.bits.generation()
    }

    /// A chain of a hostile driver names gigabytes, the same ones again and again: hence one call for each run of private
    /// pages of a block, and not for each page.
    fn discard_private(&self, range: Range<u64>) {
        let start = Gpa(range.start & !(PAGE_SIZE - 1));
        let end = range.end.checked_next_multiple_of(PAGE_SIZE).map(Gpa);
        let Some(pages) = end.and_then(|end| GpaRange::new(start, end)) else {
            return;
        };
        for block in self.blocks(pages) {
            // In turn with conversions, so that a page that has just become shared is not emptied.
            let _turn = self.take_turn(block.start());
            for run in self.private_runs(block) {
                let _ = self.backings.discard(run, Visibility::Shared);
            }
        }
    }
}

/// The block of 2 MiB that `part` lies in, with its number.
fn block_around(part: GpaRange) -> Option<(u64, GpaRange)> {
    let number = part.start().0 / LARGE_PAGE_SIZE;
    let block = GpaRange::from_len(Gpa(number * LARGE_PAGE_SIZE), LARGE_PAGE_SIZE)?;
    Some((number, block))
}

#[cfg(test)]
mod tests;
