//! Entering a kernel without firmware: where each piece goes and what it holds.
//!
//! ```text
//! 0x500    GDT              0x9000   page tables (6 pages)
//! 0x6000   PVH start_info   0x20000  command line (64 KiB)
//! 0x7000   zero page        0xe0000  ACPI tables (map::ACPI_AREA)
//! 0x8ff0   stack            0xffff0  reset stub
//!                           0x100000 kernel
//! ```
//!
//! `linux` follows Documentation/arch/x86/boot.rst of Linux (64-bit entry), `pvh` the x86/HVM direct boot ABI
//! of Xen. Both describe memory with the same E820 entries. Nothing here reads or writes guest memory: the
//! results are bytes, and the caller writes them where the constants say.

pub mod linux;
pub mod pvh;
pub mod registers;
pub mod reset;

pub use registers::{InitialRegisters, Segment, gdt_bytes, page_tables};

use crate::addr::PAGE_SIZE;
use crate::{Gpa, GpaRange, RamLayout};

/// The global descriptor table ([`gdt_bytes`]).
pub const GDT: Gpa = Gpa(0x500);

/// The start_info structure of PVH, with its module list and memory map behind it; one page.
pub const START_INFO: Gpa = Gpa(0x6000);

/// The zero page (`struct boot_params`) of the Linux boot protocol.
pub const ZERO_PAGE: Gpa = Gpa(0x7000);

/// Initial stack pointer; the stack grows down towards the zero page.
pub const STACK: Gpa = Gpa(0x8ff0);

/// Page tables that map the first 4 GiB to themselves ([`page_tables`]).
pub const PAGE_TABLES: Gpa = Gpa(0x9000);

/// The command line, ended by a zero byte.
pub const COMMAND_LINE: GpaRange = GpaRange::constant(0x2_0000, 0x1_0000);

/// Where a kernel is loaded that does not say otherwise.
pub const KERNEL: Gpa = Gpa(0x10_0000);

/// Entries of the memory map that a boot protocol can carry.
pub const MAX_E820_ENTRIES: usize = 128;

/// Why boot parameters cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The memory map has more entries than the boot protocol holds.
    #[error("the memory map has {0} entries: at most {MAX_E820_ENTRIES} can be passed to a kernel")]
    TooManyE820(usize),
    /// The command line is longer than the kernel or the space for it allows.
    #[error("the command line has {len} bytes: the kernel takes at most {max}")]
    CommandLineTooLong {
        /// Bytes of the command line, without the zero byte.
        len: u64,
        /// Bytes that fit.
        max: u64,
    },
    /// The setup header is not one of the boot protocol.
    #[error("the kernel's setup header is not usable: {0}")]
    SetupHeader(&'static str),
    /// The initramfs does not fit between the end of the kernel and the limit.
    #[error("the initramfs of {len} bytes does not fit in memory between {kernel_end} and {limit}")]
    InitramfsDoesNotFit {
        /// Bytes of the initramfs.
        len: u64,
        /// The first address after the kernel.
        kernel_end: Gpa,
        /// The end of usable low RAM.
        limit: Gpa,
    },
}

/// Places an initramfs of `len` bytes page-aligned and as high as possible in low RAM, at or above
/// `kernel_end` and with its last byte not above `addr_max`, the setup header's `initrd_addr_max`.
///
/// `kernel_end` must include the memory that the kernel uses before it reads the memory map (for a bzImage
/// its load address plus `init_size`).
///
/// # Errors
///
/// [`BootError::InitramfsDoesNotFit`].
pub fn place_initramfs(
    ram: &RamLayout,
    kernel_end: Gpa,
    len: u64,
    addr_max: u64,
) -> Result<GpaRange, BootError> {
    let limit = Gpa(ram.low().end().0.min(addr_max.saturating_add(1)));
    let first_mib = Gpa(0x10_0000);
    limit
        .0
        .checked_sub(len)
        .map(|start| Gpa(start & !(PAGE_SIZE - 1)))
        .filter(|start| *start >= kernel_end && *start >= first_mib)
        .and_then(|start| GpaRange::from_len(start, len))
        .ok_or(BootError::InitramfsDoesNotFit {
            len,
            kernel_end,
            limit,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn initramfs_lies_right_below_the_end_of_low_ram() {
        let ram = RamLayout::new(128 << 20).unwrap();
        let range = place_initramfs(&ram, Gpa(0x200_0000), 0x1234, 0x7fff_ffff).unwrap();
        assert_eq!(range, GpaRange::constant(0x7ff_e000, 0x1234));
    }

    #[test]
    fn initramfs_that_would_reach_into_the_kernel_is_refused() {
        let ram = RamLayout::new(128 << 20).unwrap();
        assert!(place_initramfs(&ram, Gpa(0x7ff_f000), 0x1001, 0x7fff_ffff).is_err());
        assert!(place_initramfs(&ram, Gpa(0x10_0000), u64::MAX, u64::MAX).is_err());
    }

    #[test]
    fn initramfs_stays_below_what_an_old_kernel_can_reach() {
        let ram = RamLayout::new(2 << 30).unwrap();
        let range = place_initramfs(&ram, Gpa(0x200_0000), 0x1000, 0x37ff_ffff).unwrap();
        assert_eq!(range.end(), Gpa(0x3800_0000));
    }

    proptest! {
        #[test]
        fn placed_initramfs_is_aligned_in_ram_and_past_the_kernel(
            mib in 2u64..8192, kernel_end in 0x10_0000u64..0x1000_0000, len in 1u64..0x2000_0000,
            addr_max in prop::sample::select(vec![0x37ff_ffffu64, 0x7fff_ffff, u64::MAX]),
        ) {
            let ram = RamLayout::new(mib << 20).unwrap();
            if let Ok(range) = place_initramfs(&ram, Gpa(kernel_end), len, addr_max) {
                prop_assert!(range.start().is_aligned(PAGE_SIZE));
                prop_assert_eq!(range.len(), len);
                prop_assert!(ram.low().contains_range(range));
                prop_assert!(range.start() >= Gpa(kernel_end));
                prop_assert!(range.end().0 - 1 <= addr_max);
            } else {
                let room = ram.low().end().0.min(addr_max.saturating_add(1)).saturating_sub(kernel_end);
                prop_assert!(room < len + PAGE_SIZE);
            }
        }
    }
}
