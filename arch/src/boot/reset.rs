//! What stands where a PC has its firmware's real-mode entry: code that asks the machine for a reset.
//!
//! A direct boot needs it. On hardware-reduced ACPI Linux reboots through EFI without looking whether there is
//! any (`efi_reboot_required()` in `reboot_init()`), and next jumps to f000:fff0 in real mode
//! (`machine_real_restart()`); the reset register of the FADT would come after that. Without code there, the
//! guest runs through empty memory for ever. Not needed any more once Linux asks `efi_enabled()` first.

use crate::Gpa;

/// Where the stub goes: f000:fff0, the last paragraph below 1 MiB.
pub const RESET_STUB: Gpa = Gpa(0xf_fff0);

/// The stub: writes 6 to port 0xcf9 (`map::port::RESET`), as the FADT says, and waits.
#[must_use]
pub const fn stub_bytes() -> [u8; 16] {
    [
        0xba, 0xf9, 0x0c, // mov dx, 0xcf9
        0xb0, 0x06, // mov al, 6
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
        0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, // nop, up to 1 MiB
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GpaRange;
    use crate::e820::{E820Kind, boot_map};
    use crate::{RamLayout, map};

    #[test]
    fn stub_writes_the_reset_register_that_the_fadt_names() {
        let stub = stub_bytes();
        assert_eq!(u16::from_le_bytes([stub[1], stub[2]]), map::port::RESET);
        assert_eq!((stub[3], stub[4], stub[5]), (0xb0, 6, 0xee));
        // The jump's offset counts from the byte after it.
        assert_eq!(9 + i32::from(stub[8].cast_signed()), 6);
    }

    #[test]
    fn stub_lies_in_memory_that_the_kernel_leaves_alone() {
        let stub = GpaRange::constant(RESET_STUB.0, 16);
        assert_eq!(stub.end(), map::BIOS_HOLE.end());
        let ram = RamLayout::new(crate::layout::MIN_SIZE).unwrap();
        assert!(ram.contains_range(stub));
        assert!(
            boot_map(&ram, map::ACPI_AREA)
                .iter()
                .any(|e| e.kind == E820Kind::Reserved && e.range.contains_range(stub))
        );
    }
}
