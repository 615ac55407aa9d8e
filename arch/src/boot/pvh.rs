//! The start_info of the PVH boot ABI (Xen: public/arch-x86/hvm/start_info.h, version 1).
//!
//! The structure, its module list and its memory map are one block of bytes for [`START_INFO`].

use alloc::vec::Vec;

use super::{BootError, COMMAND_LINE, MAX_E820_ENTRIES, START_INFO};
use crate::e820::E820Entry;
use crate::{Gpa, GpaRange};

/// `XEN_HVM_START_MAGIC_VALUE`, "xEn3" with bit 7 of the first byte set.
const MAGIC: u32 = 0x336e_c578;

/// The version that has a memory map.
const VERSION: u32 = 1;

/// Offset of the module list; `struct hvm_start_info` has 56 bytes.
const MODULES: usize = 0x40;

/// Offset of the memory map; a module list entry has 32 bytes and there is at most one.
const MEMMAP: usize = 0x60;

/// Bytes of a memory map entry: address, size, type, reserved.
const MEMMAP_ENTRY: usize = 24;

/// Makes the block to be written at [`START_INFO`]: at most one page.
///
/// `cmdline` is the address of the command line and its length without the zero byte that ends it.
///
/// # Errors
///
/// If there are too many `e820` entries or the command line does not fit where it goes.
pub fn start_info(
    e820: &[E820Entry],
    cmdline: (Gpa, u32),
    initramfs: Option<GpaRange>,
    rsdp: Gpa,
) -> Result<Vec<u8>, BootError> {
    if e820.len() > MAX_E820_ENTRIES {
        return Err(BootError::TooManyE820(e820.len()));
    }
    let (cmdline_at, cmdline_len) = cmdline;
    let max = COMMAND_LINE.len() - 1;
    if u64::from(cmdline_len) > max {
        return Err(BootError::CommandLineTooLong {
            len: cmdline_len.into(),
            max,
        });
    }
    let entries = u32::try_from(e820.len()).map_err(|_| BootError::TooManyE820(e820.len()))?;

    let mut block = Vec::with_capacity(MEMMAP + e820.len() * MEMMAP_ENTRY);
    for word in [MAGIC, VERSION, 0, u32::from(initramfs.is_some())] {
        block.extend_from_slice(&word.to_le_bytes());
    }
    let modules = if initramfs.is_some() {
        START_INFO.0 + MODULES as u64
    } else {
        0
    };
    for address in [modules, cmdline_at.0, rsdp.0, START_INFO.0 + MEMMAP as u64] {
        block.extend_from_slice(&address.to_le_bytes());
    }
    block.extend_from_slice(&entries.to_le_bytes());

    block.resize(MODULES, 0);
    if let Some(range) = initramfs {
        block.extend_from_slice(&range.start().0.to_le_bytes());
        block.extend_from_slice(&range.len().to_le_bytes());
    }
    block.resize(MEMMAP, 0);
    for entry in e820 {
        block.extend_from_slice(&entry.to_bytes());
        block.extend_from_slice(&[0; 4]);
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::e820::{E820Kind, boot_map};
    use crate::{RamLayout, map};

    fn long(block: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(block[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn start_info_points_at_its_module_and_memory_map() {
        let ram = RamLayout::new(1 << 30).unwrap();
        let e820 = boot_map(&ram, map::ACPI_AREA);
        let initramfs = Some(GpaRange::constant(0x3000_0000, 0x1234));
        let block = start_info(&e820, (Gpa(0x2_0000), 5), initramfs, Gpa(0xe_0000)).unwrap();
        assert_eq!(long(&block, 0), 0x1_336e_c578);
        assert_eq!(long(&block, 8), 1 << 32);
        assert_eq!(
            [16, 24, 32, 40].map(|at| long(&block, at)),
            [0x6040, 0x2_0000, 0xe_0000, 0x6060]
        );
        assert_eq!(long(&block, 48), e820.len() as u64);
        assert_eq!(
            [0x40, 0x48, 0x50, 0x58].map(|at| long(&block, at)),
            [0x3000_0000, 0x1234, 0, 0]
        );
        assert_eq!(long(&block, 0x60 + 24), 0xa_0000);
        assert_eq!(long(&block, 0x60 + 24 + 16), 2);
        assert_eq!(block.len(), 0x60 + 24 * e820.len());
    }

    #[test]
    fn without_an_initramfs_there_is_no_module() {
        let block = start_info(&[], (Gpa(0x2_0000), 0), None, Gpa(0xe_0000)).unwrap();
        assert_eq!((long(&block, 8), long(&block, 16)), (0, 0));
    }

    #[test]
    fn largest_block_fits_its_page() {
        let entry = E820Entry {
            range: GpaRange::constant(0, 1),
            kind: E820Kind::Ram,
        };
        let build = |n| start_info(&vec![entry; n], (Gpa(0), 0), None, Gpa(0));
        assert!(build(128).unwrap().len() as u64 <= PAGE_SIZE);
        assert_eq!(build(129), Err(BootError::TooManyE820(129)));
    }
}
