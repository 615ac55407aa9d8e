//! Guest memory as a device sees it.
//!
//! [`DmaView`] is the only way from a device to guest memory. It is a `vm_memory::GuestMemory` that
//! asks [`PageState`] before each access and refuses a range with a private page in it. It has no
//! `physical_memory()`, so that nothing can go round the question.
//!
//! A page may turn private between the question and the copy. That is harmless: the view only reaches
//! the shared side of the memory, never the private one. Who keeps addresses for longer than one
//! access (a ring) compares [`DmaView::generation`] and asks again when it has changed.

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, Permissions,
};

/// Which guest pages the host may touch. Asked from any thread; must not block for long.
pub trait PageState: Debug + Send + Sync {
    /// Whether every page that `range` touches (guest-physical addresses) is shared.
    fn is_shared(&self, range: Range<u64>) -> bool;
    /// A number that grows with each conversion of pages from shared to private.
    fn generation(&self) -> u64;
}

/// The page state of an ordinary VM: all memory is shared, for good.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllShared;

impl PageState for AllShared {
    fn is_shared(&self, _: Range<u64>) -> bool {
        true
    }

    fn generation(&self) -> u64 {
        0
    }
}

/// See the module's text. A clone sees the same memory.
#[derive(Clone, Debug)]
pub struct DmaView {
    ram: Arc<GuestMemoryMmap>,
    pages: Arc<dyn PageState>,
}

impl DmaView {
    /// A view of those pages of `ram` that `pages` calls shared.
    #[must_use]
    pub fn new(ram: Arc<GuestMemoryMmap>, pages: Arc<dyn PageState>) -> Self {
        Self { ram, pages }
    }

    /// See [`PageState::generation`].
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.pages.generation()
    }

    /// `None` if the range wraps or holds a private page.
    fn shared_range(&self, addr: GuestAddress, count: usize) -> Option<Range<u64>> {
        let end = addr.0.checked_add(u64::try_from(count).ok()?)?;
        let range = addr.0..end;
        (range.is_empty() || self.pages.is_shared(range.clone())).then_some(range)
    }
}

impl GuestMemory for DmaView {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        self.shared_range(addr, count).is_some()
            && GuestMemoryBackend::check_range(self.ram.as_ref(), addr, count)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        if self.shared_range(addr, count).is_none() {
            let refused = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(GuestMemoryError::IOError(refused));
        }
        Ok(GuestMemoryBackend::get_slices(
            self.ram.as_ref(),
            addr,
            count,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    /// Everything from the address up is private.
    #[derive(Debug)]
    struct PrivateFrom(u64);

    impl PageState for PrivateFrom {
        fn is_shared(&self, range: Range<u64>) -> bool {
            range.end <= self.0
        }
        fn generation(&self) -> u64 {
            7
        }
    }

    fn view() -> DmaView {
        let ranges = [
            (GuestAddress(0), 0x4000),
            (GuestAddress(0x4000), 0x4000),
            (GuestAddress(0x1_0000), 0x1000),
        ];
        let ram = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        DmaView::new(Arc::new(ram), Arc::new(PrivateFrom(0x6000)))
    }

    #[test]
    fn shared_range_across_regions_is_read_and_written() {
        let view = view();
        view.write_slice(b"tdvmm", GuestAddress(0x3ffe)).unwrap();
        let mut back = [0; 5];
        view.read_slice(&mut back, GuestAddress(0x3ffe)).unwrap();
        assert_eq!(&back, b"tdvmm");
        assert_eq!(view.generation(), 7);
    }

    #[test]
    fn range_with_a_private_page_is_refused_as_a_whole() {
        let view = view();
        let edge = GuestAddress(0x5fff);
        assert!(view.check_range(edge, 1, Permissions::Read));
        assert!(!view.check_range(edge, 2, Permissions::Read));
        let mut data = [0xaa; 2];
        view.read_slice(&mut data, edge).unwrap_err();
        assert_eq!(data, [0xaa; 2], "not even the shared part was read");
        view.write_slice(&[1, 2], edge).unwrap_err();
        view.read_slice(&mut data[..1], edge).unwrap();
        assert_eq!(data[0], 0, "not even the shared part was written");
    }

    #[test]
    fn range_that_is_no_ram_or_wraps_is_refused() {
        let view = DmaView::new(view().ram, Arc::new(AllShared));
        assert!(!view.check_range(GuestAddress(0x7fff), 2, Permissions::Read));
        assert!(!view.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
        let mut data = [0; 2];
        for address in [0x7fff, 0x8000, 0xffff, u64::MAX] {
            view.read_slice(&mut data, GuestAddress(address))
                .unwrap_err();
        }
    }

    #[test]
    fn view_has_no_way_round_the_page_state() {
        assert!(view().physical_memory().is_none());
    }
}
