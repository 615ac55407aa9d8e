//! What a directly started kernel finds in memory and in its registers.

use tdvmm_arch::Gpa;
use tdvmm_arch::acpi::AcpiTables;
use tdvmm_arch::boot::reset::{self, RESET_STUB};
use tdvmm_arch::boot::{
    self, BootError, COMMAND_LINE, GDT, InitialRegisters, PAGE_TABLES, START_INFO, ZERO_PAGE,
    linux, pvh,
};

use super::KernelPlan;
use crate::payload::KernelKind;

/// How a loaded kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit entry point, with the zero page.
    Linux64(Gpa),
    /// The PVH entry point, with the start_info.
    Pvh(Gpa),
}

/// Bytes for guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where they go.
    pub at: Gpa,
    /// What goes there.
    pub bytes: Vec<u8>,
}

impl KernelPlan {
    /// What is written to guest memory beside the kernel and the initramfs, and the registers of the first
    /// vCPU, for a kernel that is entered at `entry`.
    ///
    /// # Errors
    ///
    /// If the boot parameters cannot be made; [`super::Plan::new`] has seen to it that they can.
    pub fn hand_over(
        &self,
        entry: Entry,
        acpi: &AcpiTables,
    ) -> Result<(Vec<Write>, InitialRegisters), BootError> {
        let parameters = self.parameters(acpi.rsdp_at)?;
        let mut cmdline = self.cmdline.clone().into_bytes();
        cmdline.push(0);
        let mut writes = vec![
            Write {
                at: COMMAND_LINE.start(),
                bytes: cmdline,
            },
            Write {
                at: GDT,
                bytes: boot::gdt_bytes().to_vec(),
            },
            Write {
                at: RESET_STUB,
                bytes: reset::stub_bytes().to_vec(),
            },
            Write {
                at: acpi.rsdp_at,
                bytes: acpi.rsdp.to_vec(),
            },
            Write {
                at: acpi.blob_at,
                bytes: acpi.blob.clone(),
            },
        ];
        let registers = match entry {
            Entry::Linux64(entry) => {
                writes.push(Write {
                    at: ZERO_PAGE,
                    bytes: parameters.zero_page,
                });
                writes.push(Write {
                    at: PAGE_TABLES,
                    bytes: boot::page_tables(),
                });
                InitialRegisters::long_mode(entry, ZERO_PAGE)
            }
            Entry::Pvh(entry) => {
                writes.push(Write {
                    at: START_INFO,
                    bytes: parameters.start_info,
                });
                InitialRegisters::pvh(entry, START_INFO)
            }
        };
        Ok((writes, registers))
    }

    /// The boot parameters in the form of each protocol.
    pub(super) fn parameters(&self, rsdp: Gpa) -> Result<Parameters, BootError> {
        let header = match &self.kind {
            KernelKind::BzImage { setup_header } => setup_header.as_slice(),
            KernelKind::Elf { .. } => &[],
        };
        let len = u32::try_from(self.cmdline.len()).unwrap_or(u32::MAX);
        let cmdline = (COMMAND_LINE.start(), len);
        Ok(Parameters {
            zero_page: linux::zero_page(header, &self.e820, cmdline, self.initramfs, rsdp)?
                .to_vec(),
            start_info: pvh::start_info(&self.e820, cmdline, self.initramfs, rsdp)?,
        })
    }
}

/// Boot parameters.
pub(super) struct Parameters {
    /// For the Linux boot protocol.
    zero_page: Vec<u8>,
    /// For PVH.
    start_info: Vec<u8>,
}

/// The fields of a setup header that decide where things go. Linux: Documentation/arch/x86/boot.rst.
pub(super) struct SetupHeader<'a>(pub(super) &'a [u8]);

impl SetupHeader<'_> {
    /// The number at `offset` of the kernel file; 0 where an older header ends before it.
    fn number(&self, offset: usize, len: usize) -> u64 {
        let start = offset - linux::SETUP_HEADER_OFFSET;
        let bytes = self.0.get(start..start + len).unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// First address after the memory that a kernel loaded at `load` uses before it reads the memory map.
    ///
    /// A relocatable kernel that is loaded below its preferred address moves itself up to that.
    pub(super) fn needs_until(&self, load: Gpa) -> Gpa {
        let preferred = self.number(0x258, 8);
        let runs_at = preferred.max(load.0);
        Gpa(runs_at.saturating_add(self.number(0x260, 4)))
    }

    /// The longest command line that the kernel takes, without its NUL.
    pub(super) fn cmdline_max(&self) -> u64 {
        self.number(0x238, 4)
    }

    /// Last address that the initramfs may use.
    pub(super) fn initramfs_max(&self) -> u64 {
        self.number(0x22c, 4)
    }
}
