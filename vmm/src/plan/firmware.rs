//! Firmware: where its image lies, and what it finds in fw_cfg.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tdvmm_arch::acpi::AcpiTables;
use tdvmm_arch::e820;
use tdvmm_arch::{Gpa, GpaRange, map};
use tdvmm_firmware::fwcfg::{self, AcpiFiles, AcpiPointer, AcpiTable, FwCfgContents, FwCfgInput};
use tdvmm_firmware::image::{Image, ParseError, SectionKind};
use thiserror::Error;

use super::PlanError;
use crate::config::Machine;
use crate::payload::Firmware;

/// The variable store of an image cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VarsError {
    /// Where it lies is not known.
    #[error("the firmware image does not say where its variable store lies: {0}")]
    Image(ParseError),
    /// It has none.
    #[error("the firmware image has no variable store")]
    None,
    /// The new one is of another size.
    #[error(
        "the file has {given:#x} bytes and the firmware's variable store {there:#x}; give one made for this firmware"
    )]
    Size {
        /// Bytes of the file.
        given: usize,
        /// Bytes of the store.
        there: usize,
    },
}

/// See the module's text.
#[derive(Clone, Serialize)]
pub struct FirmwarePlan {
    /// Where the image lies: it ends at 4 GiB, so that its last bytes are the reset vector.
    pub range: GpaRange,
    /// The image, with its variable store replaced where that was asked for.
    #[serde(skip)]
    pub image: Vec<u8>,
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
        let mut image = (*firmware.image).as_ref().to_vec();
        if let Some(vars) = &firmware.vars {
            replace_vars(&mut image, (**vars).as_ref()).map_err(PlanError::Vars)?;
        }
        let start = map::FIRMWARE_END - image.len() as u64;
        let range = GpaRange::new(Gpa(start), Gpa(map::FIRMWARE_END)).unwrap_or_default();
        let fw_cfg = fwcfg::contents(&FwCfgInput {
            cpus: u16::try_from(machine.topology.vcpus()).unwrap_or(u16::MAX),
            memory_map: e820::firmware_map(&machine.ram),
            acpi: Some(acpi_files(acpi)),
            kernel: firmware.kernel.clone(),
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
}

impl fmt::Debug for FirmwarePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirmwarePlan")
            .field("range", &self.range)
            .field("fw_cfg", &self.fw_cfg)
            .finish_non_exhaustive()
    }
}

fn replace_vars(image: &mut [u8], vars: &[u8]) -> Result<(), VarsError> {
    let place = {
        let parsed = Image::parse(image).map_err(VarsError::Image)?;
        parsed
            .section(SectionKind::Cfv)
            .ok_or(VarsError::None)?
            .data()
    };
    let store = image.get_mut(place).unwrap_or_default();
    if store.len() != vars.len() {
        return Err(VarsError::Size {
            given: vars.len(),
            there: store.len(),
        });
    }
    store.copy_from_slice(vars);
    Ok(())
}

/// The tables for firmware that places them itself.
fn acpi_files(acpi: &AcpiTables) -> AcpiFiles {
    let (rsdp, tables) = acpi.unlinked();
    let spans = acpi
        .tables
        .iter()
        .map(|t| AcpiTable {
            offset: t.offset,
            len: t.len,
        })
        .collect();
    let pointers = acpi.relocations.iter().map(|r| AcpiPointer {
        at: r.pointer_offset,
        size: r.size,
        target: r.target_offset,
    });
    AcpiFiles {
        rsdp,
        tables,
        xsdt: acpi.xsdt_offset(),
        spans,
        pointers: pointers.collect(),
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
