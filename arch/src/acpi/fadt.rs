//! FADT, revision 6 (5.2.9): a hardware-reduced machine with a reset register, sleep registers and the PM timer.
//!
//! Hardware-reduced means no SCI, no fixed events, no PIC, PIT or HPET that the operating system would have to
//! find: Linux then uses the local APIC and I/O APIC alone. It still reads the PM timer block from here.

use super::sdt::Sdt;
use crate::map::port;

/// Where the 64-bit address of the DSDT lies.
pub(super) const X_DSDT: usize = 140;

const MINOR_REVISION: u8 = 5;

/// RTC register that holds the century.
const RTC_CENTURY: u8 = 0x32;

/// A latency above 100 (C2) and 1000 (C3) microseconds says that the state is not supported.
const NO_C_STATE: u16 = 0xfff;

/// IAPC_BOOT_ARCH (5.2.9.3): no VGA. Clear: legacy devices, an 8042, MSIs not supported, no CMOS RTC.
const BOOT_ARCH: u16 = 1 << 2;

/// Fixed feature flags (5.2.9.2).
mod flags {
    pub const WBINVD: u32 = 1 << 0;
    pub const PROC_C1: u32 = 1 << 2;
    /// No power button of the fixed kind.
    pub const PWR_BUTTON: u32 = 1 << 4;
    /// No sleep button of the fixed kind.
    pub const SLP_BUTTON: u32 = 1 << 5;
    /// The RTC has no wake status in the fixed registers.
    pub const FIX_RTC: u32 = 1 << 6;
    /// The PM timer has 32 bits.
    pub const RESET_REG_SUP: u32 = 1 << 10;
    pub const HW_REDUCED_ACPI: u32 = 1 << 20;
}

const FLAGS: u32 = flags::WBINVD
    | flags::PROC_C1
    | flags::PWR_BUTTON
    | flags::SLP_BUTTON
    | flags::FIX_RTC
    | flags::RESET_REG_SUP
    | flags::HW_REDUCED_ACPI;

/// Port 0xcf9: reset the processor, full reset.
const RESET_VALUE: u8 = 6;

const PM_TIMER: u16 = port::PMBASE + 8;

pub(super) fn table() -> Sdt {
    let mut fadt = Sdt::new(*b"FACP", 6);
    fadt.zero_to(76); // PM_TMR_BLK
    fadt.u32(PM_TIMER.into());
    fadt.zero_to(91); // PM_TMR_LEN
    fadt.u8(4);
    fadt.zero_to(96); // P_LVL2_LAT, P_LVL3_LAT
    fadt.u16(NO_C_STATE);
    fadt.u16(NO_C_STATE);
    fadt.zero_to(108);
    fadt.u8(RTC_CENTURY);
    fadt.u16(BOOT_ARCH);
    fadt.zero_to(112);
    fadt.u32(FLAGS);
    fadt.port(port::RESET, 8);
    fadt.u8(RESET_VALUE);
    fadt.zero_to(131);
    fadt.u8(MINOR_REVISION);
    fadt.zero_to(208); // X_PM_TMR_BLK
    fadt.port(PM_TIMER, 32);
    fadt.zero_to(244);
    fadt.port(port::SLEEP_CONTROL, 8);
    fadt.port(port::SLEEP_CONTROL + 1, 8);
    fadt.bytes(b"TDVMM\0\0\0"); // hypervisor vendor identity
    fadt
}
