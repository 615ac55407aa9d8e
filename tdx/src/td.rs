//! The only legal order of a launch, as types.
//!
//! ```text
//! Td<Created> --init--> Td<Initialized> --create_vcpus--> Td<Loading> --add_region*, finalize--> Runnable
//! ```
//!
//! Each step consumes the TD, and a step that fails keeps it: vCPU and VM descriptors close, and
//! there is no TD left to go on with. A retry is a new TD, except where the kernel itself asks to
//! be called again (EINTR, EAGAIN), which is done here. Kernel: `arch/x86/kvm/vmx/tdx.c`; the
//! comments at the steps name the rule that each order keeps.
//!
//! A region cannot be added before there are vCPUs, since the call is one of an initialised vCPU:
//!
//! ```compile_fail,E0599
//! # use tdvmm_tdx::{fake::FakeTd, log::Measure, pages::PageSource, td::{Initialized, Td}};
//! # use tdvmm_arch::addr::Gpa;
//! fn too_early(td: Td<FakeTd, Initialized>, pages: PageSource<'_>) {
//!     let _ = td.add_region(pages, Gpa(0x80_0000), Measure::Yes);
//! }
//! ```
//!
//! Nor can a vCPU be had before the measurement is closed, so none can run:
//!
//! ```compile_fail,E0599
//! # use tdvmm_tdx::{fake::{FakeTd, FakeVcpu}, td::{Loading, Td}};
//! fn too_early(td: Td<FakeTd, Loading<FakeVcpu>>) {
//!     let _ = td.into_parts();
//! }
//! ```
//!
//! ```compile_fail,E0308
//! # use tdvmm_tdx::{fake::FakeVcpu, td::RunnableVcpu};
//! fn run(_: RunnableVcpu<FakeVcpu>) {}
//! fn not_runnable(vcpu: FakeVcpu) {
//!     run(vcpu);
//! }
//! ```
//!
//! No page is added once the measurement is closed, and no step is taken twice:
//!
//! ```compile_fail,E0382
//! # use tdvmm_tdx::{fake::{FakeTd, FakeVcpu}, log::Measure, pages::PageSource, td::{Loading, Td}};
//! # use tdvmm_arch::addr::Gpa;
//! fn too_late(td: Td<FakeTd, Loading<FakeVcpu>>, pages: PageSource<'_>) {
//!     let _ = td.finalize();
//!     let _ = td.add_region(pages, Gpa(0x80_0000), Measure::Yes);
//! }
//! ```
//!
//! ```compile_fail,E0382
//! # use tdvmm_tdx::{fake::FakeTd, params::TdParams, td::{Created, Td}};
//! fn twice(td: Td<FakeTd, Created>, params: &TdParams) {
//!     let _ = td.init(params);
//!     let _ = td.init(params);
//! }
//! ```

mod runnable;
mod setup;

pub use runnable::{FinalizedVm, Parts, Runnable, RunnableVcpu};
pub use setup::{VcpuCount, VmSetup};

use tdvmm_arch::addr::{Gpa, GpaRange, PAGE_SIZE, VcpuId};
use tdvmm_arch::cpuid::CpuidTable;

use crate::caps::{Capabilities, with_room};
use crate::cpuid::{self, LostFeatures};
use crate::error::{Command, TdxError};
use crate::log::{Measure, MeasurementLog, RegionRecord};
use crate::ops::{Progress, TdOps};
use crate::pages::PageSource;
use crate::params::{TdParams, Xfam};
use crate::retry::{TRIES, retry};
use crate::transcript::Journal;

/// A TD in one state of its launch.
#[derive(Debug)]
pub struct Td<K, S> {
    ops: K,
    journal: Journal,
    state: S,
}

/// The VM is there and set up; nothing of it is a TD yet.
#[derive(Debug)]
pub struct Created(());

/// The TD has its parameters.
#[derive(Debug)]
pub struct Initialized {
    params: TdParams,
}

/// The TD has its vCPUs, and pages can be added.
#[derive(Debug)]
pub struct Loading<V> {
    params: TdParams,
    /// In the order of INIT_VCPU: the first is what firmware takes for the boot processor.
    vcpus: Vec<V>,
    lost: Vec<LostFeatures>,
}

/// Number of the AMX tile data in XFAM, for which a process needs permission.
const XFEATURE_TILE_DATA: u32 = 18;
/// The commands that stop other vCPUs for a moment can be ended by a signal while they wait
/// (`tdx_acquire_vm_state_locks`); INIT_VM asks again when the processor has no entropy.
const AGAIN: &[i32] = &[libc::EINTR, libc::EAGAIN];
/// FINALIZE_VM gives EBUSY when the module's operand is busy, and only then.
const AGAIN_OR_BUSY: &[i32] = &[libc::EINTR, libc::EAGAIN, libc::EBUSY];

impl<K: TdOps> Td<K, Created> {
    /// What KVM and the TDX module support; the buffer grows until it fits.
    ///
    /// # Errors
    ///
    /// The call's.
    pub fn capabilities(&mut self) -> Result<Capabilities, TdxError> {
        let call = Journal::begin(Command::Capabilities, None);
        let mut tries = 0u32;
        let caps = with_room(Command::Capabilities, |capacity| {
            tries = tries.saturating_add(1);
            self.ops.capabilities(capacity)
        })
        .inspect_err(self.journal.failed(call, None))?;
        self.journal.done(call, tries, None);
        Ok(caps)
    }

    /// Most vCPUs that this TD can have.
    #[must_use]
    pub fn max_vcpus(&self) -> u32 {
        self.ops.max_vcpus()
    }

    /// Gives the TD its parameters. No vCPU can exist yet, as only [`Td::create_vcpus`] makes any.
    ///
    /// # Errors
    ///
    /// The call's; the VM goes with it.
    pub fn init(mut self, params: &TdParams) -> Result<Td<K, Initialized>, TdxError> {
        // Before the first vCPU, or KVM_SET_CPUID2 with AMX fails with EPERM.
        if params.xfam().contains(Xfam::AMX) {
            let call = Journal::begin(Command::PermitXstate, None);
            self.ops
                .permit_xstate(XFEATURE_TILE_DATA)
                .inspect_err(self.journal.failed(call, None))?;
            self.journal.done(call, 1, None);
        }
        let call = Journal::begin(Command::InitVm, None);
        let ((), tries) = retry(Command::InitVm, AGAIN, || self.ops.init_vm(params))
            .inspect_err(self.journal.failed(call, None))?;
        self.journal.done(call, tries, None);
        let state = Initialized {
            params: params.clone(),
        };
        Ok(Td {
            ops: self.ops,
            journal: self.journal,
            state,
        })
    }
}

impl<K: TdOps> Td<K, Initialized> {
    /// Creates vCPUs 0 to `count` and initialises them in this order, with RCX = `hob`.
    ///
    /// `cpuid` gives what the machine wants each vCPU to have, APIC id and topology included; it is
    /// merged with what the TD has ([`cpuid::merge`]).
    ///
    /// # Errors
    ///
    /// More vCPUs than KVM allows, or a call's error.
    pub fn create_vcpus(
        mut self,
        count: VcpuCount,
        hob: Gpa,
        cpuid: impl Fn(VcpuId) -> CpuidTable,
    ) -> Result<Td<K, Loading<K::Vcpu>>, TdxError> {
        let max = self.ops.max_vcpus();
        if count.get() > max {
            return Err(TdxError::TooManyVcpus {
                asked: count.get(),
                max,
            });
        }
        let mut vcpus = Vec::new();
        let mut shown = None;
        let mut lost = Vec::new();
        for id in (0..count.get()).map(VcpuId) {
            let call = Journal::begin(Command::CreateVcpu, Some(id.0));
            let vcpu = self
                .ops
                .create_vcpu(id)
                .inspect_err(self.journal.failed(call, None))?;
            self.journal.done(call, 1, None);
            // The module's CPUID is one for the whole TD: the first vCPU's answer serves all.
            let shown = match &shown {
                Some(shown) => shown,
                None => shown.insert(self.td_cpuid(&vcpu, id)?),
            };
            let merged = cpuid::merge(&cpuid(id), shown, &self.state.params);
            if id.0 == 0 {
                lost = merged.lost;
            }
            // Before INIT_VCPU, which wants to find x2APIC in it (EINVAL otherwise).
            let call = Journal::begin(Command::SetCpuid2, Some(id.0));
            self.ops
                .set_cpuid(&vcpu, &merged.table)
                .inspect_err(self.journal.failed(call, None))?;
            self.journal.done(call, 1, None);
            let call = Journal::begin(Command::InitVcpu, Some(id.0));
            let ((), tries) = retry(Command::InitVcpu, AGAIN, || self.ops.init_vcpu(&vcpu, hob))
                .inspect_err(self.journal.failed(call, None))?;
            self.journal.done(call, tries, None);
            vcpus.push(vcpu);
        }
        let state = Loading {
            params: self.state.params,
            vcpus,
            lost,
        };
        Ok(Td {
            ops: self.ops,
            journal: self.journal,
            state,
        })
    }

    fn td_cpuid(&mut self, vcpu: &K::Vcpu, id: VcpuId) -> Result<CpuidTable, TdxError> {
        let call = Journal::begin(Command::GetCpuid, Some(id.0));
        let mut tries = 0u32;
        let table = with_room(Command::GetCpuid, |capacity| {
            tries = tries.saturating_add(1);
            self.ops.td_cpuid(vcpu, capacity)
        })
        .inspect_err(self.journal.failed(call, None))?;
        self.journal.done(call, tries, None);
        Ok(table)
    }
}

impl<K: TdOps> Td<K, Loading<K::Vcpu>> {
    /// Adds the pages of `source` at `at`, and measures their contents if asked to.
    ///
    /// The range is made private first. When the kernel stops early, the call goes on where it
    /// stopped: no page is ever added twice.
    ///
    /// # Errors
    ///
    /// A range that is no private memory or was added before, or a call's error.
    pub fn add_region(
        mut self,
        source: PageSource<'_>,
        at: Gpa,
        measure: Measure,
    ) -> Result<Self, TdxError> {
        let range = self.checked(source, at)?;
        let call = Journal::begin(Command::SetMemoryAttributes, None);
        self.ops
            .set_private(range)
            .inspect_err(self.journal.failed(call, None))?;
        self.journal.done(call, 1, None);
        let region = RegionRecord {
            range,
            measure,
            digest: source.digest(),
        };
        let call = Journal::begin(Command::InitMemRegion, Some(0));
        let tries = self
            .load(source, range, measure)
            .inspect_err(self.journal.failed(call, Some(region)))?;
        self.journal.done(call, tries, Some(region));
        Ok(self)
    }

    fn checked(&self, source: PageSource<'_>, at: Gpa) -> Result<GpaRange, TdxError> {
        let gpaw = self.state.params.gpaw();
        let above = |at| TdxError::RegionShared {
            at,
            gpaw: gpaw.bits(),
        };
        let range = GpaRange::from_len(at, source.len())
            .ok_or_else(|| above(GpaRange::constant(at.0, 0)))?;
        if range.is_empty() || !range.is_aligned(PAGE_SIZE) {
            return Err(TdxError::RegionSize {
                at: range,
                source_len: source.len(),
            });
        }
        if range.end().0 > gpaw.shared_bit() {
            return Err(above(range));
        }
        match self.journal.log.overlapping(range) {
            Some(earlier) => Err(TdxError::RegionTwice { at: range, earlier }),
            None => Ok(range),
        }
    }

    /// One INIT_MEM_REGION if nothing interrupts it.
    fn load(
        &self,
        source: PageSource<'_>,
        range: GpaRange,
        measure: Measure,
    ) -> Result<u32, TdxError> {
        // Any initialised vCPU serves; there is at least one.
        let Some(vcpu) = self.state.vcpus.first() else {
            return Err(TdxError::TooManyVcpus { asked: 1, max: 0 });
        };
        let (mut source, mut range) = (source, range);
        let (mut tries, mut idle) = (0u32, 0u32);
        while idle < TRIES {
            tries = tries.saturating_add(1);
            let pages = match self.ops.init_mem_region(vcpu, source, range, measure)? {
                Progress::Done => return Ok(tries),
                Progress::Stopped { pages } => pages,
                Progress::Inconsistent => {
                    return Err(TdxError::InconsistentProgress { at: range });
                }
            };
            idle = if pages == 0 {
                idle.saturating_add(1)
            } else {
                0
            };
            let rest = source.skip(pages).filter(|rest| !rest.is_empty());
            let next = range
                .end()
                .0
                .checked_sub(rest.map_or(0, PageSource::len))
                .map(Gpa);
            (source, range) = match (rest, next.and_then(|next| GpaRange::new(next, range.end()))) {
                (Some(rest), Some(next)) => (rest, next),
                _ => return Err(TdxError::InconsistentProgress { at: range }),
            };
        }
        Err(TdxError::NoProgress {
            command: Command::InitMemRegion,
            tries: idle,
        })
    }

    /// What has been added so far: enough to compute the MRTD before it is closed.
    #[must_use]
    pub fn measurement_log(&self) -> &MeasurementLog {
        &self.journal.log
    }

    /// Features that were wanted and that the TD does not have.
    #[must_use]
    pub fn lost_features(&self) -> &[LostFeatures] {
        &self.state.lost
    }

    /// Closes the measurement. From here the vCPUs can run.
    ///
    /// # Errors
    ///
    /// The call's.
    pub fn finalize(mut self) -> Result<Runnable<K, K::Vcpu>, TdxError> {
        let call = Journal::begin(Command::FinalizeVm, None);
        let ((), tries) = retry(Command::FinalizeVm, AGAIN_OR_BUSY, || self.ops.finalize())
            .inspect_err(self.journal.failed(call, None))?;
        self.journal.done(call, tries, None);
        Ok(Runnable::new(self.ops, self.state.vcpus, self.journal))
    }
}

#[cfg(test)]
mod tests;
