//! A TD's part of the plan: what is added to its memory, in which order, and what that makes MRTD.

use std::path::PathBuf;

use serde::Serialize;
use tdvmm_arch::acpi::AcpiTables;
use tdvmm_arch::{Gpa, GpaRange, map};
use tdvmm_firmware::hob::{self, Extensions, HobError};
use tdvmm_firmware::image::{Contents, Family, Image, ParseError, RegionError};
use tdvmm_firmware::measure::{Digest, Measure, Order, Region, RegionShapeError, mrtd};
use tdvmm_firmware::td_shim;
use thiserror::Error;

use super::handover::{HandoverError, handover};
use crate::config::{Machine, Payload, TdOptions};
use crate::payload::{Firmware, TOO_LARGE};

/// What TD-Shim has room for in its copy of the MADT (`MADT_MAX_SIZE`); it copies beyond that into a panic.
const TD_SHIM_MADT_MAX: usize = 0xc00;
/// What it adds there: the wake-up structure of multiprocessors.
const TD_SHIM_MADT_ADDED: usize = 16;
/// What each vCPU takes there from the 256th on: a structure of a local x2APIC.
const MADT_X2APIC: usize = 16;

/// The TD cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TdPlanError {
    /// The image cannot be launched as a TD.
    #[error("--firmware {}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The memory does not hold what the image puts there.
    #[error("--memory size={size}: {problem}; give the guest more memory")]
    Memory {
        /// Bytes of RAM.
        size: u64,
        /// What does not fit.
        problem: HobError,
    },
    /// The image would be memory where something else is.
    #[error("--firmware {}: {problem}", path.display())]
    Unplaceable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The hand-off blocks cannot be made.
    #[error("--firmware {}: {problem}", path.display())]
    Hob {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: HobError,
    },
    /// The firmware has no room for so many vCPUs.
    #[error(
        "--cpus boot={vcpus}: TD-Shim has room in its ACPI tables for {max} vCPUs; ask for fewer, or take OVMF"
    )]
    TooManyVcpus {
        /// How many were asked for.
        vcpus: u32,
        /// How many there can be.
        max: u32,
    },
    /// The kernel and what belongs to it cannot be handed over in memory.
    #[error(transparent)]
    Handover(HandoverError),
    /// The contents of a section do not fit.
    #[error("--firmware: {0}")]
    Region(RegionError),
    /// A section is not made of pages.
    #[error("--firmware: {0}")]
    Shape(RegionShapeError),
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
        let image = Image::parse(image).map_err(|source| TdPlanError::Image {
            path: image_path(machine),
            source,
        })?;
        if let Some(problem) = unplaceable(&image) {
            let path = image_path(machine);
            return Err(TdPlanError::Unplaceable { path, problem });
        }
        let ram: Vec<GpaRange> = machine.ram.ranges().collect();
        let direct = match &machine.payload {
            Payload::Firmware(names) => handover(&image, firmware, names, &machine.ram),
            Payload::Kernel(_) => Ok(None),
        }
        .map_err(TdPlanError::Handover)?;
        let tables = td_shim::acpi_tables(acpi);
        let tables: Vec<&[u8]> = tables.iter().map(Vec::as_slice).collect();
        let takes_tables = image.family() != Family::Ovmf;
        if image.family() == Family::TdShim {
            check_madt(machine.topology.vcpus(), &tables)?;
        }
        let extensions = Extensions {
            payload: direct.as_ref().map(|direct| direct.info),
            acpi_tables: if takes_tables { &tables } else { &[] },
        };
        let blocks = match image.hob_range() {
            Some(_) => Some(
                hob::build(&image, &ram, machine.topology.vcpus(), &extensions)
                    .map_err(|problem| no_hob(machine, problem))?,
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

/// Why the memory below 4 GiB has no place for an image that is legal in itself. All that an image may use there is one
/// piece of memory up to 4 GiB, and a TD that finds memory in the place of the I/O APIC's registers gets no interrupts.
#[must_use]
pub fn unplaceable(image: &Image<'_>) -> Option<&'static str> {
    let memory = image.mapped_range();
    if image.file().len() as u64 > map::FIRMWARE_MAX {
        return Some(TOO_LARGE);
    }
    let taken = [map::IOAPIC, map::LAPIC].map(|device| device.overlaps(memory));
    taken.contains(&true).then_some(
        "has a section between 0xfc000000 and the end of the local APIC's page, 0xfee01000; \
         below 4 GiB there is room for sections from there on, or in RAM",
    )
}

/// Whether TD-Shim has room for the MADT among `tables`, which is of `vcpus`.
fn check_madt(vcpus: u32, tables: &[&[u8]]) -> Result<(), TdPlanError> {
    let madt = tables.iter().find(|table| table.starts_with(b"APIC"));
    let len = madt.map_or(0, |madt| madt.len()) + TD_SHIM_MADT_ADDED;
    let beyond = len.saturating_sub(TD_SHIM_MADT_MAX).div_ceil(MADT_X2APIC);
    match u32::try_from(beyond).unwrap_or(vcpus) {
        0 => Ok(()),
        beyond => Err(TdPlanError::TooManyVcpus {
            vcpus,
            max: vcpus.saturating_sub(beyond),
        }),
    }
}

fn image_path(machine: &Machine) -> PathBuf {
    match &machine.payload {
        Payload::Firmware(names) => names.image.clone(),
        Payload::Kernel(names) => names.kernel.clone(),
    }
}

fn no_hob(machine: &Machine, problem: HobError) -> TdPlanError {
    match problem {
        HobError::NotRam { .. } | HobError::ApStacks { .. } => TdPlanError::Memory {
            size: machine.ram.size(),
            problem,
        },
        _ => TdPlanError::Hob {
            path: image_path(machine),
            problem,
        },
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
