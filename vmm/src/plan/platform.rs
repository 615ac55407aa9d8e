//! The devices that every machine has, and where they stand: the least of a Q35 that firmware and kernels
//! need.

use serde::Serialize;
use tdvmm_arch::map::{self, port};
use tdvmm_devices::debugcon::DebugCon;
use tdvmm_devices::fwcfg::FwCfg;
use tdvmm_devices::pci::ConfigMechanism1;
use tdvmm_devices::pit::StoppedTimer;
use tdvmm_devices::pm::PowerBlock;
use tdvmm_devices::reset::{I8042, Port92};
use tdvmm_devices::rtc::Rtc;
use tdvmm_devices::serial::Serial;

/// A device of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// First serial port.
    Com1,
    /// CMOS and real-time clock.
    Rtc,
    /// Ports of an interval timer that stands still.
    Timer,
    /// What is left of a keyboard controller: its reset command.
    I8042,
    /// Fast A20 gate and reset.
    Port92,
    /// PCI configuration mechanism 1, with the reset control register in its midst.
    PciConfig,
    /// Power management: PM1 event and control, timer, sleep control.
    PowerBlock,
    /// What firmware is given by name.
    FwCfg,
    /// Debug output of firmware.
    DebugCon,
    /// I/O APIC.
    IoApic,
    /// PCI configuration space as memory.
    Ecam,
    /// Memory BARs of PCI functions.
    PciWindow,
}

/// Which address space a device stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// I/O ports.
    Port,
    /// Guest-physical memory.
    Memory,
}

/// A device at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Which device.
    pub device: Device,
    /// In which space.
    pub space: Space,
    /// First address or port.
    pub base: u64,
    /// How many there are.
    pub len: u64,
}

/// The devices of a machine, with or without a serial port and what firmware needs.
#[must_use]
pub fn places(with_serial: bool, with_firmware: bool) -> Vec<Place> {
    let at = |device, base: u16, len| Place {
        device,
        space: Space::Port,
        base: base.into(),
        len,
    };
    let memory = |device, range: tdvmm_arch::GpaRange| Place {
        device,
        space: Space::Memory,
        base: range.start().0,
        len: range.len(),
    };
    let mut places = vec![
        at(Device::Timer, port::TIMER, StoppedTimer::PORTS),
        at(Device::I8042, port::I8042, I8042::PORTS),
        at(Device::Rtc, port::RTC, Rtc::PORTS),
        at(Device::Port92, port::PORT92, Port92::PORTS),
        at(Device::PowerBlock, port::PMBASE, PowerBlock::PORTS),
        at(Device::PciConfig, port::PCI_CONFIG, ConfigMechanism1::PORTS),
        memory(Device::IoApic, map::IOAPIC),
        memory(Device::Ecam, map::ECAM),
        memory(Device::PciWindow, map::PCI_WINDOW),
    ];
    if with_serial {
        places.push(at(Device::Com1, port::COM1, Serial::PORTS));
    }
    if with_firmware {
        places.push(at(Device::FwCfg, port::FW_CFG, FwCfg::PORTS));
        places.push(at(Device::DebugCon, port::DEBUG_CON, DebugCon::PORTS));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_devices_share_an_address() {
        let places = places(true, true);
        for (at, one) in places.iter().enumerate() {
            for other in &places[at + 1..] {
                let apart = one.base + one.len <= other.base || other.base + other.len <= one.base;
                assert!(one.space != other.space || apart, "{one:?} {other:?}");
            }
        }
    }
}
