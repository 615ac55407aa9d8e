//! What is said about a VM before it is a TD.

use std::num::NonZeroU32;

use super::{Created, Td};
use crate::error::{CallError, TdxError};
use crate::ops::{TdOps, VmSetting};
use crate::params::TscFrequency;
use crate::transcript::{Journal, Recorder};

/// 40 ns are 25 MHz, which is what CPUID 0x15 of every TD says.
const APIC_BUS_CYCLE_NS: u64 = 40;

/// Settings of the VM that belong to every TD, and two that are a matter of choice.
#[derive(Clone, Copy, Debug)]
pub struct VmSetup {
    /// Pins of the I/O APIC in user space.
    pub ioapic_pins: u32,
    /// Whether MSI routes carry 32-bit APIC ids: for more than 255 vCPUs.
    pub x2apic_ids: bool,
    /// TSC frequency; `None` leaves the host's.
    pub tsc: Option<TscFrequency>,
}

impl Default for VmSetup {
    fn default() -> Self {
        Self {
            ioapic_pins: 24,
            x2apic_ids: false,
            tsc: None,
        }
    }
}

/// Number of vCPUs: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuCount(NonZeroU32);

impl VcpuCount {
    /// `None` for 0.
    #[must_use]
    pub const fn new(count: u32) -> Option<Self> {
        match NonZeroU32::new(count) {
            Some(count) => Some(Self(count)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl<K: TdOps> Td<K, Created> {
    /// Makes the settings that a VM of type TDX needs before anything else.
    ///
    /// # Errors
    ///
    /// The setting that failed.
    pub fn create(ops: K, setup: &VmSetup) -> Result<Self, TdxError> {
        Self::create_recorded(ops, setup, Recorder::default())
    }

    /// As [`Td::create`]; the calls of the launch are in `recorder` also when one fails. Settings are, only if they fail.
    ///
    /// # Errors
    ///
    /// The setting that failed.
    pub fn create_recorded(ops: K, setup: &VmSetup, recorder: Recorder) -> Result<Self, TdxError> {
        let journal = Journal::new(recorder);
        let set = |setting| {
            let failed = |error: &CallError| {
                let call = Journal::begin(error.command(), None);
                journal.failed(call, None)(error);
            };
            ops.set(setting).inspect_err(failed)
        };
        // The bus cycle needs the LAPIC model that the split irqchip brings (ENXIO otherwise).
        set(VmSetting::SplitIrqchip(setup.ioapic_pins))?;
        set(VmSetting::ApicBusCycleNs(APIC_BUS_CYCLE_NS))?;
        set(VmSetting::MapGpaExits)?;
        if setup.x2apic_ids {
            set(VmSetting::X2apicIds)?;
        }
        // INIT_VM latches the frequency; KVM takes a later one and the TD does not see it.
        if let Some(tsc) = setup.tsc {
            set(VmSetting::Tsc(tsc))?;
        }
        Ok(Self {
            ops,
            journal,
            state: Created(()),
        })
    }
}
