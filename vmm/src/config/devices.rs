//! The devices that were asked for, as one checked list in the order of their PCI slots.

use std::collections::BTreeSet;

use serde::Serialize;

use super::console::Console;
use super::disk::Disk;
use super::{ConfigError, VmConfig};

/// Slots 1 to 30; the bridges have 0 and 31.
const MAX_DEVICES: usize = 30;
const MAX_ID: usize = 64;

/// A device that becomes a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// Its name: no other device has it; printable ASCII.
    pub id: String,
    /// What it is.
    pub device: Device,
}

/// Kinds of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// A virtio block device.
    Disk(Disk),
    /// A virtio console.
    Console(Console),
    /// A virtio entropy device.
    Rng,
}

/// Checks the devices.
///
/// # Errors
///
/// At the first value that cannot be.
pub(super) fn devices(config: &VmConfig) -> Result<Vec<PciDevice>, ConfigError> {
    let mut devices = Vec::new();
    for (number, disk) in config.disks.iter().enumerate() {
        devices.push(PciDevice {
            id: disk.id.clone().unwrap_or_else(|| format!("disk{number}")),
            device: Device::Disk(Disk::new(disk)?),
        });
    }
    let console = config.console.as_ref();
    let console = console.map(|console| Console::new(console, config.serial.as_ref()));
    if let Some(console) = console.transpose()?.flatten() {
        devices.push(named("console", Device::Console(console)));
    }
    if config.rng {
        devices.push(named("rng", Device::Rng));
    }
    if devices.len() > MAX_DEVICES {
        let count = devices.len().to_string();
        let problem = "devices are too many: a machine has 30 free PCI slots";
        return Err(ConfigError::option("--disk", count, problem));
    }
    let mut known = BTreeSet::new();
    for PciDevice { id, .. } in &devices {
        let problem = if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(is_plain) {
            "a name has 1 to 64 letters, digits, '-', '_' or '.'"
        } else if !known.insert(id) {
            "two devices have this name: give another id"
        } else {
            continue;
        };
        return Err(ConfigError::option("--disk", format!("id={id}"), problem));
    }
    Ok(devices)
}

fn named(id: &str, device: Device) -> PciDevice {
    PciDevice {
        id: id.to_owned(),
        device,
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::super::{parse_disk, validate};
    use super::*;

    fn with(disks: &[&str]) -> Result<Vec<PciDevice>, String> {
        let mut config = VmConfig::default();
        config.payload.kernel = Some("vmlinuz".into());
        config.disks = disks.iter().map(|text| parse_disk(text).unwrap()).collect();
        let machine = validate(&config).map_err(|error| error.to_string());
        machine.map(|machine| machine.devices)
    }

    #[test]
    fn names_are_given_by_number_and_must_differ() {
        let ids: Vec<_> = with(&["path=a", "path=b,id=data", "path=c"]).unwrap();
        let ids: Vec<_> = ids.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(ids, ["disk0", "data", "disk2"]);
        let message = with(&["path=a,id=disk1", "path=b"]).unwrap_err();
        assert!(
            message.starts_with("--disk id=disk1: two devices"),
            "{message}"
        );
        let message = with(&["path=a,id=a/b"]).unwrap_err();
        assert!(
            message.starts_with("--disk id=a/b: a name has"),
            "{message}"
        );
    }

    #[test]
    fn more_disks_than_slots_are_refused() {
        assert_eq!(with(&["path=a"; 30]).unwrap().len(), 30);
        assert!(
            with(&["path=a"; 31])
                .unwrap_err()
                .starts_with("--disk 31: ")
        );
    }
}
