//! Why a vCPU left the guest, as a value.
//!
//! What must be given back is written through the exit itself: `data` of a read lies in the page that KVM
//! reads when the vCPU is entered again, so nothing is copied twice and no answer can be forgotten or given
//! to the wrong exit.

use tdvmm_tdx::exit::{Reply, TdExit};
use thiserror::Error;

/// A reason to have left the guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads a port; a string instruction reads it `data.len() / size` times.
    PortIn {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: usize,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// The guest writes a port; a string instruction writes it `data.len() / size` times.
    PortOut {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: usize,
        /// What is written.
        data: &'a [u8],
    },
    /// The guest reads where it has no memory.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// To be filled; 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes where it has no memory.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What is written; 1 to 8 bytes.
        data: &'a [u8],
    },
    /// The guest is a TD and asks for something that only a TD does. Answered by [`RunVcpu::answer`].
    Td(TdExit),
    /// KVM has given the VM up (EIO): it can only be dropped.
    Dead,
    /// Somebody wants this thread to look at what it has been told.
    Kicked,
    /// The processor shut down: an exception could not be delivered (triple fault).
    Shutdown,
    /// KVM cannot go on; the text has the suberror, instruction pointer and bytes.
    InternalError(String),
    /// A reason that this program does not serve.
    Unexpected(String),
}

/// The host does not let the vCPU go on.
#[derive(Debug, Error)]
pub enum EnterError {
    /// KVM refuses to run it, for want of memory mostly.
    #[error("KVM_RUN failed: {0}")]
    Run(std::io::Error),
    /// The guest touched private memory that the host has lost to a hardware error.
    #[error("the host's memory behind {0:#x} has failed (EHWPOISON)")]
    MemoryFailed(u64),
}

/// A virtual processor that can be run until it has something to say.
pub trait RunVcpu {
    /// Goes on in the guest, after the last exit has been answered in place.
    ///
    /// # Errors
    ///
    /// If KVM refuses to run the vCPU at all, or the host has lost memory of the guest.
    fn enter(&mut self) -> Result<Exit<'_>, EnterError>;

    /// Answers an [`Exit::Td`].
    fn answer(&mut self, reply: Reply);
}
