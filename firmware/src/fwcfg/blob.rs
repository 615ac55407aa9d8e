//! Bytes that several items share without a copy: a kernel is offered whole and in two parts.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// The bytes of an item: a `Vec<u8>`, a static slice, the mapping of a file, or a part of one.
pub type Blob = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A blob that owns `bytes`.
#[must_use]
pub fn blob(bytes: Vec<u8>) -> Blob {
    Arc::new(bytes)
}

/// A range of another blob; empty where that does not have it.
#[derive(Clone)]
pub struct BlobPart {
    whole: Blob,
    range: Range<usize>,
}

impl BlobPart {
    /// The bytes `range` of `whole`.
    #[must_use]
    pub fn of(whole: &Blob, range: Range<usize>) -> Blob {
        Arc::new(Self {
            whole: Arc::clone(whole),
            range,
        })
    }
}

impl AsRef<[u8]> for BlobPart {
    fn as_ref(&self) -> &[u8] {
        let whole = (*self.whole).as_ref();
        whole.get(self.range.clone()).unwrap_or_default()
    }
}

impl core::fmt::Debug for BlobPart {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BlobPart")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
