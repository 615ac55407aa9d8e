//! One thread per vCPU: started together, told to stop, kicked, joined.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VcpuFd;
use tdvmm_arch::VcpuId;

use super::run_loop::{self, Buses};
use crate::affinity;
use crate::config::Affinity;
use crate::ending::{Ending, EndingCell};
use crate::kvm::kick::{ExitFlag, KickableThread};
use crate::kvm::slots::MemorySlots;
use crate::kvm::vcpu::KvmVcpu;

/// A vCPU thread does little but system calls, and the deepest handler needs some KiB.
const STACK_SIZE: usize = 256 << 10;

/// The running vCPUs of a machine. Dropping it stops them, and then lets go of the guest's memory.
#[derive(Debug)]
pub struct VcpuThreads {
    threads: Vec<KickableThread>,
    stop: Arc<AtomicBool>,
    _slots: MemorySlots,
}

impl VcpuThreads {
    /// Starts one thread for each of `vcpus`, in order of their numbers, bound as `affinity` says; `slots` is
    /// their memory.
    ///
    /// A vCPU that ends the machine tells `endings`, and its thread ends.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started; those that were are stopped again.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        slots: MemorySlots,
        affinity: &Affinity,
        buses: &Arc<Buses>,
        endings: &Arc<EndingCell>,
    ) -> std::io::Result<Self> {
        let stop = Arc::clone(endings.stop());
        let threads = Vec::with_capacity(vcpus.len());
        let mut started = Self {
            threads,
            stop,
            _slots: slots,
        };
        for (number, mut vcpu) in (0_u32..).zip(vcpus) {
            let flag = ExitFlag::of(&mut vcpu);
            let work = Work {
                id: VcpuId(number),
                host_cpus: affinity.of(number).map(<[u32]>::to_vec),
                buses: Arc::clone(buses),
                endings: Arc::clone(endings),
                stop: Arc::clone(&started.stop),
            };
            let thread = std::thread::Builder::new()
                .name(format!("tdvmm-vcpu{number}"))
                .stack_size(STACK_SIZE)
                .spawn(move || work.run(vcpu))?;
            started.threads.push(KickableThread::new(thread, flag));
        }
        Ok(started)
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.threads.iter().for_each(KickableThread::kick);
        self.threads.drain(..).for_each(KickableThread::join);
    }
}

struct Work {
    id: VcpuId,
    host_cpus: Option<Vec<u32>>,
    buses: Arc<Buses>,
    endings: Arc<EndingCell>,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn run(self, vcpu: VcpuFd) -> VcpuFd {
        let mut vcpu = KvmVcpu::new(vcpu);
        let failed = |report: String| Ending::HostFailed {
            vcpu: self.id.0,
            report,
        };
        let bound = self.host_cpus.as_deref().map_or(Ok(()), affinity::bind);
        let outcome = match bound {
            Ok(()) => run_loop::run(&mut vcpu, self.id.0, &self.buses, &self.stop)
                .unwrap_or_else(|error| Some(failed(error.to_string()))),
            // The CPUs were there when the machine was prepared.
            Err(error) => Some(failed(format!("cannot be bound to its CPUs: {error}"))),
        };
        if let Some(ending) = outcome {
            self.endings.end(ending);
        }
        vcpu.into_fd()
    }
}
