//! A TD's part of the plan: what is added to its memory, in which order, and what that makes MRTD.

use serde::Serialize;
use tdvmm_arch::acpi::AcpiTables;
use tdvmm_arch::{Gpa, GpaRange};
use tdvmm_firmware::hob::{self, Extensions, HobError};
use tdvmm_firmware::image::{Contents, Family, Image, ParseError, RegionError};
use tdvmm_firmware::measure::{Digest, Measure, Order, Region, RegionShapeError, mrtd};
use tdvmm_firmware::td_shim::{self, DirectBootError};
use thiserror::Error;

use crate::config::{Machine, TdOptions};
use crate::payload::Firmware;

/// The TD cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TdPlanError {
    /// The image cannot be launched as a TD.
    #[error("--firmware: {0}")]
    Image(ParseError),
    /// The hand-off blocks cannot be made.
    #[error("--memory: {0}")]
    Hob(HobError),
    /// The kernel cannot be handed over.
    #[error("--kernel: {0}")]
    DirectBoot(DirectBootError),
    /// The contents of a section do not fit.
    #[error("--firmware: {0}")]
    Region(RegionError),
    /// A section is not made of pages.
    #[error("--firmware: {0}")]
    Shape(RegionShapeError),
    /// Firmware of this kind has no way to be given a shim.
    #[error(
        "--shim: {0} firmware is handed its kernel in memory and checks no signature; leave it out"
    )]
    Shim(Family),
}

/// See the module's text.
#[derive(Clone, Debug, Serialize)]
pub struct TdPlan {
    /// What is wanted of the TD.
    #[serde(skip)]
    pub options: TdOptions,
    /// The value that each vCPU starts with in RCX and R8.
    pub hob: Gpa,
    /// Memory that belongs to the firmware and is no RAM.
    pub firmware: GpaRange,
    /// What is added, in this order.
    pub regions: Vec<TdRegion>,
    /// What that makes MRTD.
    pub mrtd: Digest,
}

/// Pages that are added to the TD.
#[derive(Clone, Debug, Serialize)]
pub struct TdRegion {
    /// Where they go.
    pub range: GpaRange,
    /// Whether their contents are in MRTD.
    pub measure: Measure,
    /// The contents; zeros follow up to the end of the range.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

impl TdPlan {
    pub(super) fn new(
        machine: &Machine,
        options: &TdOptions,
        image: &[u8],
        firmware: &Firmware,
        acpi: &AcpiTables,
    ) -> Result<Self, TdPlanError> {
        let image = Image::parse(image).map_err(TdPlanError::Image)?;
        let ram: Vec<GpaRange> = machine.ram.ranges().collect();
        let direct = direct_boot(&image, firmware)?;
        let tables = td_shim::acpi_tables(acpi);
        let tables: Vec<&[u8]> = tables.iter().map(Vec::as_slice).collect();
        let takes_tables = image.family() != Family::Ovmf;
        let extensions = Extensions {
            payload: direct.as_ref().map(|direct| direct.info),
            acpi_tables: if takes_tables { &tables } else { &[] },
        };
        let blocks = match image.hob_range() {
            Some(_) => Some(
                hob::build(&image, &ram, machine.topology.vcpus(), &extensions)
                    .map_err(TdPlanError::Hob)?,
            ),
            None => None,
        };
        let contents = Contents {
            hob: blocks.as_ref().map(hob::Hob::bytes),
            payload: direct.as_ref().map(|direct| &*direct.payload),
            payload_param: direct.as_ref().map(|direct| &*direct.parameters),
        };
        let regions = image.regions(&contents).map_err(TdPlanError::Region)?;
        Ok(Self {
            options: options.clone(),
            hob: image.hob_address(),
            firmware: image.mapped_range(),
            mrtd: mrtd(Order::PerPage, &regions).map_err(TdPlanError::Shape)?,
            regions: regions.iter().map(TdRegion::of).collect(),
        })
    }
}

impl TdRegion {
    fn of(region: &Region<'_>) -> Self {
        Self {
            range: region.range,
            measure: region.measure,
            bytes: region.bytes.to_vec(),
        }
    }
}

/// What goes into the sections of an image that is handed its kernel in memory.
fn direct_boot<'a>(
    image: &Image<'_>,
    firmware: &'a Firmware,
) -> Result<Option<td_shim::DirectBoot<'a>>, TdPlanError> {
    let Some(kernel) = firmware.kernel.as_ref().filter(|_| image.wants_payload()) else {
        return Ok(None);
    };
    if kernel.shim.is_some() {
        return Err(TdPlanError::Shim(image.family()));
    }
    let initramfs = kernel.initramfs.as_ref().map(|blob| (**blob).as_ref());
    td_shim::direct_boot(image, (*kernel.kernel).as_ref(), &kernel.cmdline, initramfs)
        .map(Some)
        .map_err(TdPlanError::DirectBoot)
}
