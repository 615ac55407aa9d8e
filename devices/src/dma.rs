//! The only way a device sees guest memory.
//!
//! [`DmaView`] implements vm-memory's `GuestMemory` and refuses every range that is not shared with the
//! host in full. `physical_memory()` stays at its default `None`, so no caller can go around the check.
//! In an ordinary VM everything is shared ([`DmaView::all_shared`]); in a TD the process around the devices keeps
//! the states of the pages and implements [`PageState`].
//!
//! Who keeps host addresses for longer than one access (a queue its rings, a disk its requests) compares
//! [`DmaView::generation`] as the conversion protocol says: it changes with every conversion to private.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Permissions, Result};
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

/// Says which pages of the guest are shared with the host. Called from any device thread; only
/// [`PageState::discard_private`] may wait, for a conversion of the same 2 MiB.
pub trait PageState: Debug + Send + Sync {
    /// Whether every byte of `range` (guest physical, half-open) is shared.
    fn is_shared(&self, range: Range<u64>) -> bool;
    /// A number that every conversion to private raises, before it takes effect anywhere else.
    /// Read with acquire: who sees the old number also started before the conversion ended.
    fn generation(&self) -> u64;
    /// Gives back to the host what a late write brought back of the shared side of `range`, pages that
    /// were converted meanwhile. Pages of it that are shared stay as they are.
    fn discard_private(&self, range: Range<u64>);
}

/// Guest memory as a device may use it.
#[derive(Clone, Debug)]
pub struct DmaView {
    ram: Arc<GuestMemoryMmap>,
    /// `None`: all is shared, for ever. A null check instead of a call for each segment.
    pages: Option<Arc<dyn PageState>>,
}

/// One piece of guest memory that the host has mapped in one piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRegion {
    /// First guest physical address.
    pub start: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// Where the first byte is in this process; valid as long as the view lives.
    pub host: *mut u8,
}

impl DmaView {
    /// A view of `ram` that `pages` restricts.
    #[must_use]
    pub fn new(ram: Arc<GuestMemoryMmap>, pages: Arc<dyn PageState>) -> Self {
        DmaView {
            ram,
            pages: Some(pages),
        }
    }

    /// A view of memory of which nothing is ever private.
    #[must_use]
    pub fn all_shared(ram: Arc<GuestMemoryMmap>) -> Self {
        DmaView { ram, pages: None }
    }

    /// See [`PageState::generation`].
    #[inline]
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.pages.as_ref().map_or(0, |pages| pages.generation())
    }

    /// Whether the `len` bytes from `start` are shared. That they are memory at all is not asked.
    #[inline]
    #[must_use]
    pub fn is_shared(&self, start: u64, len: u64) -> bool {
        let Some(pages) = &self.pages else {
            return true;
        };
        let end = start.checked_add(len);
        end.is_some_and(|end| pages.is_shared(start..end))
    }

    /// Whether any page can ever be private.
    #[inline]
    pub(crate) fn has_private(&self) -> bool {
        self.pages.is_some()
    }

    /// See [`PageState::discard_private`].
    pub fn discard_private(&self, range: Range<u64>) {
        if let Some(pages) = &self.pages {
            pages.discard_private(range);
        }
    }

    /// Where memory is mapped, sorted by guest address. Whoever uses the addresses asks
    /// [`DmaView::is_shared`] first, and keeps a clone of the view for as long.
    pub(crate) fn host_regions(&self) -> impl Iterator<Item = HostRegion> + '_ {
        self.ram.iter().map(|region| HostRegion {
            start: region.start_addr().raw_value(),
            len: region.len(),
            host: region.as_ptr(),
        })
    }
}

impl GuestMemory for DmaView {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        u64::try_from(count).is_ok_and(|len| self.is_shared(addr.raw_value(), len))
            && GuestMemoryBackend::check_range(&*self.ram, addr, count)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>> {
        let len = u64::try_from(count).map_err(|_| Error::GuestAddressOverflow)?;
        if !self.is_shared(addr.raw_value(), len) {
            return Err(Error::InvalidGuestAddress(addr));
        }
        Ok(GuestMemoryBackend::get_slices(&*self.ram, addr, count))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[derive(Debug)]
    struct PrivateFrom(u64);

    impl PageState for PrivateFrom {
        fn is_shared(&self, range: Range<u64>) -> bool {
            range.end <= self.0
        }
        fn generation(&self) -> u64 {
            1
        }
        fn discard_private(&self, _: Range<u64>) {}
    }

    fn ram() -> Arc<GuestMemoryMmap> {
        let ranges = [(GuestAddress(0), 0x2000), (GuestAddress(0x4000), 0x1000)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn access_to_a_private_byte_is_refused_in_whole() {
        let view = DmaView::new(ram(), Arc::new(PrivateFrom(0x1000)));
        view.write_slice(&[1, 2], GuestAddress(0xffe)).unwrap();
        assert!(view.write_slice(&[3, 4], GuestAddress(0xfff)).is_err());
        let mut back = [0; 2];
        view.read_slice(&mut back, GuestAddress(0xffe)).unwrap();
        assert_eq!(back, [1, 2]);
        assert!(!view.check_range(GuestAddress(0xfff), 2, Permissions::Read));
    }

    #[test]
    fn access_outside_of_memory_is_refused() {
        let view = DmaView::all_shared(ram());
        assert!(view.write_slice(&[0; 2], GuestAddress(0x1fff)).is_err());
        let start = GuestAddress(u64::MAX);
        assert!(!view.check_range(start, 2, Permissions::Read));
        assert!(view.check_range(GuestAddress(0x4000), 0x1000, Permissions::Write));
        assert!(view.physical_memory().is_none());
    }
}
