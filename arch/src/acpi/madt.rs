//! MADT, revision 5 (5.2.12): local APICs, the I/O APIC, the NMI pins.
//!
//! There is no PC/AT dual 8259, hence the flags are zero, and no interrupt source override: the DSDT names the
//! I/O APIC's pins itself, with their trigger mode.

use super::AcpiInput;
use super::sdt::Sdt;
use crate::map;

const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
const MULTIPROCESSOR_WAKEUP: u8 = 16;

/// Processors from this APIC id on are described as x2APIC (5.2.12.12).
const FIRST_X2APIC_ID: u32 = 255;

const ENABLED: u32 = 1;

pub(super) fn table(input: &AcpiInput) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 5);
    madt.u32(low_u32(map::LAPIC));
    madt.u32(0);

    for id in 0..input.vcpus {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_X2APIC_ID => {
                madt.bytes(&[LOCAL_APIC, 8, short, short]);
                madt.u32(ENABLED);
            }
            _ => {
                madt.bytes(&[LOCAL_X2APIC, 16, 0, 0]);
                madt.u32(id);
                madt.u32(ENABLED);
                madt.u32(id);
            }
        }
    }

    // Id 0, pins from global system interrupt 0.
    madt.bytes(&[IO_APIC, 12, 0, 0]);
    madt.u32(low_u32(map::IOAPIC));
    madt.u32(0);

    // Local interrupt 1 of all processors is the NMI; polarity and trigger as the bus has it.
    madt.bytes(&[LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    if input.vcpus > FIRST_X2APIC_ID {
        madt.bytes(&[
            LOCAL_X2APIC_NMI,
            12,
            0,
            0,
            0xff,
            0xff,
            0xff,
            0xff,
            1,
            0,
            0,
            0,
        ]);
    }

    if let Some(mailbox) = input.wakeup_mailbox {
        madt.bytes(&[MULTIPROCESSOR_WAKEUP, 16, 0, 0, 0, 0, 0, 0]);
        madt.u64(mailbox.0);
    }
    madt
}

/// The start of a range below 4 GiB.
fn low_u32(range: crate::GpaRange) -> u32 {
    u32::try_from(range.start().0).unwrap_or(u32::MAX)
}
