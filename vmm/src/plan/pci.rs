//! The PCI functions that were asked for: slots and interrupts in the order given, the same every time.

use serde::Serialize;
use tdvmm_arch::map::gsi::IOAPIC_PINS;

use crate::config::{Device, PciDevice};

/// The first slot for them; 0 is the host bridge's.
const FIRST_SLOT: u8 = 1;

/// A PCI function at its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    /// Slot on bus 0.
    pub slot: u8,
    /// Its name.
    pub id: String,
    /// What it is.
    pub device: Device,
    /// The KVM interrupt of its first MSI-X vector; those of the others follow.
    pub first_gsi: u32,
    /// How many MSI-X vectors it has: one for each queue, one for its configuration.
    pub vectors: u16,
}

/// Gives each of `devices` its place. There are as many at most as there are slots (`validate`).
#[must_use]
pub fn functions(devices: &[PciDevice]) -> Vec<Function> {
    let mut first_gsi = IOAPIC_PINS;
    (FIRST_SLOT..)
        .zip(devices)
        .map(|(slot, PciDevice { id, device })| {
            let vectors = queues(device).saturating_add(1);
            let function = Function {
                slot,
                id: id.clone(),
                device: device.clone(),
                first_gsi,
                vectors,
            };
            first_gsi = first_gsi.saturating_add(vectors.into());
            function
        })
        .collect()
}

fn queues(device: &Device) -> u16 {
    match device {
        Device::Disk(disk) => disk.num_queues,
        // Input and output.
        Device::Console(_) => 2,
        Device::Rng => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{VmConfig, parse_console, parse_disk, validate};

    #[test]
    fn devices_get_slots_and_interrupts_in_the_order_given() {
        let mut config = VmConfig::default();
        config.payload.kernel = Some("vmlinuz".into());
        config.disks = ["path=b,num_queues=3", "path=a,id=root"]
            .map(|text| parse_disk(text).unwrap())
            .into();
        config.rng = true;
        config.console = Some(parse_console("pty").unwrap());
        let functions = functions(&validate(&config).unwrap().devices);
        let places: Vec<_> = functions
            .iter()
            .map(|f| (f.slot, f.id.as_str(), f.first_gsi, f.vectors))
            .collect();
        let expected = [
            (1, "disk0", 24, 4),
            (2, "root", 28, 2),
            (3, "console", 30, 3),
            (4, "rng", 33, 2),
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn machine_without_devices_has_no_functions() {
        assert_eq!(functions(&[]), []);
    }
}
