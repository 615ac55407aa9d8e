//! The three areas of a split ring (virtio 1.3, 2.7) as host addresses, and nothing but loads and stores.
//!
//! Resolved once, when the driver sets DRIVER_OK. Whether what the guest wrote makes sense is for
//! [`super::queue`]; here every index is masked or checked, so no value leads outside of the areas. All
//! accesses are atomic, since the guest may write at any time; no plain reference to guest memory is
//! made, only to atomics, which allow for that.
#![expect(
    unsafe_code,
    reason = "host addresses of guest memory are raw pointers"
)]

use std::fmt;

use super::queue::QueueFault;
use super::segment::GuestMap;
use super::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Bytes of one descriptor, of one used element, and of flags and index before either ring.
const DESCRIPTOR_LEN: u64 = 16;
const USED_ELEMENT_LEN: u64 = 8;
const HEADER_LEN: u64 = 4;
const EVENT_LEN: u64 = 2;
/// Positions in an array of 16-bit words (virtio 1.3, 2.7.6 and 2.7.8).
const FLAGS: usize = 0;
const INDEX: usize = 1;
const ENTRIES: usize = 2;

/// A descriptor as the guest wrote it (virtio 1.3, 2.7.5), read once: the two words of the wire form. Its
/// fields are taken out where they are looked at, so that a walk carries two registers from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    addr: u64,
    rest: u64,
}

impl Descriptor {
    /// From the two little-endian words of the wire form.
    #[inline]
    pub fn from_words(addr: u64, rest: u64) -> Self {
        Descriptor { addr, rest }
    }

    #[inline]
    pub fn addr(self) -> u64 {
        self.addr
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a piece of the word")]
    pub fn len(self) -> u32 {
        self.rest as u32
    }

    /// Which of `flags` are set.
    #[inline]
    pub fn flags(self, flags: u16) -> u16 {
        // Nothing but the asked-for bits remains, which fit.
        u16::try_from((self.rest >> 32) & u64::from(flags)).unwrap_or_default()
    }

    #[inline]
    pub fn next(self) -> u16 {
        (self.rest >> 48) as u16
    }
}

/// Where the driver put the areas: guest physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring, written by the driver.
    pub avail: u64,
    /// Used ring, written by the device.
    pub used: u64,
}

/// Fields are private to this module, since the SAFETY comments rest on how [`Ring::resolve`] fills them.
pub(super) struct Ring {
    /// `2 * size` words.
    desc: *const AtomicU64,
    /// `size + 3` words: flags, index, entries, used_event.
    avail: *const AtomicU16,
    /// 2 words: flags, index.
    used: *const AtomicU16,
    /// `2 * size` words: id, length.
    used_elements: *const AtomicU32,
    /// 1 word.
    avail_event: *const AtomicU16,
    /// A power of two.
    size: u16,
    /// `size - 1`: from a free-running position to its slot.
    mask: u16,
    /// Whether the driver may use indirect tables.
    indirect: bool,
    addresses: RingAddresses,
}

// SAFETY: the pointers lead to memory that stays mapped as long as the `GuestMap` beside it in `Queue`
// lives, in whichever thread; all accesses through them are atomic.
unsafe impl Send for Ring {}

impl Ring {
    /// Resolves the areas of a ring of `size` entries. The caller keeps `map` as long as the ring.
    pub fn resolve(map: &GuestMap, at: RingAddresses, size: u16) -> Result<Self, QueueFault> {
        if !size.is_power_of_two() {
            return Err(QueueFault::Size(size));
        }
        let [desc_len, avail_len, used_len] = area_lengths(size);
        let desc = map.host_area(at.desc, desc_len, 16)?;
        let avail = map.host_area(at.avail, avail_len, 2)?;
        let used = map.host_area(at.used, used_len, 4)?;
        let elements = used.wrapping_add(4);
        let event = elements.wrapping_add(usize::from(size).wrapping_mul(8));
        Ok(Ring {
            desc: desc.cast::<AtomicU64>(),
            avail: avail.cast::<AtomicU16>(),
            used: used.cast::<AtomicU16>(),
            used_elements: elements.cast::<AtomicU32>(),
            avail_event: event.cast::<AtomicU16>(),
            size,
            mask: size.wrapping_sub(1),
            indirect: false,
            addresses: at,
        })
    }

    /// Start and length of the areas.
    fn areas(&self) -> [(u64, u64); 3] {
        let [desc_len, avail_len, used_len] = area_lengths(self.size);
        let at = self.addresses;
        [
            (at.desc, desc_len),
            (at.avail, avail_len),
            (at.used, used_len),
        ]
    }

    /// Whether all three areas are still shared with the host.
    pub fn is_shared(&self, map: &GuestMap) -> bool {
        let mut areas = self.areas().into_iter();
        areas.all(|(start, len)| map.view().is_shared(start, len))
    }

    /// Gives up the shared side of what is no longer shared.
    pub fn discard_private(&self, map: &GuestMap) {
        for (start, len) in self.areas() {
            map.view().discard_private(start..start.saturating_add(len));
        }
    }

    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub fn indirect(&self) -> bool {
        self.indirect
    }

    pub fn set_indirect(&mut self, indirect: bool) {
        self.indirect = indirect;
    }

    #[inline]
    fn slot(&self, position: u16) -> usize {
        usize::from(position & self.mask)
    }

    /// A word of the available ring; `index` is below `size + 3`.
    #[inline]
    fn avail_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(
            index < usize::from(self.size) + 3,
            "within the available ring"
        );
        // SAFETY: `avail` has `size + 3` words and every caller's index is one of them: FLAGS, INDEX,
        // ENTRIES plus a masked position, or ENTRIES plus `size`.
        let word = unsafe { self.avail.add(index) };
        // SAFETY: in bounds by the above, aligned as `host_area` checked, mapped while the queue's map
        // lives, and only ever accessed as an atomic by this process.
        unsafe { &*word }
    }

    /// FLAGS or INDEX of the used ring.
    #[inline]
    fn used_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < ENTRIES, "within the header of the used ring");
        // SAFETY: `used` has 2 words and the callers pass 0 or 1.
        let word = unsafe { self.used.add(index) };
        // SAFETY: as in `avail_word`.
        unsafe { &*word }
    }

    /// Descriptor `index` of the table, or `None` if there is none.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: the table has `2 * size` words and `index < size`.
        let first = unsafe { self.desc.add(usize::from(index).wrapping_mul(2)) };
        // SAFETY: the second word of the same descriptor.
        let second = unsafe { first.add(1) };
        // SAFETY: in bounds by the above, 8-byte aligned, mapped, only accessed as an atomic.
        let addr = unsafe { &*first };
        // SAFETY: as for `addr`.
        let rest = unsafe { &*second };
        // The available index was read with acquire after the driver wrote the descriptor. A driver
        // that writes it later tears its own request, nothing else.
        let (addr, rest) = (addr.load(Ordering::Relaxed), rest.load(Ordering::Relaxed));
        Some(Descriptor::from_words(addr, rest))
    }

    /// The driver's index: everything that was written before it was raised is visible after this load.
    #[inline]
    pub fn avail_index(&self) -> u16 {
        self.avail_word(INDEX).load(Ordering::Acquire)
    }

    #[inline]
    pub fn avail_flags(&self) -> u16 {
        self.avail_word(FLAGS).load(Ordering::Relaxed)
    }

    /// The head at a free-running position.
    #[inline]
    pub fn avail_entry(&self, position: u16) -> u16 {
        let index = self.slot(position).wrapping_add(ENTRIES);
        self.avail_word(index).load(Ordering::Relaxed)
    }

    /// Up to which used index the driver wants no interrupt (EVENT_IDX).
    #[inline]
    pub fn used_event(&self) -> u16 {
        let index = usize::from(self.size).wrapping_add(ENTRIES);
        self.avail_word(index).load(Ordering::Relaxed)
    }

    /// Writes a used element; the driver sees it once [`Ring::set_used_index`] passed it.
    #[inline]
    pub fn set_used_element(&self, position: u16, id: u16, len: u32) {
        // SAFETY: the elements are `2 * size` words and the slot is below `size`.
        let first = unsafe { self.used_elements.add(self.slot(position).wrapping_mul(2)) };
        // SAFETY: the second word of the same element.
        let second = unsafe { first.add(1) };
        // SAFETY: in bounds by the above, 4-byte aligned, mapped, only accessed as an atomic.
        let id_word = unsafe { &*first };
        // SAFETY: as for `id_word`.
        let len_word = unsafe { &*second };
        id_word.store(u32::from(id), Ordering::Relaxed);
        len_word.store(len, Ordering::Relaxed);
    }

    /// Publishes the elements below `index`, and all data that was written for them.
    #[inline]
    pub fn set_used_index(&self, index: u16) {
        self.used_word(INDEX).store(index, Ordering::Release);
    }

    #[inline]
    pub fn set_used_flags(&self, flags: u16) {
        self.used_word(FLAGS).store(flags, Ordering::Relaxed);
    }

    /// Asks for a kick when the available index passes `index` (EVENT_IDX).
    #[inline]
    pub fn set_avail_event(&self, index: u16) {
        // SAFETY: one word behind the used elements, part of the used area, aligned to 2, mapped, only
        // accessed as an atomic.
        let word = unsafe { &*self.avail_event };
        word.store(index, Ordering::Relaxed);
    }

    /// A ring of words that are not guest memory.
    #[cfg(loom)]
    pub fn of_words(words: &'static RingWords, size: u16) -> Self {
        Ring {
            desc: words.desc.as_ptr(),
            avail: words.avail.as_ptr(),
            used: words.used.as_ptr(),
            used_elements: words.used_elements.as_ptr(),
            avail_event: &words.avail_event,
            size,
            mask: size.wrapping_sub(1),
            indirect: false,
            addresses: RingAddresses::default(),
        }
    }
}

/// The areas as loom's atomics, which do not have the layout of the integers.
#[cfg(loom)]
pub(super) struct RingWords {
    pub desc: Vec<AtomicU64>,
    pub avail: Vec<AtomicU16>,
    pub used: Vec<AtomicU16>,
    pub used_elements: Vec<AtomicU32>,
    pub avail_event: AtomicU16,
}

/// Bytes of descriptor table, available ring and used ring, with the event words, which are there to
/// be reserved even where EVENT_IDX is off.
fn area_lengths(size: u16) -> [u64; 3] {
    let (size, around) = (u64::from(size), HEADER_LEN.wrapping_add(EVENT_LEN));
    [
        size.wrapping_mul(DESCRIPTOR_LEN),
        size.wrapping_mul(2).wrapping_add(around),
        size.wrapping_mul(USED_ELEMENT_LEN).wrapping_add(around),
    ]
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("addresses", &self.addresses)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
