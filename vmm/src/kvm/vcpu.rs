//! A vCPU of KVM: `KVM_RUN`, and its run page turned into an [`Exit`].

#![expect(
    unsafe_code,
    reason = "the run page of a vCPU is a C union that KVM fills"
)]

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU8, Ordering, fence};

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use tdvmm_tdx::exit::{self, Reply, TdExit};
use tdvmm_tdx::ioctl::{answer, exit_bytes};

use crate::vcpu::exit::{EnterError, Exit, RunVcpu};

/// A vCPU that runs on this thread.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
}

/// An exit without the borrow of the run page, so that the page can be looked at again.
enum Raw {
    PortIn {
        port: u16,
        data: *mut [u8],
    },
    PortOut {
        port: u16,
        data: *const [u8],
    },
    MmioRead {
        address: u64,
        data: *mut [u8],
    },
    MmioWrite {
        address: u64,
        data: *const [u8],
    },
    Kicked,
    Shutdown,
    InternalError,
    /// Told by the bytes of the run page.
    OfTd,
    Dead,
    Unexpected(String),
}

impl KvmVcpu {
    /// Takes the vCPU.
    #[must_use]
    pub fn new(fd: VcpuFd) -> Self {
        Self { fd }
    }

    /// Gives the vCPU back.
    #[must_use]
    pub fn into_fd(self) -> VcpuFd {
        self.fd
    }

    /// Lets the next entry go ahead. The caller then looks at what it has been told, so a kick that comes
    /// before this is seen there, and one that comes after it makes the next entry return.
    fn clear_exit_flag(&mut self) {
        let flag = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the byte lies in the run page, which is mapped as long as `self.fd` lives; a byte is
        // always aligned; other threads access it atomically only (see `kick`).
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        flag.store(0, Ordering::SeqCst);
        // The caller loads what it has been told after this: the two must not change places.
        fence(Ordering::SeqCst);
    }

    /// Bytes of one item of the port access that has just been reported.
    fn port_access_size(&mut self) -> usize {
        let run = self.fd.get_kvm_run();
        debug_assert_eq!(
            run.exit_reason, KVM_EXIT_IO,
            "asked after a port access only"
        );
        // SAFETY: the exit reason says that KVM filled this member, and every bit pattern of it is valid.
        let size = unsafe { run.__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// What KVM says of an internal error: suberror, numbers, bytes of the instruction, and its address.
    fn internal_error(&mut self) -> String {
        let rip = self.fd.get_regs().map(|regs| regs.rip);
        let run = self.fd.get_kvm_run();
        debug_assert_eq!(
            run.exit_reason, KVM_EXIT_INTERNAL_ERROR,
            "asked after such an exit only"
        );
        // SAFETY: the exit reason says that KVM filled this member, and every bit pattern of it is valid.
        let error = unsafe { run.__bindgen_anon_1.internal };
        let mut report = format!("suberror {}", error.suberror);
        if let Ok(rip) = rip {
            let _ = write!(report, ", RIP {rip:#x}");
        }
        let [flags, ..] = error.data;
        if error.suberror == KVM_INTERNAL_ERROR_EMULATION
            && error.ndata >= 3
            && flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0
        {
            // SAFETY: for this suberror and flag KVM fills the instruction's size and bytes as well.
            let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
            // SAFETY: it is a union of one member, and every bit pattern of that is valid.
            let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
            let len = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
            report.push_str(", instruction bytes");
            for byte in bytes.insn_bytes.iter().take(len) {
                let _ = write!(report, " {byte:02x}");
            }
        } else {
            let len = usize::try_from(error.ndata)
                .unwrap_or(0)
                .min(error.data.len());
            let _ = write!(report, ", data {:x?}", &error.data[..len]);
        }
        report
    }
}

/// What an exit for a memory fault at `gpa` is, by the errno of its `KVM_RUN`. With EFAULT the guest meant the other side
/// of a page than it is on. With EHWPOISON it meant the right one, and the host has lost it: nothing can be converted, and
/// the vCPU would exit like this for ever.
fn memory_fault(errno: Option<i32>, gpa: u64) -> Result<Raw, EnterError> {
    match errno {
        Some(libc::EHWPOISON) => Err(EnterError::MemoryFailed(gpa)),
        _ => Ok(Raw::OfTd),
    }
}

impl RunVcpu for KvmVcpu {
    fn enter(&mut self) -> Result<Exit<'_>, EnterError> {
        let raw = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => Raw::PortIn { port, data },
            Ok(VcpuExit::IoOut(port, data)) => Raw::PortOut { port, data },
            Ok(VcpuExit::MmioRead(address, data)) => Raw::MmioRead { address, data },
            Ok(VcpuExit::MmioWrite(address, data)) => Raw::MmioWrite { address, data },
            Ok(VcpuExit::Shutdown) => Raw::Shutdown,
            Ok(VcpuExit::InternalError) => Raw::InternalError,
            Ok(VcpuExit::Intr) => Raw::Kicked,
            // Since KVM_RUN no call was made that could have set another errno.
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                memory_fault(std::io::Error::last_os_error().raw_os_error(), gpa)?
            }
            Ok(VcpuExit::Hypercall(_) | VcpuExit::SystemEvent(..) | VcpuExit::Unsupported(_)) => {
                Raw::OfTd
            }
            Ok(other) => Raw::Unexpected(format!("{other:?}")),
            Err(errno) => match errno.errno() {
                // EAGAIN: an application processor that waits for its start-up message was woken.
                libc::EINTR | libc::EAGAIN => {
                    self.clear_exit_flag();
                    Raw::Kicked
                }
                libc::EIO => Raw::Dead,
                other => return Err(EnterError::Run(std::io::Error::from_raw_os_error(other))),
            },
        };
        Ok(match raw {
            Raw::PortIn { port, data } => {
                let size = self.port_access_size();
                // SAFETY: `run` made `data` from a live part of the run page, which is mapped as long as
                // `self.fd` lives. The borrow of `self` that the result carries keeps the vCPU from being
                // entered or dropped, and no other reference to that part exists (`port_access_size`
                // returned a copy).
                let data = unsafe { &mut *data };
                Exit::PortIn { port, size, data }
            }
            Raw::PortOut { port, data } => {
                let size = self.port_access_size();
                // SAFETY: as for `PortIn`; only read here.
                let data = unsafe { &*data };
                Exit::PortOut { port, size, data }
            }
            Raw::MmioRead { address, data } => {
                // SAFETY: as for `PortIn`.
                let data = unsafe { &mut *data };
                Exit::MmioRead { address, data }
            }
            Raw::MmioWrite { address, data } => {
                // SAFETY: as for `PortIn`; only read here.
                let data = unsafe { &*data };
                Exit::MmioWrite { address, data }
            }
            Raw::OfTd => match exit::decode(&exit_bytes(&mut self.fd)) {
                TdExit::Other { reason } => Exit::Unexpected(format!("exit reason {reason}")),
                exit => Exit::Td(exit),
            },
            Raw::Dead => Exit::Dead,
            Raw::Kicked => Exit::Kicked,
            Raw::Shutdown => Exit::Shutdown,
            Raw::InternalError => Exit::InternalError(self.internal_error()),
            Raw::Unexpected(report) => Exit::Unexpected(report),
        })
    }

    fn answer(&mut self, reply: Reply) {
        if let Err(error) = answer(&mut self.fd, reply) {
            // The kernel's own answer stands, which is a refusal.
            log::error!(target: "vcpu", "{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_fault_with_ehwpoison_is_a_failure_of_the_host_and_no_wish_of_the_guest() {
        let Err(failed) = memory_fault(Some(libc::EHWPOISON), 0x1234_5000) else {
            panic!("it would be served, and come again");
        };
        let said = "the host's memory behind 0x12345000 has failed (EHWPOISON)";
        assert_eq!(failed.to_string(), said);
        let wish = memory_fault(Some(libc::EFAULT), 0x1234_5000);
        assert!(matches!(wish, Ok(Raw::OfTd)));
    }
}
