//! Kicks of virtio queues, which the kernel takes as ioeventfds without an exit to this process.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use tdvmm_devices::virtio::transport::NotifyRegistry;
use vmm_sys_util::eventfd::EventFd;

/// The doorbells of one VM.
#[derive(Debug)]
pub struct Doorbells {
    vm: Arc<VmFd>,
}

impl Doorbells {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }
}

impl NotifyRegistry for Doorbells {
    fn place(&self, queue: u16, kick: &EventFd, from: Option<u64>, to: Option<u64>) {
        if let Some(from) = from {
            // Refused where it could not be placed either.
            let at = IoEventAddress::Mmio(from);
            let _ = self.vm.unregister_ioevent(kick, &at, NoDatamatch);
        }
        if let Some(to) = to {
            let at = IoEventAddress::Mmio(to);
            if let Err(error) = self.vm.register_ioevent(kick, &at, NoDatamatch) {
                // A guest that puts two BARs at one place gets here as often as it likes.
                log::debug!("kicks of queue {queue} at {to:#x} come as exits: {error}");
            }
        }
    }
}
