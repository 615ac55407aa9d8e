//! DSDT: the same bytes in every machine.
//!
//! It has no operation region and no method: nothing in it can touch a TD's memory, and its hash can be
//! published. PCI functions are found by scanning the bus, processors by the MADT. The text form is in
//! `arch/tests/golden/dsdt.dsl`.

use alloc::vec::Vec;

use super::aml::{self, Window};
use super::mcfg;
use super::sdt::Sdt;
use crate::map::{self, gsi, port};

/// Sleep type of S5: any value does for the sleep control register, which knows no other state.
const SLEEP_TYPE_S5: u32 = 5;

/// Revision 2 makes AML integers 64 bits wide (19.6.29).
const REVISION: u8 = 2;

pub(super) fn table() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", REVISION);
    let zero = || aml::integer(0);
    let sleep = aml::package(&[aml::integer(SLEEP_TYPE_S5), zero(), zero(), zero()]);
    dsdt.bytes(&aml::name(b"_S5_", &sleep));
    dsdt.bytes(&aml::scope(
        b"_SB_",
        &[pci_host(), reserved(), com1(), rtc()],
    ));
    dsdt
}

/// The PCI Express root. Without `_OSC` the operating system leaves PCI Express features as they are.
fn pci_host() -> Vec<u8> {
    let window = map::PCI_WINDOW;
    aml::device(
        b"PCI0",
        &[
            aml::name(b"_HID", &aml::pnp_id(0x0a08)),
            aml::name(b"_CID", &aml::pnp_id(0x0a03)),
            aml::name(b"_UID", &aml::integer(0)),
            aml::name(b"_SEG", &aml::integer(0)),
            aml::name(b"_BBN", &aml::integer(0)),
            aml::name(
                b"_CRS",
                &aml::resources(&[
                    aml::word_window(Window::Bus, 0, mcfg::LAST_BUS.into()),
                    aml::io(port::PCI_CONFIG, 8),
                    aml::word_window(Window::Io, 0, port::PCI_CONFIG - 1),
                    aml::word_window(Window::Io, port::PCI_CONFIG + 8, 0xffff),
                    aml::dword_window(
                        Window::Memory,
                        low_u32(window.start().0),
                        low_u32(window.end().0 - 1),
                    ),
                ]),
            ),
        ],
    )
}

/// Motherboard resources: the ECAM, which Linux uses only if it is reserved here.
fn reserved() -> Vec<u8> {
    let ecam = aml::memory32_fixed(low_u32(map::ECAM.start().0), low_u32(map::ECAM.len()));
    aml::device(
        b"ECAM",
        &[
            aml::name(b"_HID", &aml::pnp_id(0x0c02)),
            aml::name(b"_UID", &aml::integer(0)),
            aml::name(b"_CRS", &aml::resources(&[ecam])),
        ],
    )
}

/// The first serial port.
fn com1() -> Vec<u8> {
    aml::device(
        b"COM1",
        &[
            aml::name(b"_HID", &aml::pnp_id(0x0501)),
            aml::name(b"_UID", &aml::integer(0)),
            aml::name(
                b"_CRS",
                &aml::resources(&[aml::io(port::COM1, 8), aml::edge_interrupt(gsi::COM1)]),
            ),
        ],
    )
}

/// The clock. It has no interrupt: an alarm that never rings would make programs wait for it.
fn rtc() -> Vec<u8> {
    aml::device(
        b"RTC0",
        &[
            aml::name(b"_HID", &aml::pnp_id(0x0b00)),
            aml::name(b"_CRS", &aml::resources(&[aml::io(port::RTC, 2)])),
        ],
    )
}

/// An address below 4 GiB.
fn low_u32(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}
