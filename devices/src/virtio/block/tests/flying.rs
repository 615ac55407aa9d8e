//! Requests that io_uring has: those that go on, and those of a worker that is to stop.

use super::*;

/// A disk on a file of its own, so that io_uring serves it, and what it has done. A driver that cannot flush: its
/// writes have to last, so io_uring gets them.
fn flying(view: DmaView, ram: &Arc<GuestMemoryMmap>) -> (Bench, BlockCounters) {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = DiskOptions {
        path: image.path().to_owned(),
        read_only: false,
        direct: false,
        format: ImageFormat::Raw,
        backing_files: false,
    };
    let mut block = Block::open(&disk, &BlockOptions::default()).unwrap();
    let counters = block.counters();
    let (worker, kick) = Bench::activate(&mut block, view, 0);
    let bench = Bench {
        ram: ram.clone(),
        worker,
        kick,
        backend: Arc::new(good()),
        asked: 0,
    };
    (bench, counters)
}

#[test]
fn requests_that_io_uring_has_when_the_worker_is_dropped_give_up_what_turned_private() {
    let turning = Turning::new(DATA..DATA + 0x1000, None);
    let ram = small_ram();
    let view = DmaView::new(ram.clone(), turning.clone());
    let (mut bench, counters) = flying(view, &ram);
    bench.offer(1, 0, Some((4096, false)));
    bench.offer(1, 0, Some((4096, false)));
    bench.worker.on_event(Token(0)).unwrap();
    assert_eq!(counters.submitted.load(Ordering::Relaxed), 2);
    turning.turn();
    assert_eq!(turning.discarded(), []);
    drop(bench.worker);
    // Once for both.
    assert_eq!(turning.discarded(), [(DATA, 4096)]);
}

#[test]
fn completion_for_a_worker_that_is_to_stop_is_left_to_its_end() {
    for (stopped, used) in [(false, 1), (true, 0)] {
        let ram = small_ram();
        let (mut bench, _) = flying(DmaView::all_shared(ram.clone()), &ram);
        let stop = StopFlag::default();
        bench.worker.set_stop(stop.clone());
        bench.offer(1, 0, Some((4096, false)));
        bench.worker.on_event(Token(0)).unwrap();
        bench.wait_for(Token(1));
        if stopped {
            stop.raise();
        }
        bench.worker.on_event(Token(1)).unwrap();
        assert_eq!(bench.used(), used);
    }
}

#[test]
fn requests_that_io_uring_did_not_take_are_offered_again_after_a_while() {
    let ram = small_ram();
    let (mut bench, _) = flying(DmaView::all_shared(ram.clone()), &ram);
    uring::refusals::REFUSED.set(1);
    bench.offer(1, 0, Some((4096, false)));
    bench.worker.on_event(Token(0)).unwrap();
    // Nothing else will happen.
    bench.wait_for(Token(2));
    bench.worker.on_event(Token(2)).unwrap();
    bench.wait_for(Token(1));
    bench.worker.on_event(Token(1)).unwrap();
    assert_eq!(bench.used(), 1);
}

#[test]
fn flush_that_fails_while_the_worker_is_dropped_is_remembered() {
    let mut backend = good();
    // A device that knows no fsync(2).
    let null = std::fs::File::options().write(true).open("/dev/null");
    backend.file = Some(null.unwrap());
    let backend = Arc::new(backend);
    let mut block = Block::over(backend.clone(), false, &BlockOptions::default());
    for (flies, status) in [(true, 0xee), (false, 1)] {
        let mut bench = Bench::drive(&mut block, backend.clone(), F_FLUSH);
        bench.offer(4, 0, None);
        bench.worker.on_event(Token(0)).unwrap();
        assert_eq!(bench.used(), u16::from(!flies));
        if flies {
            // It has failed, and nobody has looked.
            bench.wait_for(Token(1));
        }
        drop(bench.worker);
        let answer: u8 = bench.ram.read_obj(GuestAddress(STATUS)).unwrap();
        assert_eq!(answer, status);
    }
}

#[test]
fn zeros_that_io_uring_cannot_make_are_written_in_steps_and_no_longer_than_asked_for() {
    const STEP: u64 = 4 << 20;
    // Whether the worker is stopped at the first step; what is written then, and answered.
    for (stopped, written, used) in [(false, 4 * STEP, 1), (true, STEP, 0)] {
        let mut backend = good();
        backend.allocate_errno = libc::EOPNOTSUPP;
        // A regular file that can be written and knows no fallocate(2).
        let comm = std::fs::File::options().write(true).open("/proc/self/comm");
        backend.file = Some(comm.unwrap());
        let stop = StopFlag::default();
        if stopped {
            let turning = Turning::new(0..0, Some(stop.clone()));
            backend.turning = Some(turning);
        }
        let mut bench = Bench::new(backend, F_FLUSH);
        bench.worker.set_stop(stop);
        // From sector 8 on, so that the last step is shorter.
        segment_of(&bench, 1 << 15, 0);
        bench.offer(13, 0, Some((16, false)));
        bench.worker.on_event(Token(0)).unwrap();
        bench.wait_for(Token(1));
        assert_eq!(bench.backend.zeroed_bytes.load(Ordering::Relaxed), 0);
        bench.worker.on_event(Token(1)).unwrap();
        let zeroed = bench.backend.zeroed_bytes.load(Ordering::Relaxed);
        assert_eq!(
            (zeroed.next_multiple_of(STEP), bench.used()),
            (written, used)
        );
    }
}
