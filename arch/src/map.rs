//! The address map: one rule for every memory size, ordinary VM and TD alike.
//!
//! ```text
//! 0            640K  1M                2G            3.5G          3.75G               4G
//! | low RAM    |hole | low RAM ...     | PCI window  | ECAM        | APICs, firmware   | high RAM ...
//! ```
//!
//! RAM up to 2 GiB lies below the PCI hole, all further RAM from 4 GiB up. The hole holds what
//! firmware and kernels expect of a Q35: the 32-bit PCI window, the ECAM at the place to which OVMF
//! moves it, the I/O APIC, the local APIC page, and the firmware image that ends at 4 GiB.

use crate::GpaRange;

/// Where RAM below 4 GiB ends at the latest, and the 32-bit PCI window starts.
pub const LOW_RAM_END: u64 = 0x8000_0000;

/// Where RAM above 4 GiB starts.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// From here up to 1 MiB a PC has no RAM that an operating system may use freely (EBDA, video
/// memory, option ROMs, firmware).
pub const BIOS_HOLE: GpaRange = GpaRange::constant(0xa_0000, 0x6_0000);

/// ACPI tables of a direct kernel boot: in the part of the BIOS hole that kernels search for the RSDP
/// (ACPI 6.5, 5.2.5.1). 124 KiB hold the tables of 4096 vCPUs; the page after it has the reset stub of
/// `boot::reset`.
pub const ACPI_AREA: GpaRange = GpaRange::constant(0xe_0000, 0x1_f000);

/// Memory BARs are placed here. OVMF does the same on a Q35 with 2 GiB of low RAM.
pub const PCI_WINDOW: GpaRange = GpaRange::constant(0x8000_0000, 0x6000_0000);

/// PCI configuration space of segment 0, buses 0 to 255. EDK2: PcdPciExpressBaseAddress of OVMF.
pub const ECAM: GpaRange = GpaRange::constant(0xe000_0000, 0x1000_0000);

/// The I/O APIC's registers.
pub const IOAPIC: GpaRange = GpaRange::constant(0xfec0_0000, 0x1000);

/// The local APIC page (KVM serves it in the kernel; a guest in x2APIC mode does not use it).
pub const LAPIC: GpaRange = GpaRange::constant(0xfee0_0000, 0x1000);

/// Firmware images end at this address.
pub const FIRMWARE_END: u64 = 0x1_0000_0000;

/// The largest firmware image that fits between the local APIC page and 4 GiB with room to spare.
pub const FIRMWARE_MAX: u64 = 16 << 20;

/// Intel processors without unrestricted guest need three pages for a task state segment; KVM wants
/// to be told where (`KVM_SET_TSS_ADDR`), and one for an identity map (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_TSS: GpaRange = GpaRange::constant(0xfeff_d000, 0x3000);

/// See [`KVM_TSS`].
pub const KVM_IDENTITY_MAP: GpaRange = GpaRange::constant(0xfeff_c000, 0x1000);

/// Port numbers of the chipset (`resources/platform.md` lists who uses them).
pub mod port {
    /// First port of the power management block: PM1 event, PM1 control at +4, timer at +8.
    pub const PMBASE: u16 = 0x600;
    /// Sleep control register of hardware-reduced ACPI (one byte), sleep status right after it.
    pub const SLEEP_CONTROL: u16 = 0x614;
    /// Reset control register.
    pub const RESET: u16 = 0xcf9;
    /// CMOS and real-time clock, index and data.
    pub const RTC: u16 = 0x70;
    /// First serial port.
    pub const COM1: u16 = 0x3f8;
    /// Interval timer: three counters and the control word.
    pub const TIMER: u16 = 0x40;
    /// Keyboard controller: data, and command/status four further on.
    pub const I8042: u16 = 0x60;
    /// PCI configuration mechanism 1, address register; the data register is four further on.
    pub const PCI_CONFIG: u16 = 0xcf8;
    /// fw_cfg: selector, data at +1, DMA address at +4 and +8.
    pub const FW_CFG: u16 = 0x510;
    /// Debug output of firmware.
    pub const DEBUG_CON: u16 = 0x402;
    /// Fast A20 gate and reset.
    pub const PORT92: u16 = 0x92;
}

/// Global system interrupts, which are I/O APIC pins.
pub mod gsi {
    /// Pins of the I/O APIC.
    pub const IOAPIC_PINS: u32 = 24;
    /// First serial port (ISA interrupt 4).
    pub const COM1: u32 = 4;
}
