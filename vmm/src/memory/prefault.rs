//! Having all memory provided before the guest starts (`--memory prefault=on`).
//!
//! The memory is cut into pieces of 2 MiB, which several threads take one after another. A piece is done by
//! a [`Worker`]: in a TD by `KVM_PRE_FAULT_MEMORY`, which puts private pages into the guest's map, where the
//! guest has still to accept them; in an ordinary VM by MADV_POPULATE_WRITE. The caller is told of every
//! piece and can call it off.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tdvmm_arch::addr::LARGE_PAGE_SIZE;
use tdvmm_arch::{Gpa, GpaRange};

/// How often the caller is asked at least whether to go on.
const ASK: Duration = Duration::from_millis(100);

/// Provides memory on one thread.
pub trait Worker: Send {
    /// Provides `piece`.
    ///
    /// # Errors
    ///
    /// The host's.
    fn provide(&mut self, piece: GpaRange) -> io::Result<()>;
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All memory is there.
    Done,
    /// The caller called it off.
    CalledOff,
}

/// Has `workers` provide all of `ranges`, each on a thread of its own, which calls `prepare` first. `go_on`
/// is called with the bytes that are done and the bytes in all, after each piece and at least ten times a
/// second; what it returns is whether to go on.
///
/// # Errors
///
/// The first error of a worker or of `prepare`; the others stop then.
pub fn provide<W: Worker>(
    workers: Vec<W>,
    ranges: &[GpaRange],
    prepare: impl Fn() -> io::Result<()> + Sync,
    mut go_on: impl FnMut(u64, u64) -> bool,
) -> io::Result<Outcome> {
    let pieces: Vec<GpaRange> = ranges.iter().copied().flat_map(pieces).collect();
    let total = ranges.iter().map(|range| range.len()).sum();
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        for mut worker in workers {
            let (tell, pieces, next, stop) = (tell.clone(), &pieces, &next, &stop);
            let prepare = &prepare;
            let work = move || {
                // The receiver lives as long as the scope.
                if let Err(error) = prepare() {
                    let _ = tell.send(Err(error));
                    return;
                }
                while !stop.load(Ordering::Relaxed) {
                    let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let _ = tell.send(worker.provide(*piece).map(|()| piece.len()));
                }
            };
            let name = "tdvmm-prefault".to_owned();
            if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, work) {
                stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        drop(tell);
        let mut done = 0;
        loop {
            match told.recv_timeout(ASK) {
                Ok(Ok(bytes)) => done += bytes,
                Ok(Err(error)) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(Outcome::Done),
            }
            if !go_on(done, total) {
                stop.store(true, Ordering::Relaxed);
                return Ok(Outcome::CalledOff);
            }
        }
    })
}

/// The pieces of `range`, none of which crosses a 2 MiB boundary.
fn pieces(range: GpaRange) -> impl Iterator<Item = GpaRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        if at >= range.end() {
            return None;
        }
        let boundary = Gpa((at.0 | (LARGE_PAGE_SIZE - 1)).saturating_add(1));
        let piece = GpaRange::new(at, boundary.min(range.end()))?;
        at = piece.end();
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    const RANGES: [GpaRange; 2] = [
        GpaRange::constant(0, 9 << 20),
        GpaRange::constant((1 << 32) + 0x1000, 3 << 20),
    ];

    struct Recorder<'a> {
        seen: &'a Mutex<BTreeMap<u64, u64>>,
        fails_at: Option<u64>,
    }

    impl Worker for Recorder<'_> {
        fn provide(&mut self, piece: GpaRange) -> io::Result<()> {
            if self.fails_at == Some(piece.start().0) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            let before = self
                .seen
                .lock()
                .unwrap()
                .insert(piece.start().0, piece.end().0);
            assert_eq!(before, None, "{piece} is provided once");
            Ok(())
        }
    }

    fn recorders(seen: &Mutex<BTreeMap<u64, u64>>, fails_at: Option<u64>) -> Vec<Recorder<'_>> {
        (0..3).map(|_| Recorder { seen, fails_at }).collect()
    }

    #[test]
    fn every_byte_is_provided_once_and_told() {
        let seen = Mutex::default();
        let mut last = 0;
        let outcome = provide(
            recorders(&seen, None),
            &RANGES,
            || Ok(()),
            |done, total| {
                assert_eq!(total, 12 << 20);
                last = done;
                true
            },
        );
        assert_eq!(outcome.unwrap(), Outcome::Done);
        assert_eq!(last, 12 << 20);
        let seen = seen.into_inner().unwrap();
        let bytes: u64 = seen.iter().map(|(start, end)| end - start).sum();
        assert_eq!(bytes, 12 << 20);
        assert!(
            seen.iter()
                .all(|(start, end)| start >> 21 == (end - 1) >> 21)
        );
    }

    #[test]
    fn error_of_a_worker_ends_it() {
        let seen = Mutex::default();
        let outcome = provide(
            recorders(&seen, Some(4 << 20)),
            &RANGES,
            || Ok(()),
            |_, _| true,
        );
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn thread_that_cannot_be_prepared_ends_it_before_anything_is_provided() {
        let seen = Mutex::default();
        let prepare = || Err(io::Error::from_raw_os_error(libc::EPERM));
        let outcome = provide(recorders(&seen, None), &RANGES, prepare, |_, _| true);
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(seen.into_inner().unwrap().is_empty());
    }

    #[test]
    fn it_can_be_called_off() {
        let seen = Mutex::default();
        let outcome = provide(recorders(&seen, None), &RANGES, || Ok(()), |_, _| false);
        assert_eq!(outcome.unwrap(), Outcome::CalledOff);
    }
}
