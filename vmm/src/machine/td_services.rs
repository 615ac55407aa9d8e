//! What a TD asks of this process while it runs.

use std::fmt::Debug;
use std::sync::Arc;

use tdvmm_arch::GpaRange;
use tdvmm_devices::dma::DmaView;
use tdvmm_tdx::caps::Capabilities;
use tdvmm_tdx::exit::{FatalReport, MapGpaStatus, Reply, TdExit, Visibility, VmcallStatus};
use vm_memory::{Bytes, GuestAddress};

use crate::ending::Ending;
use crate::memory::convert::{Backings, TdMemory};
use crate::vcpu::run_loop::TdServices;

/// Leaves of TDVMCALL that are served here, as the bits of R11 and R12 of GetTdVmCallInfo: none yet.
const SERVED: (u64, u64) = (0, 0);

/// Serves the exits of a TD.
#[derive(Debug)]
pub struct Services<B> {
    memory: Arc<TdMemory<B>>,
    view: DmaView,
    call_info: Reply,
}

impl<B: Backings> Services<B> {
    /// Services over the TD's memory, of which `view` shows the shared part, beside those of the kernel that has
    /// `capabilities`.
    pub fn new(memory: Arc<TdMemory<B>>, view: DmaView, capabilities: &Capabilities) -> Self {
        Self {
            memory,
            view,
            call_info: Reply::CallInfo {
                r11: capabilities.call_info_r11(SERVED.0),
                r12: capabilities.call_info_r12(SERVED.1),
            },
        }
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
            TdExit::GetTdVmCallInfo { .. } => Ok(self.call_info),
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

#[cfg(test)]
mod tests {
    use std::io;

    use tdvmm_tdx::fake::FakeTd;
    use tdvmm_tdx::td::{Td, VmSetup};
    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// Takes everything.
    #[derive(Debug)]
    struct Willing;

    impl Backings for Willing {
        fn set_visibility(&self, _: GpaRange, _: Visibility) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: GpaRange, _: Visibility) -> io::Result<()> {
            Ok(())
        }
        fn allow_large_page(&self, _: GpaRange) -> io::Result<()> {
            Ok(())
        }
        fn split_large_page(&self, _: GpaRange, _: GpaRange) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn call_info_tells_what_the_kernel_serves_and_no_leaf_that_nobody_does() {
        let mut td = Td::create(FakeTd::default(), &VmSetup::default()).unwrap();
        let capabilities = Capabilities {
            kernel_r11: 0b1000,
            user_r11: 0b0010,
            kernel_r12: 0b0100,
            user_r12: 0b0001,
            ..td.capabilities().unwrap()
        };
        let ranges = vec![GpaRange::constant(0, 0x1000)];
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let services = Services::new(
            Arc::new(TdMemory::new(ranges, Willing)),
            DmaView::all_shared(Arc::new(ram)),
            &capabilities,
        );
        let answer = services.serve(0, TdExit::GetTdVmCallInfo { leaf: 1 });
        let expected = Reply::CallInfo {
            r11: 0b1000,
            r12: 0b0100,
        };
        assert_eq!(answer, Ok(expected));
    }
}
