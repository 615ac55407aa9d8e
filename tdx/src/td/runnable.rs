//! A launched TD and the parts it comes apart into. Only `finalize` makes one.

use std::fmt;

use tdvmm_arch::addr::VcpuId;

use crate::log::MeasurementLog;
use crate::transcript::{Journal, Transcript};

/// A TD whose measurement is closed.
#[derive(Debug)]
pub struct Runnable<K, V> {
    ops: K,
    vcpus: Vec<RunnableVcpu<V>>,
    journal: Journal,
}

/// What a launched TD comes apart into.
#[derive(Debug)]
pub struct Parts<K, V> {
    /// Keeps the VM open.
    pub vm: FinalizedVm<K>,
    /// The vCPUs, by number. All of them have to be run at once: they start at the reset vector
    /// together, as a TD knows no INIT and SIPI.
    pub vcpus: Vec<RunnableVcpu<V>>,
    /// What is in MRTD.
    pub log: MeasurementLog,
    /// All calls.
    pub transcript: Transcript,
}

/// The VM of a launched TD. Nothing more can be done to it but to hold and to drop it.
pub struct FinalizedVm<K> {
    _ops: K,
}

/// A vCPU that may run.
#[derive(Debug)]
pub struct RunnableVcpu<V> {
    id: VcpuId,
    vcpu: V,
}

impl<K, V> Runnable<K, V> {
    /// From a TD that was finalized, with its vCPUs in the order of their numbers.
    pub(super) fn new(ops: K, vcpus: Vec<V>, journal: Journal) -> Self {
        let vcpus = (0u32..)
            .zip(vcpus)
            .map(|(id, vcpu)| RunnableVcpu {
                id: VcpuId(id),
                vcpu,
            })
            .collect();
        Self {
            ops,
            vcpus,
            journal,
        }
    }

    /// What is in MRTD.
    #[must_use]
    pub const fn measurement_log(&self) -> &MeasurementLog {
        &self.journal.log
    }

    /// The parts, for the machine that runs the TD.
    #[must_use]
    pub fn into_parts(self) -> Parts<K, V> {
        Parts {
            vm: FinalizedVm { _ops: self.ops },
            vcpus: self.vcpus,
            transcript: self.journal.transcript(),
            log: self.journal.log,
        }
    }
}

impl<K> fmt::Debug for FinalizedVm<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FinalizedVm")
    }
}

impl<V> RunnableVcpu<V> {
    /// Its number, which is its APIC id too.
    #[must_use]
    pub const fn id(&self) -> VcpuId {
        self.id
    }

    /// The vCPU, for the run loop.
    #[must_use]
    pub fn into_vcpu(self) -> V {
        self.vcpu
    }
}
