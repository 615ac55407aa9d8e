//! KVM as this program uses it: the host's abilities, one VM, and narrow handles for its parts.

pub mod doorbells;
pub mod host;
pub mod kick;
pub mod msix;
pub mod routes;
pub mod slots;
pub mod td;
pub mod vcpu;
pub mod vm;

use thiserror::Error;

/// A call into KVM failed.
#[derive(Debug, Error)]
pub enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {}", remedy(.source))]
    Open {
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel's KVM is none that this program can use.
    #[error("KVM on this host lacks {what}: {remedy}")]
    Lacks {
        /// The capability.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A system call failed.
    #[error("{call} failed")]
    Call {
        /// The call, by its name in the kernel's documentation.
        call: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl KvmError {
    /// Wraps the errno of `call`.
    pub fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Call {
            call,
            source: std::io::Error::from_raw_os_error(errno.errno()),
        }
    }
}

fn remedy(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "the kernel has no KVM, or virtualization is off in the firmware setup"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "this user may not; add it to the group that owns it (kvm)"
        }
        Some(libc::ENXIO | libc::ENODEV) => "the kvm modules are not loaded (kvm_intel or kvm_amd)",
        _ => "see the cause",
    }
}
