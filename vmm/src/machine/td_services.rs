//! What a TD asks of this process while it runs.

use std::fmt::Debug;
use std::sync::Arc;

use tdvmm_arch::GpaRange;
use tdvmm_devices::dma::DmaView;
use tdvmm_tdx::exit::{FatalReport, MapGpaStatus, Reply, TdExit, Visibility, VmcallStatus};
use vm_memory::{Bytes, GuestAddress};

use crate::ending::Ending;
use crate::memory::convert::{Backings, TdMemory};
use crate::vcpu::run_loop::TdServices;

/// Serves the exits of a TD.
#[derive(Debug)]
pub struct Services<B> {
    memory: Arc<TdMemory<B>>,
    view: DmaView,
}

impl<B: Backings> Services<B> {
    /// Services over the TD's memory, of which `view` shows the shared part.
    pub fn new(memory: Arc<TdMemory<B>>, view: DmaView) -> Self {
        Self { memory, view }
    }

    /// An access from the other side than the page is on: the guest is given what it meant.
    ///
    /// Where the guest means private memory there has to be some; KVM would otherwise fault again for ever.
    fn memory_fault(&self, vcpu: u32, range: GpaRange, meant: Visibility) -> Result<Reply, Ending> {
        if !self.memory.is_memory(range) {
            let report = format!("the TD touched {range} as {meant:?} memory, where it has none");
            return Err(Ending::UnexpectedExit { vcpu, report });
        }
        match self.memory.convert(range, meant) {
            MapGpaStatus::Done | MapGpaStatus::Retry => Ok(Reply::Keep),
            MapGpaStatus::Invalid => {
                let report = format!("{range} cannot be made {meant:?}");
                Err(Ending::UnexpectedExit { vcpu, report })
            }
        }
    }

    /// The report with the text of the page that it names, if that is shared.
    fn complete(&self, report: FatalReport) -> FatalReport {
        let Some(page) = report.page else {
            return report;
        };
        let mut text = [0; 4096];
        match self.view.read_slice(&mut text, GuestAddress(page.0)) {
            Ok(()) => report.with_page(&text),
            Err(_) => report,
        }
    }
}

impl<B: Backings> TdServices for Services<B> {
    fn serve(&self, vcpu: u32, exit: TdExit) -> Result<Reply, Ending> {
        match exit {
            TdExit::MapGpa { range, to } => Ok(Reply::MapGpa(self.memory.convert(range, to))),
            TdExit::UnknownHypercall { .. } => Ok(Reply::MapGpa(MapGpaStatus::Invalid)),
            // There is no quote service yet, and the guest is told so.
            TdExit::GetQuote(_) | TdExit::SetupEventNotify { .. } => {
                Ok(Reply::Status(VmcallStatus::Unsupported))
            }
            TdExit::GetTdVmCallInfo { .. } => Ok(Reply::CallInfo { r11: 0, r12: 0 }),
            TdExit::UnknownVmcall { .. } => Ok(Reply::Keep),
            TdExit::Fatal(report) => {
                let report = self.complete(report).to_string();
                Err(Ending::TdFatal { vcpu, report })
            }
            TdExit::MemoryFault { range, meant } => self.memory_fault(vcpu, range, meant),
            TdExit::UnknownFault { flags } => Err(Ending::UnexpectedExit {
                vcpu,
                report: format!("memory fault with flags {flags:#x}"),
            }),
            TdExit::Other { reason } => Err(Ending::UnexpectedExit {
                vcpu,
                report: format!("exit reason {reason}"),
            }),
        }
    }
}
