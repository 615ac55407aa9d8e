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

use tdvmm_arch::addr::LARGE_PAGE_SIZE;
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
        for memory in &self.ranges {
            let start = range.start().max(memory.start());
            let end = range.end().min(memory.end());
            let mut at = start;
            while at < end {
                let next = Gpa((at.0 | (LARGE_PAGE_SIZE - 1)).saturating_add(1)).min(end);
                let Some(block) = GpaRange::new(at, next) else {
                    break;
                };
                if let Err(error) = self.convert_block(block, to) {
                    return self.failed(block, to, &error);
                }
                at = next;
            }
        }
        MapGpaStatus::Done
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

    fn discard_private(&self, range: Range<u64>) {
        use tdvmm_arch::addr::PAGE_SIZE;
        let mut page = range.start & !(PAGE_SIZE - 1);
        while page < range.end {
            let Some(one) = GpaRange::from_len(Gpa(page), PAGE_SIZE) else {
                return;
            };
            if self.is_memory(one) {
                // In turn with conversions, so that a page that has just become shared is not emptied.
                let _turn = self.take_turn(one.start());
                if !self.bits.is_shared(one.start().0..one.end().0) {
                    let _ = self.backings.discard(one, Visibility::Shared);
                }
            }
            page += PAGE_SIZE;
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
mod tests {
    use std::sync::atomic::AtomicI32;

    use tdvmm_arch::addr::PAGE_SIZE;

    use super::*;

    const RAM: GpaRange = GpaRange::constant(0, 8 << 20);

    #[derive(Debug, PartialEq, Eq, Clone, Copy)]
    enum Call {
        Set(GpaRange, Visibility),
        Discard(GpaRange, Visibility),
        AllowLarge(GpaRange),
        /// The block, and the part that is to be given back.
        Split(GpaRange, GpaRange),
    }

    #[derive(Debug, Default)]
    struct Recorder {
        calls: Mutex<Vec<Call>>,
        errno: AtomicI32,
    }

    impl Recorder {
        fn take(&self) -> Vec<Call> {
            std::mem::take(&mut self.calls.lock().unwrap())
        }
    }

    impl Backings for &Recorder {
        fn set_visibility(&self, range: GpaRange, to: Visibility) -> io::Result<()> {
            self.calls.lock().unwrap().push(Call::Set(range, to));
            match self.errno.load(Ordering::Relaxed) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
        fn discard(&self, range: GpaRange, side: Visibility) -> io::Result<()> {
            self.calls.lock().unwrap().push(Call::Discard(range, side));
            Ok(())
        }
        fn allow_large_page(&self, block: GpaRange) -> io::Result<()> {
            self.calls.lock().unwrap().push(Call::AllowLarge(block));
            Ok(())
        }
        fn split_large_page(&self, block: GpaRange, part: GpaRange) -> io::Result<()> {
            self.calls.lock().unwrap().push(Call::Split(block, part));
            Ok(())
        }
    }

    fn pages(first: u64, count: u64) -> GpaRange {
        GpaRange::constant(first * PAGE_SIZE, count * PAGE_SIZE)
    }

    #[test]
    fn each_direction_discards_the_other_side() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        let range = pages(3, 4);
        assert_eq!(
            memory.convert(range, Visibility::Shared),
            MapGpaStatus::Done
        );
        let shared = [
            Call::Set(range, Visibility::Shared),
            Call::Discard(range, Visibility::Private),
        ];
        assert_eq!(recorder.take(), shared);
        assert!(memory.is_shared(3 * PAGE_SIZE..7 * PAGE_SIZE));
        assert_eq!(
            memory.convert(range, Visibility::Private),
            MapGpaStatus::Done
        );
        let private = [
            Call::Set(range, Visibility::Private),
            Call::Discard(range, Visibility::Shared),
        ];
        assert_eq!(recorder.take(), private);
        assert!(!memory.is_shared(3 * PAGE_SIZE..4 * PAGE_SIZE));
        assert_eq!(memory.generation(), 1);
    }

    #[test]
    fn what_is_no_memory_can_only_be_shared() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        let hole = GpaRange::constant(0xe000_0000, 0x1000);
        assert_eq!(memory.convert(hole, Visibility::Shared), MapGpaStatus::Done);
        assert_eq!(
            memory.convert(hole, Visibility::Private),
            MapGpaStatus::Invalid
        );
        let across = GpaRange::constant((8 << 20) - 0x1000, 0x2000);
        assert_eq!(
            memory.convert(across, Visibility::Private),
            MapGpaStatus::Invalid
        );
        assert_eq!(recorder.take(), []);
        assert_eq!(
            memory.convert(across, Visibility::Shared),
            MapGpaStatus::Done
        );
        assert_eq!(recorder.take().len(), 2);
    }

    #[test]
    fn page_stays_refused_to_devices_when_kvm_does_not_convert_it() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        recorder.errno.store(libc::EAGAIN, Ordering::Relaxed);
        assert_eq!(
            memory.convert(pages(0, 1), Visibility::Shared),
            MapGpaStatus::Retry
        );
        assert!(!memory.is_shared(0..PAGE_SIZE));
        recorder.errno.store(libc::ENOMEM, Ordering::Relaxed);
        assert_eq!(
            memory.convert(pages(0, 1), Visibility::Shared),
            MapGpaStatus::Invalid
        );
        assert!(!memory.is_shared(0..PAGE_SIZE));
    }

    #[test]
    fn large_range_is_converted_block_by_block() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        let range = pages(511, 514);
        assert_eq!(
            memory.convert(range, Visibility::Shared),
            MapGpaStatus::Done
        );
        let blocks: Vec<_> = recorder
            .take()
            .into_iter()
            .filter_map(|call| match call {
                Call::Set(range, _) => Some(range),
                Call::Discard(..) | Call::AllowLarge(_) | Call::Split(..) => None,
            })
            .collect();
        assert_eq!(blocks, [pages(511, 1), pages(512, 512), pages(1024, 1)]);
    }

    /// What is done about large pages in a conversion.
    fn large(
        memory: &TdMemory<&Recorder>,
        recorder: &Recorder,
        range: GpaRange,
        to: Visibility,
    ) -> Vec<Call> {
        assert_eq!(memory.convert(range, to), MapGpaStatus::Done);
        let calls = recorder.take().into_iter();
        calls
            .filter(|call| matches!(call, Call::AllowLarge(_) | Call::Split(..)))
            .collect()
    }

    #[test]
    fn large_page_is_allowed_while_all_of_a_block_is_shared() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        let large = |range, to| large(&memory, &recorder, range, to);
        assert_eq!(large(pages(512, 511), Visibility::Shared), []);
        let block = pages(512, 512);
        let allowed = Call::AllowLarge(block);
        assert_eq!(large(pages(1023, 1), Visibility::Shared), [allowed]);
        let split = Call::Split(block, pages(600, 1));
        assert_eq!(large(pages(600, 1), Visibility::Private), [split]);
        assert_eq!(large(pages(600, 1), Visibility::Shared), [allowed]);
    }

    #[test]
    fn large_page_is_split_before_a_part_is_given_back() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        let (block, part) = (pages(512, 512), pages(513, 511));
        memory.convert(block, Visibility::Shared);
        recorder.take();
        memory.convert(part, Visibility::Private);
        let calls = [
            Call::Split(block, part),
            Call::Set(part, Visibility::Private),
            Call::Discard(part, Visibility::Shared),
        ];
        assert_eq!(recorder.take(), calls);
    }

    #[test]
    fn large_page_is_split_again_until_nothing_of_its_block_is_shared() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        let large = |range, to| large(&memory, &recorder, range, to);
        let block = pages(512, 512);
        large(block, Visibility::Shared);
        for part in [pages(512, 1), pages(513, 1), pages(514, 510)] {
            let split = Call::Split(block, part);
            assert_eq!(large(part, Visibility::Private), [split]);
        }
        assert_eq!(memory.large.load(Ordering::Relaxed), 0);
        assert_eq!(large(block, Visibility::Private), []);
    }

    #[test]
    fn large_pages_are_no_more_than_their_bound() {
        let recorder = Recorder::default();
        let blocks = u64::try_from(LARGE_MAX).unwrap();
        let ram = GpaRange::constant(0, (blocks + 1) * LARGE_PAGE_SIZE);
        let memory = TdMemory::new(vec![ram], &recorder);
        let large = |range, to| large(&memory, &recorder, range, to);
        assert_eq!(large(ram, Visibility::Shared).len(), LARGE_MAX);
        let last = pages(blocks * 512, 512);
        // A block that keeps a part of its page counts on.
        large(pages(1, 511), Visibility::Private);
        assert_eq!(large(last, Visibility::Shared), []);
        large(pages(0, 1), Visibility::Private);
        assert_eq!(large(last, Visibility::Shared), [Call::AllowLarge(last)]);
    }

    #[test]
    fn late_write_into_a_private_page_is_given_back_and_a_shared_page_is_left() {
        let recorder = Recorder::default();
        let memory = TdMemory::new(vec![RAM], &recorder);
        assert_eq!(
            memory.convert(pages(1, 1), Visibility::Shared),
            MapGpaStatus::Done
        );
        recorder.take();
        memory.discard_private(100..3 * PAGE_SIZE);
        let gone = [pages(0, 1), pages(2, 1)].map(|page| Call::Discard(page, Visibility::Shared));
        assert_eq!(recorder.take(), gone);
    }
}
