//! Launching a TD: the plan put into action, from top to bottom.
//!
//! The order inside is the `tdx` crate's, whose types do not let it be another. What is loaded is the plan's
//! bytes; what they make MRTD is known before the first call.

use std::sync::Arc;

use tdvmm_arch::cpuid::{self, CpuidOptions, CpuidTable};
use tdvmm_arch::{GpaRange, VcpuId, map};
use tdvmm_devices::dma::DmaView;
use tdvmm_devices::power::PowerSink;
use tdvmm_firmware::measure;
use tdvmm_tdx::error::{Command, TdxError};
use tdvmm_tdx::log::Measure;
use tdvmm_tdx::pages::PageBuffer;
use tdvmm_tdx::params::Refused;
use tdvmm_tdx::td::{Td, VcpuCount, VmSetup};
use tdvmm_tdx::transcript::Recorder;
use thiserror::Error;

use super::board::{Board, BoardError};
use super::functions::Backends;
use super::launch_plain::ReadyMachine;
use super::td_services::Services;
use crate::ending::EndingCell;
use crate::kvm::host::Host;
use crate::kvm::{KvmError, td};
use crate::memory::convert::TdMemory;
use crate::memory::ram::{self, RamError};
use crate::plan::Plan;
use crate::plan::td::{TdPlan, TdRegion};

/// The TD cannot be launched.
#[derive(Debug, Error)]
pub enum TdLaunchError {
    /// KVM refuses what comes before the TD.
    #[error("cannot set up the virtual machine of the TD")]
    Kvm(#[source] KvmError),
    /// The host cannot grant what was asked for.
    #[error(transparent)]
    Refused(Refused),
    /// A TD of this host has not so many vCPUs.
    #[error(
        "--cpus boot={asked}: a TD of this host has at most {max} vCPUs, one for each CPU; ask for fewer"
    )]
    TooManyVcpus {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        max: u32,
    },
    /// A step of the launch failed.
    #[error("cannot launch the TD")]
    Step(#[source] TdxError),
    /// There is no memory.
    #[error(transparent)]
    Ram(RamError),
    /// A device cannot be wired.
    #[error(transparent)]
    Board(BoardError),
    /// A region of the plan is not made of pages: a mistake of this program.
    #[error("region {0} is not made of pages")]
    Region(GpaRange),
}

impl TdLaunchError {
    /// Whether the host has no TDX key id left, so that another TD has to end first.
    #[must_use]
    pub fn is_out_of_key_ids(&self) -> bool {
        let Self::Step(error) = self else {
            return false;
        };
        error.call().is_some_and(|call| {
            call.command() == Command::InitVm && matches!(call.errno(), libc::ENOSPC | libc::EBUSY)
        })
    }
}

/// Does what `plan`, which is a TD's, says on `host`; the devices lead to `backends`. The calls of the launch
/// are in `recorder` then, also when it fails.
///
/// # Errors
///
/// If the host or the TDX module refuses something.
pub(super) fn launch(
    plan: &Plan,
    td_plan: &TdPlan,
    host: &Host,
    backends: Backends,
    endings: &Arc<EndingCell>,
    recorder: &Recorder,
) -> Result<ReadyMachine, TdLaunchError> {
    let (core, mut handles) = td::create(host).map_err(TdLaunchError::Kvm)?;
    let mut td = Td::create_recorded(core, &setup(plan, td_plan), recorder.clone())
        .map_err(TdLaunchError::Step)?;
    let (asked, max) = (plan.topology.vcpus(), td.max_vcpus());
    if asked > max {
        return Err(TdLaunchError::TooManyVcpus { asked, max });
    }
    let capabilities = td.capabilities().map_err(TdLaunchError::Step)?;
    let cpuid = wanted_cpuid(plan, host, VcpuId(0));
    let request = td_plan.options.request(cpuid, plan.ram.top());
    let params = request
        .resolve(&capabilities)
        .map_err(TdLaunchError::Refused)?;
    let td = td.init(&params).map_err(TdLaunchError::Step)?;
    let ram = ram::allocate(&plan.ram, Some(td_plan.firmware)).map_err(TdLaunchError::Ram)?;
    let backings = handles.slots.add_td(&ram).map_err(TdLaunchError::Kvm)?;
    let ranges = plan.ram.ranges().chain([td_plan.firmware]).collect();
    let memory = Arc::new(TdMemory::new(ranges, backings));
    let view = DmaView::new(Arc::new(ram), Arc::<TdMemory<_>>::clone(&memory));
    let power: Arc<dyn PowerSink> = Arc::<EndingCell>::clone(endings);
    let services = Arc::new(Services::new(memory, view.clone(), &capabilities));
    let board = Board::wire(plan, backends, &handles, &view, Some(services), &power)
        .map_err(TdLaunchError::Board)?;
    let cpuid = |id| wanted_cpuid(plan, host, id);
    let mut td = td
        .create_vcpus(vcpu_count(plan), td_plan.hob, cpuid)
        .map_err(TdLaunchError::Step)?;
    for region in &td_plan.regions {
        let pages = pages(region)?;
        let measure = match region.measure {
            measure::Measure::Yes => Measure::Yes,
            measure::Measure::No => Measure::No,
        };
        td = td
            .add_region(pages.source(), region.range.start(), measure)
            .map_err(TdLaunchError::Step)?;
    }
    for lost in td.lost_features() {
        log::info!("the TD does not get CPUID bits that the host has: {lost:?}");
    }
    let parts = td.finalize().map_err(TdLaunchError::Step)?.into_parts();
    let vcpus = parts
        .vcpus
        .into_iter()
        .map(|vcpu| vcpu.into_vcpu())
        .collect();
    Ok(ReadyMachine {
        board,
        vcpus,
        slots: handles.slots,
    })
}

fn setup(plan: &Plan, td_plan: &TdPlan) -> VmSetup {
    VmSetup {
        ioapic_pins: map::gsi::IOAPIC_PINS,
        x2apic_ids: plan.topology.vcpus() > 255,
        tsc: td_plan.options.tsc,
    }
}

fn wanted_cpuid(plan: &Plan, host: &Host, id: VcpuId) -> CpuidTable {
    cpuid::for_vcpu(
        host.supported_cpuid(),
        id,
        &plan.topology,
        &CpuidOptions::default(),
    )
}

fn vcpu_count(plan: &Plan) -> VcpuCount {
    VcpuCount::new(plan.topology.vcpus()).expect("a topology has at least one vCPU")
}

fn pages(region: &TdRegion) -> Result<PageBuffer, TdLaunchError> {
    usize::try_from(region.range.len())
        .ok()
        .and_then(|len| PageBuffer::from_content(&region.bytes, len))
        .ok_or(TdLaunchError::Region(region.range))
}
