//! The zero page of the Linux x86 boot protocol (`struct boot_params`).
//!
//! Offsets are those of Documentation/arch/x86/zero-page.rst and boot.rst. The setup header comes from the
//! kernel file and is taken over as far as it says it reaches; the fields that a boot loader fills in are
//! set here.

use super::{BootError, COMMAND_LINE, MAX_E820_ENTRIES};
use crate::e820::{E820Entry, ENTRY_SIZE};
use crate::{Gpa, GpaRange};

/// Bytes of the zero page.
pub const ZERO_PAGE_SIZE: usize = 4096;

/// Where the setup header starts, in the kernel file and in the zero page.
pub const SETUP_HEADER_OFFSET: usize = 0x1f1;

const ACPI_RSDP_ADDR: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const EXT_CMD_LINE_PTR: usize = 0x0c8;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_LENGTH: usize = 0x201;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;

/// The header may not reach past this: `edd_mbr_sig_buffer` follows.
const SETUP_HEADER_LIMIT: usize = 0x290;

/// "HdrS".
const MAGIC: [u8; 4] = *b"HdrS";

/// The first protocol version whose header has `cmdline_size`.
const VERSION_WITH_CMDLINE_SIZE: u16 = 0x0206;

/// The version stated for a kernel that comes without a header (an ELF file).
const VERSION_STATED: u16 = 0x020f;

/// "undefined": a loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;

/// `LOADED_HIGH`: the protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;

/// Makes the zero page.
///
/// `setup_header` holds the bytes of the kernel file from [`SETUP_HEADER_OFFSET`] (it may be longer than the
/// header), or nothing for a kernel that has none. `cmdline` is the address of the command line and its
/// length without the zero byte that ends it.
///
/// # Errors
///
/// If there are too many `e820` entries, the command line is longer than the kernel takes, or the header is
/// none.
pub fn zero_page(
    setup_header: &[u8],
    e820: &[E820Entry],
    cmdline: (Gpa, u32),
    initramfs: Option<GpaRange>,
    rsdp: Gpa,
) -> Result<[u8; ZERO_PAGE_SIZE], BootError> {
    if e820.len() > MAX_E820_ENTRIES {
        return Err(BootError::TooManyE820(e820.len()));
    }
    let mut page = [0; ZERO_PAGE_SIZE];
    let max = copy_header(&mut page, setup_header)?;
    let (cmdline_at, cmdline_len) = cmdline;
    if u64::from(cmdline_len) > max {
        return Err(BootError::CommandLineTooLong {
            len: cmdline_len.into(),
            max,
        });
    }

    page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    page[LOADFLAGS] |= LOADED_HIGH;
    put_split(&mut page, CMD_LINE_PTR, EXT_CMD_LINE_PTR, cmdline_at.0);
    if let Some(range) = initramfs {
        put_split(&mut page, RAMDISK_IMAGE, EXT_RAMDISK_IMAGE, range.start().0);
        put_split(&mut page, RAMDISK_SIZE, EXT_RAMDISK_SIZE, range.len());
    }
    page[ACPI_RSDP_ADDR..][..8].copy_from_slice(&rsdp.0.to_le_bytes());
    for (slot, entry) in page[E820_TABLE..].chunks_exact_mut(ENTRY_SIZE).zip(e820) {
        slot.copy_from_slice(&entry.to_bytes());
    }
    page[E820_ENTRIES] =
        u8::try_from(e820.len()).map_err(|_| BootError::TooManyE820(e820.len()))?;
    Ok(page)
}

/// Copies the header, or states a least one; gives the longest command line allowed.
fn copy_header(page: &mut [u8; ZERO_PAGE_SIZE], header: &[u8]) -> Result<u64, BootError> {
    let room = COMMAND_LINE.len() - 1;
    if header.is_empty() {
        page[BOOT_FLAG..][..2].copy_from_slice(&0xaa55u16.to_le_bytes());
        page[HEADER_MAGIC..][..4].copy_from_slice(&MAGIC);
        page[VERSION..][..2].copy_from_slice(&VERSION_STATED.to_le_bytes());
        return Ok(room);
    }
    let field = |offset: usize, len: usize| {
        let start = offset - SETUP_HEADER_OFFSET;
        header
            .get(start..start + len)
            .ok_or(BootError::SetupHeader("it is cut short"))
    };
    if field(HEADER_MAGIC, 4)? != MAGIC {
        return Err(BootError::SetupHeader("it lacks the signature HdrS"));
    }
    let version = field(VERSION, 2)?;
    let version = u16::from_le_bytes([version[0], version[1]]);
    if version < VERSION_WITH_CMDLINE_SIZE {
        return Err(BootError::SetupHeader(
            "its boot protocol is older than 2.06",
        ));
    }
    let size = field(CMDLINE_SIZE, 4)?;
    let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]);
    // boot.rst: the header ends at 0x202 plus the byte at 0x201, the length of the jump over it.
    let end = (HEADER_MAGIC + usize::from(field(JUMP_LENGTH, 1)?[0])).min(SETUP_HEADER_LIMIT);
    let len = end.saturating_sub(SETUP_HEADER_OFFSET).min(header.len());
    page[SETUP_HEADER_OFFSET..][..len].copy_from_slice(&header[..len]);
    Ok(room.min(size.into()))
}

/// Puts the low half of `value` at `low` and the high half at `high`.
fn put_split(page: &mut [u8; ZERO_PAGE_SIZE], low: usize, high: usize, value: u64) {
    let bytes = value.to_le_bytes();
    page[low..][..4].copy_from_slice(&bytes[..4]);
    page[high..][..4].copy_from_slice(&bytes[4..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820::{E820Kind, boot_map};
    use crate::{RamLayout, map};

    /// A header as a kernel of protocol 2.15 has it, followed by code.
    fn header() -> Vec<u8> {
        let mut bytes = vec![0xcc; 0x200];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset - SETUP_HEADER_OFFSET..][..value.len()].copy_from_slice(value);
        };
        put(0x1f1, &[40]);
        put(JUMP_LENGTH, &[0x6a]);
        put(HEADER_MAGIC, b"HdrS");
        put(VERSION, &[0x0f, 0x02]);
        put(LOADFLAGS, &[0x01]);
        put(CMDLINE_SIZE, &2047u32.to_le_bytes());
        bytes
    }

    fn word(page: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(page[offset..offset + 4].try_into().unwrap())
    }

    #[test]
    fn zero_page_holds_what_the_boot_protocol_asks_of_a_loader() {
        let ram = RamLayout::new(1 << 30).unwrap();
        let e820 = boot_map(&ram, map::ACPI_AREA);
        let initramfs = Some(GpaRange::constant(0x3000_0000, 0x1234));
        let page = zero_page(
            &header(),
            &e820,
            (Gpa(0x2_0000), 9),
            initramfs,
            Gpa(0xe_0000),
        )
        .unwrap();
        assert_eq!(page[TYPE_OF_LOADER], 0xff);
        assert_eq!(word(&page, CMD_LINE_PTR), 0x2_0000);
        assert_eq!(
            (word(&page, RAMDISK_IMAGE), word(&page, RAMDISK_SIZE)),
            (0x3000_0000, 0x1234)
        );
        assert_eq!(word(&page, ACPI_RSDP_ADDR), 0xe_0000);
        assert_eq!(usize::from(page[E820_ENTRIES]), e820.len());
        assert_eq!(page[E820_TABLE..][..20], e820[0].to_bytes());
        assert_eq!(page[E820_TABLE + 20..][..20], e820[1].to_bytes());
    }

    #[test]
    fn bytes_past_the_end_of_the_header_are_not_taken_over() {
        let page = zero_page(&header(), &[], (Gpa(0x2_0000), 0), None, Gpa(0)).unwrap();
        assert_eq!(page[0x1f1], 40);
        assert_eq!(page[0x202 + 0x69], 0xcc);
        assert_eq!(page[0x202 + 0x6a], 0);
        // The sentinel must be zero, or the kernel clears fields that it distrusts.
        assert_eq!(page[0x1ef], 0);
    }

    #[test]
    fn command_line_longer_than_the_kernel_takes_is_refused() {
        let build = |len| zero_page(&header(), &[], (Gpa(0x2_0000), len), None, Gpa(0));
        assert!(build(2047).is_ok());
        assert_eq!(
            build(2048),
            Err(BootError::CommandLineTooLong {
                len: 2048,
                max: 2047
            })
        );
        let headless = zero_page(&[], &[], (Gpa(0x2_0000), 0x1_0000), None, Gpa(0));
        assert_eq!(
            headless,
            Err(BootError::CommandLineTooLong {
                len: 0x1_0000,
                max: 0xffff
            })
        );
    }

    #[test]
    fn header_without_signature_or_cut_short_is_refused() {
        let mut bad = header();
        bad[HEADER_MAGIC - SETUP_HEADER_OFFSET] = b'X';
        assert!(matches!(
            zero_page(&bad, &[], (Gpa(0), 0), None, Gpa(0)),
            Err(BootError::SetupHeader(_))
        ));
        for len in 1..0x4b {
            assert!(
                zero_page(&header()[..len], &[], (Gpa(0), 0), None, Gpa(0)).is_err(),
                "{len}"
            );
        }
    }

    #[test]
    fn more_than_128_ranges_are_refused() {
        let entry = E820Entry {
            range: GpaRange::constant(0, 1),
            kind: E820Kind::Ram,
        };
        let build = |n| zero_page(&[], &vec![entry; n], (Gpa(0), 0), None, Gpa(0));
        assert_eq!(build(128).map(|page| page[E820_ENTRIES]), Ok(128));
        assert_eq!(build(129), Err(BootError::TooManyE820(129)));
    }
}
