//! The worker against a backend that fails, and the structures that the driver reads.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::slot::{Slot, Wait, Work};
use super::*;
use crate::dma::{DmaView, PageState};
use crate::io_thread::{FaultSink, IoThread};
use crate::virtio::RingAddresses;
use crate::virtio::device::{Interrupt, Source, StopFlag, Token};
use crate::virtio::queue::{QueueFault, QueueResources};

mod flying;

/// Fails the calls that it is told to, and counts all.
#[derive(Debug, Default)]
struct Failing {
    /// Flushes that fail from now on.
    flushes: AtomicU32,
    flushed: AtomicU32,
    /// What transfers fail with, if not 0.
    transfer_errno: i32,
    /// Transfers that are interrupted before one goes through.
    interrupted: AtomicU32,
    /// Bytes that one transfer does at most.
    at_once: usize,
    allocate_errno: i32,
    zeroed: AtomicU32,
    zeroed_bytes: AtomicU64,
    /// What io_uring gets.
    file: Option<std::fs::File>,
    /// What the first transfer does to the guest's memory.
    turning: Option<Arc<Turning>>,
    /// What each transfer takes, and how many there were.
    slow: Duration,
    transfers: AtomicU32,
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// Counts one down; whether there was one.
fn spend(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}

impl Backend for Failing {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: 1 << 26,
            logical_block: 512,
            physical_block: 4096,
            discard_block: 1 << 16,
        }
    }
    fn transfer(&self, slot: &Slot, _: Wait) -> io::Result<usize> {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.slow);
        if let Some(turning) = &self.turning {
            turning.turn();
        }
        if self.transfer_errno != 0 {
            return Err(errno(self.transfer_errno));
        }
        if spend(&self.interrupted) {
            return Err(errno(libc::EINTR));
        }
        if slot.work == Work::Read {
            slot.chain().write_at(0, &[7; 512]);
        }
        let left = usize::try_from(slot.left).unwrap();
        Ok(left.min(self.at_once))
    }
    fn flush(&self) -> io::Result<()> {
        self.flushed.fetch_add(1, Ordering::Relaxed);
        match spend(&self.flushes) {
            true => Err(errno(libc::EIO)),
            false => Ok(()),
        }
    }
    fn allocate(&self, _: i32, _: u64, _: u64) -> io::Result<()> {
        match self.allocate_errno {
            0 => Ok(()),
            code => Err(errno(code)),
        }
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(errno(libc::EOPNOTSUPP))
    }
    fn zero(&self, _: u64, len: u64) -> io::Result<()> {
        self.zeroed.fetch_add(1, Ordering::Relaxed);
        self.zeroed_bytes.fetch_add(len, Ordering::Relaxed);
        if let Some(turning) = &self.turning {
            turning.turn();
        }
        Ok(())
    }
    fn file(&self) -> Option<&std::fs::File> {
        self.file.as_ref()
    }
    fn is_direct(&self) -> bool {
        false
    }
    fn may_read_stale(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Deaf;

impl Interrupt for Deaf {
    fn trigger(&self, _: Source) -> io::Result<()> {
        Ok(())
    }
}

const RING: u64 = 0x1000;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x8000;

struct Bench {
    ram: Arc<GuestMemoryMmap>,
    worker: Box<dyn Worker>,
    backend: Arc<Failing>,
    kick: Arc<EventFd>,
    asked: u16,
}

/// A part of memory that turns private, and has the worker stopped, if that is asked for.
#[derive(Debug)]
struct Turning {
    part: Range<u64>,
    stop: Option<StopFlag>,
    turned: AtomicU32,
    /// Address and length of each.
    discarded: Mutex<Vec<(u64, u64)>>,
}

impl Turning {
    fn new(part: Range<u64>, stop: Option<StopFlag>) -> Arc<Self> {
        Arc::new(Turning {
            part,
            stop,
            turned: AtomicU32::new(0),
            discarded: Mutex::default(),
        })
    }

    fn turn(&self) {
        self.turned.store(1, Ordering::Release);
        self.stop.iter().for_each(StopFlag::raise);
    }

    fn discarded(&self) -> Vec<(u64, u64)> {
        self.discarded.lock().unwrap().clone()
    }
}

impl PageState for Turning {
    fn is_shared(&self, range: Range<u64>) -> bool {
        self.generation() == 0 || range.end <= self.part.start || range.start >= self.part.end
    }
    fn generation(&self) -> u64 {
        self.turned.load(Ordering::Acquire).into()
    }
    fn discard_private(&self, range: Range<u64>) {
        let part = (range.start, range.end - range.start);
        self.discarded.lock().unwrap().push(part);
    }
}

impl Bench {
    fn new(backend: Failing, features: u64) -> Self {
        Self::with(backend, features, &BlockOptions::default())
    }

    fn with(backend: Failing, features: u64, options: &BlockOptions) -> Self {
        let backend = Arc::new(backend);
        let mut block = Block::over(backend.clone(), false, options);
        Self::drive(&mut block, backend, features)
    }

    /// A driver of `block`, which is over `backend`, with memory of its own.
    fn drive(block: &mut Block, backend: Arc<Failing>, features: u64) -> Self {
        let ram = small_ram();
        let view = match &backend.turning {
            Some(turning) => DmaView::new(ram.clone(), turning.clone()),
            None => DmaView::all_shared(ram.clone()),
        };
        let (worker, kick) = Self::activate(block, view, features);
        Bench {
            ram,
            worker,
            backend,
            kick,
            asked: 0,
        }
    }

    fn activate(
        block: &mut Block,
        memory: DmaView,
        features: u64,
    ) -> (Box<dyn Worker>, Arc<EventFd>) {
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queue = QueueResources {
            index: 0,
            size: 16,
            addresses: RingAddresses {
                desc: RING,
                avail: RING + 0x100,
                used: RING + 0x200,
            },
            kick: kick.clone(),
        };
        let with = Activation {
            memory,
            interrupt: Arc::new(Deaf),
            features,
            queues: vec![queue],
        };
        (block.activate(with).unwrap().remove(0), kick)
    }

    /// Asks for one request of (length, writable) data and gives its status.
    fn ask(&mut self, kind: u32, sector: u64, data: Option<(u32, bool)>) -> u8 {
        self.offer(kind, sector, data);
        self.worker.on_event(Token(0)).unwrap();
        assert_eq!(self.used(), self.asked, "answered at once");
        self.ram.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// Waits for an event of the worker.
    fn wait_for(&self, token: Token) {
        let sources = self.worker.event_sources();
        let (_, source) = sources.iter().find(|(name, _)| *name == token).unwrap();
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, source.as_raw_fd(), event)
            .unwrap();
        let ready = epoll.wait(10_000, &mut [EpollEvent::default()]).unwrap();
        assert_eq!(ready, 1, "no event came");
    }

    fn used(&self) -> u16 {
        self.ram.read_obj(GuestAddress(RING + 0x202)).unwrap()
    }

    /// Makes a request available, in the place of the one before.
    fn offer(&mut self, kind: u32, sector: u64, data: Option<(u32, bool)>) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.write_slice(&header, GuestAddress(HEADER)).unwrap();
        self.ram.write_slice(&[0xee], GuestAddress(STATUS)).unwrap();
        let mut parts = vec![(HEADER, 16, false)];
        parts.extend(data.map(|(len, writable)| (DATA, len, writable)));
        parts.push((STATUS, 1, true));
        for (i, (addr, len, writable)) in (0u16..).zip(&parts) {
            let at = RING + 16 * u64::from(i);
            let more = u16::from(usize::from(i) + 1 < parts.len());
            let flags = more | u16::from(*writable) << 1;
            self.ram.write_obj(*addr, GuestAddress(at)).unwrap();
            self.ram.write_obj(*len, GuestAddress(at + 8)).unwrap();
            self.ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
            self.ram.write_obj(i + 1, GuestAddress(at + 14)).unwrap();
        }
        self.asked += 1;
        self.ram
            .write_obj(self.asked, GuestAddress(RING + 0x102))
            .unwrap();
    }
}

fn good() -> Failing {
    Failing {
        at_once: usize::MAX,
        ..Failing::default()
    }
}

#[test]
fn flush_after_a_failed_one_never_claims_success_not_even_after_reset() {
    let backend = Arc::new(good());
    backend.flushes.store(1, Ordering::Relaxed);
    let mut block = Block::over(backend.clone(), false, &BlockOptions::default());
    for _ in 0..2 {
        let mut bench = Bench::drive(&mut block, backend.clone(), F_FLUSH);
        assert_eq!(bench.ask(4, 0, None), 1);
        assert_eq!(bench.ask(4, 0, None), 1);
        assert_eq!(bench.ask(0, 0, Some((512, true))), 0, "reads go on");
    }
}

#[test]
fn host_error_is_ioerr_and_the_worker_lives() {
    let mut backend = good();
    backend.transfer_errno = libc::EIO;
    let mut bench = Bench::new(backend, F_FLUSH);
    for kind in [0, 1] {
        assert_eq!(bench.ask(kind, 0, Some((512, kind == 0))), 1);
    }
    assert_eq!(bench.ask(4, 0, None), 0);
}

#[test]
fn interrupted_and_short_transfers_go_on_to_the_end() {
    let mut backend = good();
    backend.at_once = 100;
    backend.interrupted.store(3, Ordering::Relaxed);
    let mut bench = Bench::new(backend, F_FLUSH);
    assert_eq!(bench.ask(0, 0, Some((4096, true))), 0);
}

#[test]
fn transfer_that_never_gets_anywhere_ends() {
    let backend = good();
    backend.interrupted.store(u32::MAX, Ordering::Relaxed);
    let mut bench = Bench::new(backend, F_FLUSH);
    assert_eq!(bench.ask(0, 0, Some((512, true))), 1);
    let mut backend = good();
    backend.at_once = 0;
    let mut bench = Bench::new(backend, F_FLUSH);
    assert_eq!(bench.ask(1, 0, Some((512, false))), 1);
}

/// Writes a discard or write-zeroes segment of 8 sectors at sector 8.
fn segment(bench: &Bench, flags: u32) {
    segment_of(bench, 8, flags);
}

fn segment_of(bench: &Bench, sectors: u32, flags: u32) {
    let at = |offset| GuestAddress(DATA + offset);
    bench.ram.write_obj(8u64, at(0)).unwrap();
    bench.ram.write_obj(sectors, at(8)).unwrap();
    bench.ram.write_obj(flags, at(12)).unwrap();
}

#[test]
fn zeros_that_the_host_cannot_make_are_written_and_discards_forgotten() {
    let mut backend = good();
    backend.allocate_errno = libc::EOPNOTSUPP;
    let mut bench = Bench::new(backend, F_FLUSH);
    segment(&bench, 0);
    assert_eq!(bench.ask(11, 0, Some((16, false))), 0);
    assert_eq!(bench.backend.zeroed.load(Ordering::Relaxed), 0);
    assert_eq!(bench.ask(13, 0, Some((16, false))), 0);
    assert_eq!(bench.backend.zeroed.load(Ordering::Relaxed), 1);
    let mut backend = good();
    backend.allocate_errno = libc::ENOSPC;
    let mut bench = Bench::new(backend, F_FLUSH);
    segment(&bench, 0);
    assert_eq!(bench.ask(13, 0, Some((16, false))), 1);
}

#[test]
fn zeros_and_discards_count_against_the_limit_by_what_they_name() {
    // What is more than the bucket holds leaves a debt.
    for (kind, sectors, answered) in [(0, 0, 2), (13, 16, 1), (11, 16 * 16, 1), (11, 8 * 15, 2)] {
        let options = BlockOptions {
            bandwidth: Some(Rate {
                size: 4096,
                refill: Duration::from_secs(3600),
            }),
            ..BlockOptions::default()
        };
        let mut bench = Bench::with(good(), F_FLUSH, &options);
        let data = match kind {
            0 => (512, true),
            _ => (16, false),
        };
        segment_of(&bench, sectors, 0);
        assert_eq!(bench.ask(kind, 0, Some(data)), 0);
        bench.offer(0, 0, Some((512, true)));
        bench.worker.on_event(Token(0)).unwrap();
        assert_eq!(bench.used(), answered, "{kind} {sectors}");
    }
}

#[test]
fn zeros_last_at_once_for_a_driver_that_cannot_flush() {
    for (features, flushes) in [(F_FLUSH, 0), (0, 1)] {
        let mut bench = Bench::new(good(), features);
        segment(&bench, 0);
        assert_eq!(bench.ask(13, 0, Some((16, false))), 0);
        assert_eq!(bench.backend.flushed.load(Ordering::Relaxed), flushes);
    }
}

#[test]
fn write_that_could_not_be_made_to_last_fails_and_so_do_all_after_it() {
    let mut backend = good();
    backend.at_once = 1024;
    backend.flushes.store(1, Ordering::Relaxed);
    let mut bench = Bench::new(backend, 0);
    assert_eq!(bench.ask(1, 0, Some((4096, false))), 1);
    assert_eq!(bench.ask(1, 0, Some((4096, false))), 1);
    let flushed = bench.backend.flushed.load(Ordering::Relaxed);
    assert_eq!(flushed, 1, "once for a request, and not for a refused one");
    assert_eq!(bench.ask(0, 0, Some((512, true))), 0, "reads go on");
}

#[test]
fn write_of_several_pieces_is_flushed_once_and_only_for_a_driver_that_cannot() {
    for (features, flushes) in [(F_FLUSH, 0), (0, 1)] {
        let mut backend = good();
        backend.at_once = 1024;
        let mut bench = Bench::new(backend, features);
        assert_eq!(bench.ask(1, 0, Some((4096, false))), 0);
        assert_eq!(bench.backend.flushed.load(Ordering::Relaxed), flushes);
    }
}

#[derive(Debug)]
struct NoFault;

impl FaultSink for NoFault {
    fn fault(&self, fault: QueueFault) {
        panic!("{fault}");
    }
}

#[test]
fn worker_amid_a_long_request_is_removed_soon_and_leaves_it_unanswered() {
    // 4096 transfers of 20 ms: more than a minute.
    const SOON: Duration = Duration::from_secs(10);
    for by_drop in [false, true] {
        let mut backend = good();
        backend.at_once = 1;
        backend.slow = Duration::from_millis(20);
        let mut bench = Bench::new(backend, F_FLUSH);
        bench.offer(0, 0, Some((4096, true)));
        let thread = IoThread::spawn("test", || ()).unwrap();
        let id = thread
            .handle()
            .add(bench.worker, Arc::new(NoFault))
            .unwrap();
        bench.kick.write(1).unwrap();
        while bench.backend.transfers.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
        let begin = Instant::now();
        match by_drop {
            true => drop(thread),
            false => thread.handle().remove(&id),
        }
        assert!(begin.elapsed() < SOON);
        let status: u8 = bench.ram.read_obj(GuestAddress(STATUS)).unwrap();
        let used: u16 = bench.ram.read_obj(GuestAddress(RING + 0x202)).unwrap();
        assert_eq!((status, used), (0xee, 0));
    }
}

#[test]
fn discard_of_a_worker_that_is_to_stop_is_left_where_it_is() {
    let mut bench = Bench::new(good(), F_FLUSH);
    let stop = StopFlag::default();
    bench.worker.set_stop(stop.clone());
    segment(&bench, 0);
    assert_eq!(bench.ask(11, 0, Some((16, false))), 0);
    stop.raise();
    bench.offer(11, 0, Some((16, false)));
    bench.worker.on_event(Token(0)).unwrap();
    assert_eq!(bench.used(), 1);
}

/// A read of 512 bytes during which memory turns private; how the event ends, and what was given up.
fn read_amid_conversion(turning: &Arc<Turning>) -> (Result<(), QueueFault>, Vec<(u64, u64)>) {
    let mut backend = good();
    backend.at_once = 256;
    backend.turning = Some(turning.clone());
    let mut bench = Bench::new(backend, F_FLUSH);
    bench
        .worker
        .set_stop(turning.stop.clone().unwrap_or_default());
    bench.offer(0, 0, Some((512, true)));
    let result = bench.worker.on_event(Token(0));
    (result, turning.discarded())
}

#[test]
fn data_that_turn_private_during_a_read_are_given_up_answered_or_not() {
    const LEN: u64 = 512;
    let fault = QueueFault::Memory {
        addr: DATA,
        len: LEN,
    };
    for stop in [None, Some(StopFlag::default())] {
        let turning = Turning::new(DATA..DATA + 0x1000, stop);
        let (result, discarded) = read_amid_conversion(&turning);
        assert_eq!((result, discarded), (Err(fault), vec![(DATA, LEN)]));
    }
}

#[test]
fn ring_that_turns_private_during_the_last_request_is_given_up_without_another_kick() {
    let turning = Turning::new(RING..RING + 0x1000, None);
    let (result, discarded) = read_amid_conversion(&turning);
    assert_eq!(result, Err(QueueFault::RingPrivate));
    assert!(discarded.iter().any(|(start, _)| *start == RING + 0x200));
}

fn small_ram() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
}

#[test]
fn more_work_than_the_budget_is_done_in_several_calls() {
    let mut bench = Bench::new(good(), F_FLUSH);
    for _ in 0..12 {
        bench.offer(4, 0, None);
    }
    // A flush costs an eighth of it.
    for (used, again) in [(8, true), (12, false)] {
        bench.worker.on_event(Token(0)).unwrap();
        assert_eq!((bench.used(), bench.kick.read().is_ok()), (used, again));
    }
    assert_eq!(bench.backend.flushed.load(Ordering::Relaxed), 12);
}

#[test]
fn configuration_tells_the_geometry() {
    let options = BlockOptions {
        num_queues: 4,
        queue_size: 100,
        ..BlockOptions::default()
    };
    let block = Block::over(Arc::new(good()), false, &options);
    assert_eq!(block.queue_sizes(), [128; 4]);
    let read = |offset, len: usize| {
        let mut data = vec![0xff; len];
        block.read_config(offset, &mut data);
        data
    };
    assert_eq!(read(0, 8), 0x2_0000_u64.to_le_bytes());
    assert_eq!(read(12, 4), 126u32.to_le_bytes());
    assert_eq!(read(20, 4), 512u32.to_le_bytes());
    assert_eq!(read(24, 4), [3, 0, 8, 0]);
    assert_eq!(read(34, 2), [4, 0]);
    assert_eq!(read(44, 4), 128u32.to_le_bytes());
    assert_eq!(read(58, 8), [0; 8]);
    assert_eq!(read(u64::MAX, 8), [0; 8]);
    assert_ne!(block.features() & F_MQ, 0);
}

#[test]
fn read_only_disk_offers_no_discard() {
    let block = Block::over(Arc::new(good()), true, &BlockOptions::default());
    assert_eq!(block.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
}
