//! A thread that waits for the event sources of workers and calls them.
//!
//! Workers are moved to it and live there; others reach it by message only. Adding and removing wait
//! for the thread's answer, so when [`IoHandle::remove`] has returned, the worker is dropped and touches
//! nothing any more. The thread never takes a lock of a device, so both may be called under one.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::device::{StopFlag, Token, Worker};
use crate::virtio::queue::QueueFault;

/// Told on the I/O thread that a worker has given up. Must not block.
pub trait FaultSink: fmt::Debug + Send + Sync {
    /// The driver broke the rules; the worker is not called any more, and is dropped when this returns.
    fn fault(&self, fault: QueueFault);
}

/// Names a worker on the thread that it was added to.
#[derive(Clone, Debug)]
pub struct WorkerId {
    number: u32,
    stop: StopFlag,
}

impl WorkerId {
    /// Has the worker cut short what it does, as it is about to be removed. Said to all workers of a device before the
    /// first one is removed, since on a thread each waits for what another does.
    pub fn stop(&self) {
        self.stop.raise();
    }
}

/// Events that are taken from the kernel at once.
const EVENTS: usize = 32;
/// The thread's own event source. A worker's has its number in the upper half, which a driver that resets often enough
/// brings to any value, and a token in the lower, which is small.
const WAKE: u64 = u64::MAX;

enum Command {
    Add {
        id: u32,
        worker: Box<dyn Worker>,
        faults: Arc<dyn FaultSink>,
        done: SyncSender<io::Result<()>>,
    },
    Remove {
        id: u32,
        done: SyncSender<()>,
    },
    Stop,
}

/// Owner of the thread; stops and joins it on drop.
#[derive(Debug)]
pub struct IoThread {
    handle: IoHandle,
    thread: Option<JoinHandle<()>>,
}

/// A way to the thread.
#[derive(Clone, Debug)]
pub struct IoHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    next_id: Arc<AtomicU32>,
    /// Of no worker; makes those of the workers.
    stop: StopFlag,
}

impl IoThread {
    /// Starts a thread of this name (15 bytes at most). It calls `first` before anything else: the
    /// place for a seccomp filter.
    ///
    /// # Errors
    ///
    /// If the host refuses a descriptor or the thread.
    pub fn spawn(name: &str, first: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let epoll = Epoll::new()?;
        add_source(&epoll, wake.as_raw_fd(), EventSet::IN, WAKE)?;
        let (commands, receiver) = channel();
        let mut running = Running {
            epoll,
            wake: Arc::clone(&wake),
            commands: receiver,
            workers: Vec::new(),
        };
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            first();
            running.run();
        })?;
        Ok(IoThread {
            handle: IoHandle {
                commands,
                wake,
                next_id: Arc::new(AtomicU32::new(1)),
                stop: StopFlag::default(),
            },
            thread: Some(thread),
        })
    }

    /// A way to the thread for those who add workers.
    #[must_use]
    pub fn handle(&self) -> IoHandle {
        self.handle.clone()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.handle.stop.raise_all();
        let stopped = self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && stopped.is_ok()
        {
            // An error is a panic there, which has ended the process but in tests.
            let _ = thread.join();
        }
    }
}

impl IoHandle {
    fn send(&self, command: Command) -> io::Result<()> {
        let gone = |_| io::Error::other("the I/O thread has ended");
        self.commands.send(command).map_err(gone)?;
        self.wake.write(1)
    }

    /// Moves `worker` to the thread, which waits for its event sources from now on.
    ///
    /// # Errors
    ///
    /// If an event source cannot be waited for.
    pub fn add(
        &self,
        mut worker: Box<dyn Worker>,
        faults: Arc<dyn FaultSink>,
    ) -> io::Result<WorkerId> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let stop = self.stop.another();
        worker.set_stop(stop.clone());
        let (done, answer) = sync_channel(1);
        self.send(Command::Add {
            id,
            worker,
            faults,
            done,
        })?;
        answer
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the I/O thread has ended")))?;
        Ok(WorkerId { number: id, stop })
    }

    /// Takes a worker off the thread and drops it. Returns when that is done, which is soon: what the worker
    /// does is cut short.
    pub fn remove(&self, id: &WorkerId) {
        id.stop();
        let (done, answer) = sync_channel(1);
        let id = id.number;
        if self.send(Command::Remove { id, done }).is_ok() {
            // An error means that the thread has ended, and its workers with it.
            let _ = answer.recv();
        }
    }
}

struct Running {
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    workers: Vec<Entry>,
}

struct Entry {
    id: u32,
    worker: Box<dyn Worker>,
    faults: Arc<dyn FaultSink>,
    /// Those that the thread waits for.
    sources: Vec<RawFd>,
}

impl Running {
    fn run(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            // EINTR is the only error that a valid epoll descriptor gives.
            let count = self.epoll.wait(-1, &mut events).unwrap_or(0);
            for event in events.iter().take(count) {
                if event.data() == WAKE {
                    if self.obey().is_break() {
                        return;
                    }
                } else {
                    self.call(event.data());
                }
            }
        }
    }

    fn obey(&mut self) -> ControlFlow<()> {
        // First the counter, then the messages: one that is sent in between wakes again.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add {
                    id,
                    worker,
                    faults,
                    done,
                } => {
                    let _ = done.send(self.add(id, worker, faults));
                }
                Command::Remove { id, done } => {
                    if let Some(at) = self.workers.iter().position(|entry| entry.id == id) {
                        let mut entry = self.workers.swap_remove(at);
                        self.unsubscribe(&mut entry);
                    }
                    let _ = done.send(());
                }
                Command::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    fn add(
        &mut self,
        id: u32,
        worker: Box<dyn Worker>,
        faults: Arc<dyn FaultSink>,
    ) -> io::Result<()> {
        let sources: Vec<_> = worker
            .event_sources()
            .into_iter()
            .map(|(token, fd)| (token, fd.as_raw_fd(), worker.counts_writes(token)))
            .collect();
        let mut entry = Entry {
            id,
            worker,
            faults,
            sources: Vec::with_capacity(sources.len()),
        };
        for (Token(token), fd, counts_writes) in sources {
            let events = match counts_writes {
                // An eventfd wakes at each write, whatever its counter was (fs/eventfd.c, eventfd_write).
                true => EventSet::IN | EventSet::EDGE_TRIGGERED,
                false => EventSet::IN,
            };
            let data = u64::from(id) << 32 | u64::from(token);
            let added = add_source(&self.epoll, fd, events, data);
            if let Err(error) = added {
                self.unsubscribe(&mut entry);
                return Err(error);
            }
            entry.sources.push(fd);
        }
        self.workers.push(entry);
        Ok(())
    }

    /// An event of a worker that was removed since it was taken from the kernel finds nobody.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is the token"
    )]
    fn call(&mut self, data: u64) {
        let (id, token) = (data >> 32, Token(data as u32));
        let found = self
            .workers
            .iter()
            .position(|entry| u64::from(entry.id) == id);
        let Some(at) = found else { return };
        let Some(entry) = self.workers.get_mut(at) else {
            return;
        };
        if let Err(fault) = entry.worker.on_event(token) {
            let mut entry = self.workers.swap_remove(at);
            self.unsubscribe(&mut entry);
            // The driver is told first, as a slow disk may hold up what follows.
            entry.faults.fault(fault);
            // The worker goes now, not with the reset that may never come: its requests in flight must not bring
            // back memory that became private and that nobody would give up again.
        }
    }

    fn unsubscribe(&self, entry: &mut Entry) {
        for fd in entry.sources.drain(..) {
            remove_source(&self.epoll, fd);
        }
    }
}

fn add_source(epoll: &Epoll, fd: RawFd, events: EventSet, data: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
}

/// Cannot fail for a descriptor that was added and is open.
fn remove_source(epoll: &Epoll, fd: RawFd) {
    let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Faults at its first event.
    struct Faulty {
        kick: Arc<EventFd>,
    }

    impl Worker for Faulty {
        fn event_sources(&self) -> Vec<(Token, &dyn AsRawFd)> {
            vec![(Token(0), &*self.kick)]
        }
        fn on_event(&mut self, _: Token) -> Result<(), QueueFault> {
            Err(QueueFault::RingPrivate)
        }
    }

    #[derive(Debug, Default)]
    struct Count(AtomicU32);

    impl FaultSink for Count {
        fn fault(&self, _: QueueFault) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn worker_that_faults_is_dropped_without_being_removed_and_may_be_removed_then() {
        let thread = IoThread::spawn("test", || ()).unwrap();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let count = Arc::new(Count::default());
        let worker = Faulty { kick: kick.clone() };
        let id = thread
            .handle()
            .add(Box::new(worker), count.clone())
            .unwrap();
        assert_eq!(Arc::strong_count(&kick), 2);
        kick.write(1).unwrap();
        let begin = Instant::now();
        while Arc::strong_count(&kick) > 1 {
            assert!(begin.elapsed() < Duration::from_secs(10), "still there");
            std::thread::yield_now();
        }
        thread.handle().remove(&id);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
