//! Which calls a conversion makes, in which order, and what it leaves to devices.

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

#[test]
fn late_write_into_many_private_pages_is_given_back_by_few_calls() {
    let recorder = Recorder::default();
    let memory = TdMemory::new(vec![RAM], &recorder);
    memory.discard_private(0..RAM.end().0);
    let gone =
        [0, 512, 1024, 1536].map(|first| Call::Discard(pages(first, 512), Visibility::Shared));
    assert_eq!(recorder.take(), gone);
    // What is no memory is left alone, whatever addresses a driver makes up.
    memory.discard_private(RAM.end().0..u64::MAX);
    memory.discard_private(u64::MAX - 1..u64::MAX);
    assert_eq!(recorder.take(), []);
}
