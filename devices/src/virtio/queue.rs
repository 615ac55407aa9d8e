//! The device's side of a split virtqueue (virtio 1.3, 2.7).
//!
//! One worker owns a queue; nothing here takes a lock, and after the first requests nothing allocates.
//! A worker does, for each kick or completion:
//!
//! ```text
//! begin_batch   available index read once (acquire); page states compared once
//!   take        next head, walked into a chain          } for each request
//!   add_used    element written, not yet visible        }
//! publish       used index written once (release); says whether to interrupt
//! enable_kicks  event index written; says whether more came meanwhile
//! ```
//!
//! Whatever a correct driver never does is a [`QueueFault`]: the queue is of no use then until reset.

use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::ring::{Ring, RingAddresses};
use super::segment::GuestMap;
use super::sync::{Ordering, fence};
use crate::dma::DmaView;

/// Feature bits that a queue takes note of (virtio 1.3, 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// See [`F_INDIRECT_DESC`].
pub const F_EVENT_IDX: u64 = 1 << 29;

/// The largest ring that is offered, and the longest chain that is taken (the kernel's `UIO_MAXIOV`).
pub const MAX_SIZE: u16 = 1024;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// The driver broke the rules of the ring. The device asks to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueueFault {
    /// A ring's size is 0, too large or no power of two.
    #[error("queue of {0} entries")]
    Size(u16),
    /// The available index ran ahead by more than the ring holds.
    #[error("available index {index} with {next} next and {in_flight} in flight")]
    AvailIndex {
        /// What the driver wrote.
        index: u16,
        /// The next position to be taken.
        next: u16,
        /// Chains taken and not given back.
        in_flight: u16,
    },
    /// A head or a `next` field names no descriptor.
    #[error("descriptor index {0} is outside of the table")]
    Descriptor(u16),
    /// A chain is longer than its table, or than [`MAX_SIZE`], or holds 4 GiB or more.
    #[error("descriptor chain is too long")]
    TooLong,
    /// A readable descriptor follows a writable one (virtio 1.3, 2.7.4.2).
    #[error("readable descriptor behind a writable one")]
    Order,
    /// An indirect table that was not negotiated, is nested, continued, empty or no multiple of 16.
    #[error("bad indirect descriptor of {0} bytes")]
    Indirect(u32),
    /// Not memory, not in one piece where it has to be, not aligned, or private to the guest.
    #[error("{len} bytes at {addr:#x} are no usable memory")]
    Memory {
        /// First guest physical address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// The ring itself was made private while in use.
    #[error("the ring is in private memory")]
    RingPrivate,
    /// A chain does not have the parts that this device's requests consist of.
    #[error("malformed request: {0}")]
    Request(&'static str),
}

/// What a device gets of a queue at activation; moved, so that the transport keeps nothing of it.
#[derive(Debug)]
pub struct QueueResources {
    /// Number of the queue in the device.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Where the areas are.
    pub addresses: RingAddresses,
    /// Readable when the driver has put something into the queue.
    pub kick: Arc<EventFd>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    map: GuestMap,
    /// Page-state generation under which the ring's pages were last seen to be shared.
    generation: u64,
    /// Free-running positions, as the ring's indices are.
    next_avail: u16,
    avail_seen: u16,
    next_used: u16,
    published: u16,
    in_flight: u16,
    event_idx: bool,
}

impl Queue {
    /// Takes over a ring as the driver set it up.
    ///
    /// # Errors
    ///
    /// If the ring's size or place is none that can be served.
    pub fn new(memory: &DmaView, from: &QueueResources, features: u64) -> Result<Self, QueueFault> {
        if from.size > MAX_SIZE {
            return Err(QueueFault::Size(from.size));
        }
        let map = GuestMap::new(memory);
        // First the generation, then the check of the pages: a conversion in between is seen as new.
        let generation = memory.generation();
        let ring = Ring::resolve(&map, from.addresses, from.size)?;
        Ok(Self::over(ring, map, generation, features))
    }

    fn over(mut ring: Ring, map: GuestMap, generation: u64, features: u64) -> Self {
        ring.set_indirect(features & F_INDIRECT_DESC != 0);
        // A fresh ring has all indices 0 (virtio 1.3, 4.1.5.1.3), so there is nothing to take over.
        Queue {
            ring,
            map,
            generation,
            next_avail: 0,
            avail_seen: 0,
            next_used: 0,
            published: 0,
            in_flight: 0,
            event_idx: features & F_EVENT_IDX != 0,
        }
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Chains taken and not yet given back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// A chain to [`Queue::take`] into; made once and used again and again.
    #[must_use]
    pub fn new_chain(&self) -> Chain {
        Chain::new(self.map.view())
    }

    /// Looks once how much the driver has made available; [`Queue::take`] goes no further.
    ///
    /// # Errors
    ///
    /// If the index is impossible, or the ring is no longer shared.
    #[inline]
    pub fn begin_batch(&mut self) -> Result<u16, QueueFault> {
        self.check_generation()?;
        // Acquire: the entries and descriptors that the driver wrote before it raised the index are
        // visible to the relaxed loads of this batch.
        let index = self.ring.avail_index();
        let pending = index.wrapping_sub(self.next_avail);
        // A chain occupies a descriptor until it is given back, so there are never more than the size.
        if u32::from(pending).wrapping_add(u32::from(self.in_flight)) > u32::from(self.ring.size())
        {
            return Err(QueueFault::AvailIndex {
                index,
                next: self.next_avail,
                in_flight: self.in_flight,
            });
        }
        self.avail_seen = index;
        Ok(pending)
    }

    /// Faults if the ring was made private, and gives up what was written to it since. Called once per batch,
    /// before a batch of completions, and after the last write before the worker rests.
    ///
    /// # Errors
    ///
    /// If a page of the ring is private.
    #[inline]
    pub fn check_generation(&mut self) -> Result<(), QueueFault> {
        let generation = self.map.view().generation();
        if generation == self.generation {
            return Ok(());
        }
        self.recheck_ring(generation)
    }

    #[cold]
    fn recheck_ring(&mut self, generation: u64) -> Result<(), QueueFault> {
        if !self.ring.is_shared(&self.map) {
            // What was written to the used ring since then is given up again.
            self.ring.discard_private(&self.map);
            return Err(QueueFault::RingPrivate);
        }
        self.generation = generation;
        Ok(())
    }

    /// Walks the next chain of the batch into `chain`; `false` at the batch's end.
    ///
    /// # Errors
    ///
    /// If the chain breaks the rules or is not in memory that the host may use.
    #[inline]
    pub fn take(&mut self, chain: &mut Chain) -> Result<bool, QueueFault> {
        if self.next_avail == self.avail_seen {
            return Ok(false);
        }
        let head = self.ring.avail_entry(self.next_avail);
        chain.walk(&self.ring, &self.map, head)?;
        // That of the batch's begin: a conversion since then only makes the check after the I/O look.
        chain.set_generation(self.generation);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_add(1);
        Ok(true)
    }

    /// Takes back the last [`Queue::take`]: the chain stays available. Only before any other take.
    pub fn untake(&mut self) {
        debug_assert!(self.in_flight > 0, "a chain was taken");
        self.next_avail = self.next_avail.wrapping_sub(1);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Gives back the chain of `head`, into which `written` bytes were put. Each taken chain once, in
    /// any order.
    #[inline]
    pub fn add_used(&mut self, head: u16, written: u32) {
        debug_assert!(
            self.in_flight > 0,
            "only a chain that was taken is given back"
        );
        self.ring.set_used_element(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_sub(1);
    }

    /// Shows the driver what was given back; whether it wants an interrupt for it.
    #[inline]
    #[must_use = "the driver may wait for the interrupt"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.ring.set_used_index(new);
        self.published = new;
        // The index is stored before the driver's wish is loaded; the driver has the same fence between
        // its store of the wish and its load of the index. So one of the two sees the other's store:
        // either an interrupt comes, or the driver finds the element without one.
        fence(Ordering::SeqCst);
        if self.event_idx {
            // virtio 1.3, 2.7.7.2: whether the index passed used_event, all modulo 2^16.
            let event = self.ring.used_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.ring.avail_flags() & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Whether the driver has made more available than was taken.
    #[inline]
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.ring.avail_index() != self.next_avail
    }

    /// Asks the driver for a kick from here on. `true` if it made more available before it could see
    /// that: there may be no kick for it, so begin another batch.
    #[inline]
    #[must_use = "no kick comes for what is already there"]
    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.ring.set_avail_event(self.next_avail);
        } else {
            self.ring.set_used_flags(0);
        }
        // Pairs with the driver's fence between its store of the index and its load of our wish.
        fence(Ordering::SeqCst);
        self.ring.avail_index() != self.next_avail
    }

    /// Tells the driver that kicks are not needed. With EVENT_IDX there is nothing to do: the event
    /// index stays behind, and a driver kicks only when it passes it.
    #[inline]
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            self.ring.set_used_flags(USED_F_NO_NOTIFY);
        }
    }
}

impl Drop for Queue {
    /// Whatever ended the queue, what it wrote to a ring that is private by now is given up again.
    fn drop(&mut self) {
        let _ = self.check_generation();
    }
}

#[cfg(all(test, loom))]
#[path = "queue_loom.rs"]
mod queue_loom;
