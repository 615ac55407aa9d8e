//! The plan: everything that is decided about a machine, computed from values before anything is created.
//!
//! [`Plan::new`] is a pure function of the checked configuration and of what the payload's files say of
//! themselves. Acting code follows the plan and decides nothing. `--print-plan` prints it.

pub mod boot;
pub mod firmware;
pub mod handover;
pub mod pci;
pub mod platform;
pub mod secure_boot;
pub mod td;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tdvmm_arch::acpi::{self, AcpiInput, AcpiTables};
use tdvmm_arch::boot::{BootError, KERNEL, place_initramfs};
use tdvmm_arch::e820::{self, E820Entry};
use tdvmm_arch::layout::RamLayout;
use tdvmm_arch::topology::Topology;
use tdvmm_arch::{Gpa, GpaRange, map};
use tdvmm_firmware::fwcfg::FwCfgError;
use tdvmm_firmware::varstore::ReplaceError;
use thiserror::Error;

use crate::config::{Affinity, Machine, SerialBackend};
use crate::payload::{Firmware, KernelKind};
use firmware::FirmwarePlan;
use handover::{HandoverError, check_efi_program, is_in_memory};
use platform::Place;
use secure_boot::Doubt;
use td::{TdPlan, TdPlanError};

/// The machine cannot be planned; each message names the option.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The kernel needs more memory than the guest has.
    #[error(
        "--memory: the kernel needs RAM up to {needed:#x} to start, and RAM ends at {end:#x}; give the guest more memory"
    )]
    KernelTooLarge {
        /// First address after what the kernel needs.
        needed: u64,
        /// First address after low RAM.
        end: u64,
    },
    /// An ELF kernel lies where boot parameters and tables go.
    #[error(
        "--kernel: the ELF file loads at {start:#x}, and memory below {KERNEL} is kept for boot parameters; link it at or above that"
    )]
    KernelTooLow {
        /// First address of its segments.
        start: u64,
    },
    /// The initramfs does not fit.
    #[error("--initramfs: {0}; give the guest more memory")]
    Initramfs(BootError),
    /// The kernel's header cannot be used.
    #[error("--kernel: {0}")]
    SetupHeader(BootError),
    /// The boot parameters cannot be made.
    #[error("--cmdline: {0}")]
    Boot(BootError),
    /// The firmware's variable store cannot be replaced.
    #[error("--firmware-vars: {0}")]
    Vars(ReplaceError),
    /// The firmware cannot start the kernel.
    #[error(transparent)]
    Kernel(HandoverError),
    /// The TD cannot be planned.
    #[error(transparent)]
    Td(TdPlanError),
    /// What the firmware is to find in fw_cfg cannot be made.
    #[error("--kernel: {0}")]
    FwCfg(FwCfgError),
}

/// What the payload's files say of themselves.
#[derive(Clone, Debug)]
pub enum PayloadFacts {
    /// A kernel that is entered directly.
    Kernel {
        /// What kind of kernel it is.
        kind: KernelKind,
        /// Bytes of the initramfs.
        initramfs: Option<u64>,
        /// The command line.
        cmdline: String,
    },
    /// Firmware, with all that it is given.
    Firmware(Firmware),
}

/// See the module's text.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// How the vCPUs are arranged.
    pub topology: Topology,
    /// Where RAM lies.
    pub ram: RamLayout,
    /// Whether the host provides all of RAM before the guest starts.
    pub prefault: bool,
    /// Where vCPUs may run; without a word of it, where the host lets them.
    pub affinity: Affinity,
    /// What stands at which port or address.
    pub platform: Vec<Place>,
    /// The PCI functions that were asked for.
    pub pci: Vec<pci::Function>,
    /// The first serial port.
    pub serial: SerialBackend,
    /// The ACPI tables.
    #[serde(serialize_with = "summarize")]
    pub acpi: AcpiTables,
    /// What is started, and how.
    pub boot: BootPlan,
    /// Set when the machine is a TD.
    pub td: Option<TdPlan>,
    /// Set when secure boot of the firmware may refuse the kernel.
    pub secure_boot: Option<Doubt>,
}

/// How the guest is started.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BootPlan {
    /// By entering a kernel.
    Kernel(KernelPlan),
    /// By entering firmware at the reset vector.
    Firmware(FirmwarePlan),
}

/// Where the kernel and what it is given are put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelPlan {
    /// What kind of kernel it is.
    pub kind: KernelKind,
    /// Where a bzImage's protected-mode part is loaded; an ELF file says itself where.
    pub load_at: Option<Gpa>,
    /// The memory map that the kernel is told.
    pub e820: Vec<E820Entry>,
    /// Where the initramfs goes.
    pub initramfs: Option<GpaRange>,
    /// The command line.
    pub cmdline: String,
}

impl Plan {
    /// Plans `machine`, which is started from `payload`.
    ///
    /// # Errors
    ///
    /// If its parts do not fit together.
    pub fn new(machine: &Machine, payload: &PayloadFacts) -> Result<Self, PlanError> {
        let acpi = acpi::build(
            &AcpiInput::new(machine.topology.vcpus()),
            map::ACPI_AREA.start(),
        );
        let boot = match payload {
            PayloadFacts::Kernel {
                kind,
                initramfs,
                cmdline,
            } => {
                let plan = KernelPlan::new(&machine.ram, kind.clone(), *initramfs, cmdline)?;
                // They are made again once an ELF kernel's entry is known; whether they can be made at
                // all must be known before anything is created.
                plan.parameters(acpi.rsdp_at).map_err(|error| match error {
                    BootError::SetupHeader(_) => PlanError::SetupHeader(error),
                    _ => PlanError::Boot(error),
                })?;
                BootPlan::Kernel(plan)
            }
            PayloadFacts::Firmware(firmware) => {
                BootPlan::Firmware(FirmwarePlan::new(machine, firmware, &acpi)?)
            }
        };
        let td = match (&machine.td, &boot, payload) {
            (Some(options), BootPlan::Firmware(planned), PayloadFacts::Firmware(files)) => {
                let td = TdPlan::new(machine, options, planned.image(), files, &acpi);
                Some(td.map_err(PlanError::Td)?)
            }
            _ => None,
        };
        let secure_boot = match (&boot, payload) {
            (BootPlan::Firmware(planned), PayloadFacts::Firmware(files)) => {
                let kernel = files.kernel.as_ref();
                kernel.and_then(|kernel| secure_boot::doubt(planned.image(), kernel))
            }
            _ => None,
        };
        if let (BootPlan::Firmware(planned), PayloadFacts::Firmware(files)) = (&boot, payload)
            && !(td.is_some() && is_in_memory(planned.image()))
        {
            check_efi_program(files, machine).map_err(PlanError::Kernel)?;
        }
        let with_serial = machine.serial != SerialBackend::Off;
        let with_firmware = matches!(boot, BootPlan::Firmware(_));
        Ok(Self {
            topology: machine.topology,
            ram: machine.ram,
            prefault: machine.prefault,
            affinity: machine.affinity.clone(),
            platform: platform::places(with_serial, with_firmware),
            pci: pci::functions(&machine.devices),
            serial: machine.serial.clone(),
            acpi,
            boot,
            td,
            secure_boot,
        })
    }
}

impl Plan {
    /// The firmware's part, if there is firmware.
    #[must_use]
    pub fn firmware(&self) -> Option<&FirmwarePlan> {
        match &self.boot {
            BootPlan::Firmware(firmware) => Some(firmware),
            BootPlan::Kernel(_) => None,
        }
    }
}

impl KernelPlan {
    fn new(
        ram: &RamLayout,
        kind: KernelKind,
        initramfs: Option<u64>,
        cmdline: &str,
    ) -> Result<Self, PlanError> {
        let (load_at, end, initramfs_max) = match &kind {
            KernelKind::BzImage { setup_header } => {
                let header = boot::SetupHeader(setup_header);
                (
                    Some(KERNEL),
                    header.needs_until(KERNEL),
                    header.initramfs_max(),
                )
            }
            KernelKind::Elf { extent } if extent.start() < KERNEL => {
                return Err(PlanError::KernelTooLow {
                    start: extent.start().0,
                });
            }
            KernelKind::Elf { extent } => (None, extent.end(), u64::from(u32::MAX)),
        };
        let ram_end = ram.low().end();
        if end > ram_end {
            return Err(PlanError::KernelTooLarge {
                needed: end.0,
                end: ram_end.0,
            });
        }
        let initramfs = initramfs
            .map(|len| place_initramfs(ram, end, len, initramfs_max))
            .transpose()
            .map_err(PlanError::Initramfs)?;
        let e820 = e820::boot_map(ram, map::ACPI_AREA);
        Ok(Self {
            kind,
            load_at,
            e820,
            initramfs,
            cmdline: cmdline.to_owned(),
        })
    }
}

/// Where each table stands, without its bytes.
fn summarize<S: Serializer>(tables: &AcpiTables, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("RSDP", &tables.rsdp_at)?;
    for table in &tables.tables {
        let name = String::from_utf8_lossy(&table.signature);
        map.serialize_entry(&name, &Gpa(tables.blob_at.0 + table.offset as u64))?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PayloadConfig, VmConfig, validate};

    fn machine(memory: u64) -> Machine {
        let mut config = VmConfig {
            payload: PayloadConfig {
                kernel: Some("vmlinuz".into()),
                ..Default::default()
            },
            ..Default::default()
        };
        config.memory.size.0 = memory;
        validate(&config).unwrap()
    }

    /// A setup header as Debian's kernels have it: preferred address 16 MiB, 48 MiB needed.
    fn bzimage() -> KernelKind {
        let mut head = vec![0; 0x202 + 0x6a];
        head[0x201] = 0x6a;
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        head[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        head[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        head[0x234] = 1;
        head[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        head[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        head[0x260..0x264].copy_from_slice(&(48_u32 << 20).to_le_bytes());
        KernelKind::BzImage {
            setup_header: head.split_off(0x1f1),
        }
    }

    fn facts(initramfs: Option<u64>, cmdline: &str) -> PayloadFacts {
        PayloadFacts::Kernel {
            kind: bzimage(),
            initramfs,
            cmdline: cmdline.to_owned(),
        }
    }

    #[test]
    fn initramfs_lies_above_what_the_kernel_needs() {
        let plan = Plan::new(&machine(128 << 20), &facts(Some(1 << 20), "")).unwrap();
        let BootPlan::Kernel(kernel) = plan.boot else {
            panic!()
        };
        assert_eq!(
            kernel.initramfs,
            Some(GpaRange::constant(127 << 20, 1 << 20))
        );
        assert_eq!(kernel.load_at, Some(Gpa(1 << 20)));
    }

    #[test]
    fn too_little_memory_is_refused_by_option() {
        let error = Plan::new(&machine(32 << 20), &facts(None, "")).unwrap_err();
        assert_eq!(
            error,
            PlanError::KernelTooLarge {
                needed: 64 << 20,
                end: 32 << 20
            }
        );
        let error = Plan::new(&machine(65 << 20), &facts(Some(2 << 20), "")).unwrap_err();
        assert!(error.to_string().starts_with("--initramfs: "), "{error}");
    }

    #[test]
    fn elf_kernel_is_kept_out_of_low_memory_and_of_the_initramfs() {
        let at = |start, len| PayloadFacts::Kernel {
            kind: KernelKind::Elf {
                extent: GpaRange::constant(start, len),
            },
            initramfs: Some(1 << 20),
            cmdline: String::new(),
        };
        let error = Plan::new(&machine(128 << 20), &at(0x8000, 1 << 20)).unwrap_err();
        assert_eq!(error, PlanError::KernelTooLow { start: 0x8000 });
        let error = Plan::new(&machine(16 << 20), &at(1 << 20, 15 << 20)).unwrap_err();
        assert!(error.to_string().starts_with("--initramfs: "), "{error}");
        assert!(Plan::new(&machine(17 << 20), &at(1 << 20, 15 << 20)).is_ok());
    }

    #[test]
    fn command_line_longer_than_the_kernel_takes_is_refused_by_option() {
        let error = Plan::new(&machine(128 << 20), &facts(None, &"a".repeat(2048))).unwrap_err();
        assert!(error.to_string().starts_with("--cmdline: "), "{error}");
    }

    #[test]
    fn tables_of_the_most_vcpus_fit_their_area() {
        let mut machine = machine(128 << 20);
        machine.topology = Topology::flat(tdvmm_arch::topology::MAX_VCPUS).unwrap();
        let plan = Plan::new(&machine, &facts(None, "")).unwrap();
        assert!(map::ACPI_AREA.contains_range(plan.acpi.range()));
    }

    #[test]
    fn plan_is_the_same_every_time_and_prints() {
        let print = || {
            let plan = Plan::new(&machine(3 << 30), &facts(Some(5), "")).unwrap();
            serde_json::to_string(&plan).unwrap()
        };
        assert_eq!(print(), print());
        assert!(print().contains("\"platform\""));
    }
}
