//! Memory to load into a TD: page-aligned and made of whole pages, by type.
//!
//! KVM pins the source page by page and copies it through the TDX module, so it must be ordinary
//! user memory, aligned to 4 KiB. A [`PageSource`] can only be had for such memory; a
//! [`PageBuffer`] makes it from bytes of any alignment.

use std::fmt;

use sha2::{Digest as _, Sha384};
use tdvmm_arch::addr::PAGE_SIZE;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// A 4 KiB page, aligned to its size.
#[repr(C, align(4096))]
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Page([u8; PAGE]);

/// Page-aligned memory owned by the launch: an image section with its zero-filled rest, a HOB.
#[derive(Clone)]
pub struct PageBuffer(Vec<Page>);

impl PageBuffer {
    /// `pages` pages of zeros.
    #[must_use]
    pub fn zeroed(pages: usize) -> Self {
        let mut buffer = Vec::new();
        buffer.resize_with(pages, Page::new_zeroed);
        Self(buffer)
    }

    /// `content`, followed by zeros up to `len` bytes, rounded up to whole pages. `None` if
    /// `content` is longer than that.
    #[must_use]
    pub fn from_content(content: &[u8], len: usize) -> Option<Self> {
        let mut buffer = Self::zeroed(len.div_ceil(PAGE));
        buffer
            .bytes_mut()
            .get_mut(..content.len())?
            .copy_from_slice(content);
        Some(buffer)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }

    /// As a source.
    #[must_use]
    pub fn source(&self) -> PageSource<'_> {
        PageSource {
            bytes: self.bytes(),
        }
    }
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBuffer({} pages)", self.0.len())
    }
}

/// Whole, aligned pages of readable user memory.
#[derive(Clone, Copy)]
pub struct PageSource<'a> {
    bytes: &'a [u8],
}

impl<'a> PageSource<'a> {
    /// `None` unless `bytes` starts at a page boundary and is made of whole pages, at least one.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let aligned = bytes.as_ptr().addr().is_multiple_of(PAGE);
        let whole = !bytes.is_empty() && bytes.len().is_multiple_of(PAGE);
        (aligned && whole).then_some(Self { bytes })
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether nothing is left: only after [`PageSource::skip`].
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// Number of pages.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.len() / PAGE_SIZE
    }

    /// What is left after the first `pages` pages; `None` if there are not that many.
    #[must_use]
    pub fn skip(self, pages: u64) -> Option<Self> {
        let bytes = usize::try_from(pages.checked_mul(PAGE_SIZE)?).ok()?;
        Some(Self {
            bytes: self.bytes.get(bytes..)?,
        })
    }

    /// SHA-384 of the bytes without the zeros at their end: what fills the last page, or the whole of an empty
    /// section, says nothing of the contents, and crate `firmware` logs what it never padded by the same rule.
    #[must_use]
    pub fn digest(self) -> Digest {
        let end = self.bytes.iter().rposition(|byte| *byte != 0);
        let content = end.and_then(|last| self.bytes.get(..=last));
        Digest(Sha384::digest(content.unwrap_or_default()).into())
    }
}

impl fmt::Debug for PageSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSource({} pages)", self.pages())
    }
}

/// A SHA-384 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 48]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_that_is_not_made_of_aligned_pages_is_refused() {
        let buffer = PageBuffer::zeroed(2);
        let bytes = buffer.bytes();
        assert!(PageSource::new(bytes).is_some());
        assert!(PageSource::new(&bytes[1..4097]).is_none());
        assert!(PageSource::new(&bytes[..100]).is_none());
        assert!(PageSource::new(&bytes[..0]).is_none());
    }

    #[test]
    fn content_is_followed_by_zeros_up_to_whole_pages() {
        let buffer = PageBuffer::from_content(b"abc", 4097).unwrap();
        assert_eq!(buffer.bytes().len(), 8192);
        assert_eq!(&buffer.bytes()[..4], b"abc\0");
        assert!(PageBuffer::from_content(&[1; 5000], 4096).is_none());
    }

    #[test]
    fn digest_is_of_the_content_without_the_zeros_after_it() {
        let digest = |content: &[u8]| {
            let buffer = PageBuffer::from_content(content, 8192).unwrap();
            buffer.source().digest()
        };
        assert_eq!(digest(b"a\0b").0, *Sha384::digest(b"a\0b"));
        assert_eq!(digest(b"a\0b\0\0"), digest(b"a\0b"));
        assert_eq!(digest(b"").0, *Sha384::digest(b""));
        assert_eq!(digest(&[7; 8192]).0, *Sha384::digest([7; 8192]));
    }

    #[test]
    fn skip_stops_at_the_end() {
        let buffer = PageBuffer::zeroed(2);
        assert_eq!(buffer.source().skip(1).unwrap().pages(), 1);
        assert!(buffer.source().skip(2).unwrap().is_empty());
        assert!(buffer.source().skip(3).is_none());
        assert!(buffer.source().skip(u64::MAX).is_none());
    }
}
