//! RAM of an ordinary VM: anonymous memory, given by the host page by page as the guest touches it.

use tdvmm_arch::GpaRange;
use tdvmm_arch::layout::RamLayout;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Guest RAM cannot be had.
#[derive(Debug, Error)]
pub enum RamError {
    /// The host refuses to map so much.
    #[error("--memory: cannot map {bytes:#x} bytes of guest RAM; give the guest less memory")]
    Map {
        /// Size of the range.
        bytes: u64,
        /// What the system said.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The ranges do not make an address space: a mistake of the layout.
    #[error("guest RAM does not fit the address space")]
    Layout,
}

/// Maps the ranges of `layout`, and `firmware` beside them. Nothing is touched, so this costs no memory
/// yet. The kernel starts a mapping of whole large pages at one (from Linux 6.7 on), so that guest and host addresses
/// can share large pages.
///
/// # Errors
///
/// If the host refuses.
pub fn allocate(
    layout: &RamLayout,
    firmware: Option<GpaRange>,
) -> Result<GuestMemoryMmap, RamError> {
    let mut ranges: Vec<GpaRange> = layout.ranges().chain(firmware).collect();
    ranges.sort_unstable_by_key(|range| range.start());
    let mut regions = Vec::with_capacity(ranges.len());
    for range in ranges {
        let bytes = range.len();
        let size = usize::try_from(bytes).map_err(|_| RamError::Layout)?;
        let mapping = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            // Not reserved: whether the host has the memory shows when the guest uses it, as with any
            // overcommitted memory, and not by a refusal of a guest that would never have used it all.
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .map_err(|source| RamError::Map { bytes, source })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start().0));
        regions.push(region.ok_or(RamError::Layout)?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|_| RamError::Layout)
}

#[cfg(test)]
mod tests {
    use tdvmm_arch::addr::LARGE_PAGE_SIZE;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    /// From Linux 6.7 on, which is older than any that makes TDs.
    #[test]
    fn mappings_of_whole_large_pages_start_at_one() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
        let large_pages = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        if (numbers.next(), numbers.next()) < (Some(6), Some(7)) || !large_pages {
            return;
        }
        let layout = RamLayout::new((2 << 30) + (66 << 20)).unwrap();
        let firmware = GpaRange::constant((1 << 32) - (4 << 20), 4 << 20);
        for _ in 0..4 {
            let ram = allocate(&layout, Some(firmware)).unwrap();
            for region in ram.iter() {
                let at = region.as_ptr() as u64;
                assert_eq!(
                    at % LARGE_PAGE_SIZE,
                    region.start_addr().0 % LARGE_PAGE_SIZE
                );
            }
        }
    }
}
