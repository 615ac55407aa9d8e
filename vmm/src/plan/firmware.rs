//! Firmware: where its image lies, and what it finds in fw_cfg.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tdvmm_arch::acpi::AcpiTables;
use tdvmm_arch::e820;
use tdvmm_arch::{Gpa, GpaRange, map};
use tdvmm_firmware::fwcfg::{self, AcpiFiles, Blob, FwCfgContents, FwCfgInput, blob};
use tdvmm_firmware::varstore::replace_variables;

use super::PlanError;
use super::handover::is_in_memory;
use crate::config::Machine;
use crate::payload::Firmware;

/// See the module's text.
#[derive(Clone, Serialize)]
pub struct FirmwarePlan {
    /// Where the image lies: it ends at 4 GiB, so that its last bytes are the reset vector.
    pub range: GpaRange,
    /// The image, with its variable store replaced where that was asked for: a copy only then.
    #[serde(skip)]
    image: Blob,
    /// What is offered through fw_cfg.
    #[serde(serialize_with = "summarize")]
    pub fw_cfg: FwCfgContents,
}

impl FirmwarePlan {
    pub(super) fn new(
        machine: &Machine,
        firmware: &Firmware,
        acpi: &AcpiTables,
    ) -> Result<Self, PlanError> {
        let image = match &firmware.vars {
            None => Blob::clone(&firmware.image),
            Some(vars) => {
                let mut image = (*firmware.image).as_ref().to_vec();
                replace_variables(&mut image, (**vars).as_ref()).map_err(PlanError::Vars)?;
                blob(image)
            }
        };
        let bytes = (*image).as_ref();
        let in_memory = machine.td.is_some() && is_in_memory(bytes);
        let start = map::FIRMWARE_END - bytes.len() as u64;
        let range = GpaRange::new(Gpa(start), Gpa(map::FIRMWARE_END)).unwrap_or_default();
        let fw_cfg = fwcfg::contents(&FwCfgInput {
            cpus: u16::try_from(machine.topology.vcpus()).unwrap_or(u16::MAX),
            memory_map: e820::firmware_map(&machine.ram),
            acpi: Some(AcpiFiles::from(acpi)),
            kernel: firmware.kernel.clone().filter(|_| !in_memory),
            boot_order: None,
            boot_menu: false,
        })
        .map_err(PlanError::FwCfg)?;
        Ok(Self {
            range,
            image,
            fw_cfg,
        })
    }

    /// The image, with its variable store replaced where that was asked for.
    #[must_use]
    pub fn image(&self) -> &[u8] {
        (*self.image).as_ref()
    }
}

impl fmt::Debug for FirmwarePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirmwarePlan")
            .field("range", &self.range)
            .field("fw_cfg", &self.fw_cfg)
            .finish_non_exhaustive()
    }
}

/// Names and sizes, without the bytes.
fn summarize<S: Serializer>(fw_cfg: &FwCfgContents, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (key, blob) in &fw_cfg.items {
        map.serialize_entry(&format!("{key:#06x}"), &(**blob).as_ref().len())?;
    }
    for (name, blob) in &fw_cfg.files {
        map.serialize_entry(name, &(**blob).as_ref().len())?;
    }
    map.end()
}
