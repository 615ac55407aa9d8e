//! A queue with its kick and its interrupt, and the loop that all simple workers share.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::device::{ActivateError, Activation, Interrupt, Source};
use super::linger::Linger;
use super::queue::{Queue, QueueFault};
use crate::guest_warn;

/// Batches that are served before other workers of the thread, and its messages, get their turn. A
/// batch is at most one ring.
const BATCHES: u32 = 8;

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It goes back to the driver, with this many bytes written.
    Done(u32),
    /// The server keeps it and gives it back later.
    Later,
    /// It cannot be served now and stays available. The server is called again when it can.
    NotNow,
}

/// Serves the chains of one queue.
pub(super) trait Server {
    /// Where the next chain goes, and where it stays until [`Server::serve`] has returned `Done`.
    fn chain(&mut self) -> &mut Chain;
    /// Serves that chain.
    fn serve(&mut self) -> Result<Served, QueueFault>;
    /// All chains of a batch were served; before they are shown to the driver.
    fn end_of_batch(&mut self, _queue: &mut Queue) -> Result<(), QueueFault> {
        Ok(())
    }
}

/// One queue of a worker.
#[derive(Debug)]
pub(super) struct ServedQueue {
    pub queue: Queue,
    index: u16,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn Interrupt>,
    linger: Linger,
}

impl ServedQueue {
    /// Takes queue `index` out of `with`.
    pub fn take_from(with: &mut Activation, index: u16) -> Result<Self, ActivateError> {
        let resources = with.take_queue(index)?;
        let queue = Queue::new(&with.memory, &resources, with.features)
            .map_err(|source| ActivateError::Queue { index, source })?;
        Ok(ServedQueue {
            queue,
            index,
            kick: resources.kick,
            interrupt: Arc::clone(&with.interrupt),
            linger: Linger::default(),
        })
    }

    /// What is readable after a kick.
    pub fn kick_source(&self) -> &dyn AsRawFd {
        &*self.kick
    }

    /// The driver kicked: forgets that, so that the next kick is seen.
    pub fn take_kick(&self) {
        // An error means that there was none.
        let _ = self.kick.read();
    }

    /// Has the event loop call again, after others had their turn, as if the driver had kicked.
    pub fn come_back(&self) {
        // An error means that the counter is full: the kick is there already.
        let _ = self.kick.write(1);
    }

    /// Shows the driver what was given back, and interrupts it if it wants that.
    pub fn publish(&mut self) {
        if self.queue.publish()
            && let Err(error) = self.interrupt.trigger(Source::Queue(self.index))
        {
            guest_warn!("interrupt of queue {} is lost: {error}", self.index);
        }
    }

    /// Serves what is available, in bounded batches. Returns when the queue is empty and kicks are on,
    /// or the server can take no more now.
    pub fn serve(&mut self, server: &mut impl Server) -> Result<(), QueueFault> {
        for _ in 0..BATCHES {
            self.queue.disable_kicks();
            self.queue.begin_batch()?;
            let mut stuck = false;
            while !stuck && self.queue.take(server.chain())? {
                match server.serve()? {
                    Served::Done(written) => {
                        let chain = server.chain();
                        chain.check_after_io()?;
                        self.queue.add_used(chain.head(), written);
                    }
                    Served::Later => {}
                    Served::NotNow => {
                        // A part of it may have been done, also where the worker is only being stopped.
                        server.chain().check_after_io()?;
                        self.queue.untake();
                        stuck = true;
                    }
                }
            }
            server.end_of_batch(&mut self.queue)?;
            self.publish();
            let queue = &self.queue;
            let rests =
                stuck || !(self.linger.wait(|| queue.has_more()) || self.queue.enable_kicks());
            if rests {
                // The ring may have turned private before the last of this was written to it.
                return self.queue.check_generation();
            }
        }
        // More is there, and no kick may come for it: come back by way of the event loop.
        self.come_back();
        Ok(())
    }
}
