//! The registers with which the first vCPU starts, and the descriptor and page tables they point to.
//!
//! Plain values: the caller carries them over into its own register structures. Registers that are not named
//! are zero. Only the first vCPU gets them; the others wait for INIT and SIPI in their reset state.

use alloc::vec::Vec;
use core::iter;

use serde::Serialize;

use super::{GDT, PAGE_TABLES, STACK};
use crate::Gpa;
use crate::addr::LARGE_PAGE_SIZE;

const CODE32: u16 = 0x08;
const CODE64: u16 = 0x10;
const DATA: u16 = 0x18;
const TSS: u16 = 0x20;
const GDT_ENTRIES: usize = 6;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Bit 1 of RFLAGS always reads one; interrupts are off.
const RFLAGS: u64 = 2;

/// Segment register contents, hidden part included. The fields are those of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// Linear base address.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub base: u64,
    /// Limit in bytes, granularity applied.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub limit: u32,
    /// Selector.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub selector: u16,
    /// Type, four bits (SDM volume 3, 3.5).
    pub kind: u8,
    /// Present (0 or 1, as all that follow but `dpl`).
    pub present: u8,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Default operation size.
    pub db: u8,
    /// Code or data, not system.
    pub s: u8,
    /// 64-bit code.
    pub l: u8,
    /// Granularity: the descriptor's limit counts pages.
    pub g: u8,
}

impl Segment {
    /// A segment over all 4 GiB.
    const fn flat(selector: u16, kind: u8) -> Self {
        Self {
            base: 0,
            limit: u32::MAX,
            selector,
            kind,
            present: 1,
            dpl: 0,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
        }
    }

    const CODE32: Self = Self::flat(CODE32, 0xb);
    const CODE64: Self = Self {
        db: 0,
        l: 1,
        ..Self::flat(CODE64, 0xb)
    };
    const DATA: Self = Self::flat(DATA, 0x3);
    /// A busy task state segment, which a vCPU must have in protected mode (SDM volume 3, 27.3.1.2).
    const TSS: Self = Self {
        limit: 0x67,
        db: 0,
        s: 0,
        g: 0,
        ..Self::flat(TSS, 0xb)
    };

    /// A real-mode segment as after reset.
    const fn real(selector: u16, base: u64, kind: u8) -> Self {
        Self {
            base,
            limit: 0xffff,
            selector,
            kind,
            present: 1,
            dpl: 0,
            db: 0,
            s: 1,
            l: 0,
            g: 0,
        }
    }

    /// The eight bytes of the segment's descriptor, with a base of zero.
    const fn descriptor(self) -> u64 {
        let limit = if self.g == 1 {
            self.limit >> 12
        } else {
            self.limit
        } as u64;
        let access = self.kind as u64
            | (self.s as u64) << 4
            | (self.dpl as u64) << 5
            | (self.present as u64) << 7;
        let flags = (self.l as u64) << 1 | (self.db as u64) << 2 | (self.g as u64) << 3;
        (limit & 0xffff) | access << 40 | (limit >> 16) << 48 | flags << 52
    }
}

/// What the first vCPU starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InitialRegisters {
    /// Instruction pointer.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub rip: u64,
    /// Stack pointer.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub rsp: u64,
    /// Boot protocol of Linux: the zero page.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub rsi: u64,
    /// PVH: the start_info structure.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub rbx: u64,
    /// Flags.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub rflags: u64,
    /// Control register 0.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub cr0: u64,
    /// Control register 3: the page tables.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub cr3: u64,
    /// Control register 4.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub cr4: u64,
    /// Extended feature enable register.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS alike.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Base of the global descriptor table.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub gdt_base: u64,
    /// Its limit: bytes less one. The interrupt descriptor table has base 0 and limit 0, or after reset the
    /// same limit as this.
    #[serde(serialize_with = "crate::hex::serialize")]
    pub gdt_limit: u16,
}

/// Bytes of the table that [`gdt_bytes`] gives, less one.
const GDT_LIMIT: u16 = 6 * 8 - 1;

impl InitialRegisters {
    /// The 64-bit entry of Linux: long mode over [`page_tables`], RSI holds the zero page.
    #[must_use]
    pub const fn long_mode(entry: Gpa, zero_page: Gpa) -> Self {
        Self {
            rip: entry.0,
            rsp: STACK.0,
            rsi: zero_page.0,
            rbx: 0,
            rflags: RFLAGS,
            cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
            cr3: PAGE_TABLES.0,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            cs: Segment::CODE64,
            data: Segment::DATA,
            tr: Segment::TSS,
            gdt_base: GDT.0,
            gdt_limit: GDT_LIMIT,
        }
    }

    /// The PVH entry: 32-bit protected mode without paging, EBX holds the start_info.
    #[must_use]
    pub const fn pvh(entry: Gpa, start_info: Gpa) -> Self {
        Self {
            rsi: 0,
            rbx: start_info.0,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: Segment::CODE32,
            ..Self::long_mode(entry, Gpa(0))
        }
    }

    /// The state after reset: real mode, 16 bytes below 4 GiB. A new vCPU has it anyway.
    #[must_use]
    pub const fn reset_vector() -> Self {
        Self {
            rip: 0xfff0,
            rsp: 0,
            rsi: 0,
            rbx: 0,
            rflags: RFLAGS,
            // Caching is off until firmware switches it on.
            cr0: CR0_ET | 1 << 29 | 1 << 30,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: Segment::real(0xf000, 0xffff_0000, 0xb),
            data: Segment::real(0, 0, 0x3),
            tr: Segment {
                s: 0,
                ..Segment::real(0, 0, 0xb)
            },
            gdt_base: 0,
            gdt_limit: 0xffff,
        }
    }
}

/// The global descriptor table for [`GDT`]: null, 32-bit code, 64-bit code, data, task state (16 bytes).
///
/// 64-bit code and data have the selectors that Linux asks for (`__BOOT_CS`, `__BOOT_DS`).
#[must_use]
pub fn gdt_bytes() -> [u8; GDT_ENTRIES * 8] {
    let entries: [u64; GDT_ENTRIES] = [
        0,
        Segment::CODE32.descriptor(),
        Segment::CODE64.descriptor(),
        Segment::DATA.descriptor(),
        Segment::TSS.descriptor(),
        0,
    ];
    let mut bytes = [0; GDT_ENTRIES * 8];
    for (slot, entry) in bytes.chunks_exact_mut(8).zip(entries) {
        slot.copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

/// Present and writable.
const TABLE: u64 = 0b11;

/// Present, writable, a page of 2 MiB.
const LARGE_PAGE: u64 = 0b1000_0011;

/// Page tables for [`PAGE_TABLES`] (24 KiB): the first 4 GiB mapped to themselves by pages of 2 MiB.
#[must_use]
pub fn page_tables() -> Vec<u8> {
    const TABLES: usize = 6;
    let page = |number: u64| PAGE_TABLES.0 + number * 0x1000;
    let root = iter::once(page(1) | TABLE).chain(iter::repeat_n(0, 511));
    let directories = (0..4).map(|directory| page(2 + directory) | TABLE);
    let directories = directories.chain(iter::repeat_n(0, 508));
    let large = (0..4 * 512).map(|large| (large * LARGE_PAGE_SIZE) | LARGE_PAGE);
    // Made in place and at once: on some hosts each page that is touched on the way costs as much as all
    // the rest of this.
    let mut bytes = Vec::with_capacity(TABLES * 0x1000);
    for entry in root.chain(directories).chain(large) {
        bytes.extend_from_slice(&entry.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{COMMAND_LINE, ZERO_PAGE};

    fn entry(tables: &[u8], at: u64) -> u64 {
        let offset = usize::try_from(at - PAGE_TABLES.0).unwrap();
        u64::from_le_bytes(tables[offset..offset + 8].try_into().unwrap())
    }

    /// Walks the tables as a processor does.
    fn translate(tables: &[u8], address: u64) -> Option<u64> {
        let index = |level: u32| (address >> (12 + 9 * level) & 0x1ff) * 8;
        let mut table = PAGE_TABLES.0;
        for level in [3, 2] {
            let found = entry(tables, table + index(level));
            if found & 1 == 0 {
                return None;
            }
            table = found & !0xfff;
        }
        let found = entry(tables, table + index(1));
        (found & 0x81 == 0x81).then_some((found & !0x1f_ffff) | (address & 0x1f_ffff))
    }

    #[test]
    fn first_four_gib_are_mapped_to_themselves_and_no_more() {
        let tables = page_tables();
        for address in [
            0,
            0xfff,
            0x10_0000,
            0x3fff_ffff,
            0x4000_0000,
            0x8123_4567,
            0xffff_ffff,
        ] {
            assert_eq!(translate(&tables, address), Some(address), "{address:#x}");
        }
        assert_eq!(translate(&tables, 0x1_0000_0000), None);
        assert!(PAGE_TABLES.0 + (tables.len() as u64) < COMMAND_LINE.start().0);
    }

    #[test]
    fn descriptors_say_what_the_segment_registers_say() {
        let gdt = gdt_bytes();
        let at = |selector: u16| {
            let offset = usize::from(selector);
            u64::from_le_bytes(gdt[offset..offset + 8].try_into().unwrap())
        };
        // SDM volume 3, figure 3-8, by hand.
        assert_eq!(at(CODE32), 0x00cf_9b00_0000_ffff);
        assert_eq!(at(CODE64), 0x00af_9b00_0000_ffff);
        assert_eq!(at(DATA), 0x00cf_9300_0000_ffff);
        assert_eq!(at(TSS), 0x0000_8b00_0000_0067);
        assert_eq!(usize::from(GDT_LIMIT) + 1, gdt.len());
    }

    #[test]
    fn long_mode_enters_with_paging_and_the_zero_page() {
        let registers = InitialRegisters::long_mode(Gpa(0x100_0200), ZERO_PAGE);
        assert_eq!((registers.rip, registers.rsi), (0x100_0200, 0x7000));
        assert_eq!(
            (registers.cr0, registers.cr4, registers.efer),
            (0x8000_0031, 0x20, 0x500)
        );
        assert_eq!(
            (registers.cs.selector, registers.data.selector),
            (0x10, 0x18)
        );
    }

    #[test]
    fn pvh_enters_protected_mode_without_paging() {
        let registers = InitialRegisters::pvh(Gpa(0x100_0000), Gpa(0x6000));
        assert_eq!((registers.rbx, registers.rsi), (0x6000, 0));
        assert_eq!((registers.cr0, registers.cr4, registers.efer), (0x11, 0, 0));
        assert_eq!(
            (registers.cs.l, registers.cs.db, registers.rflags),
            (0, 1, 2)
        );
    }

    #[test]
    fn reset_vector_is_sixteen_bytes_below_four_gib() {
        let registers = InitialRegisters::reset_vector();
        assert_eq!(registers.cs.base + registers.rip, 0xffff_fff0);
    }
}
