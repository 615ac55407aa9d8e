//! What this host's KVM and TDX module support together: the answer of `KVM_TDX_CAPABILITIES`.
//!
//! Asked on the VM fd of each TD anew, as a module update at run time may change it. KVM reports
//! the intersection of what it knows and what the module offers; it does not say which of the two
//! lacks a bit. Everything that is refused later is decided from these values, never from a list
//! of what some kernel version lacks.

use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};

use crate::abi::KVM_MAX_CPUID_ENTRIES;
use crate::error::{CallError, Command, TdxError};
use crate::params::{TdAttributes, Xfam};

/// What KVM and the TDX module support.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// TD attributes that may be set.
    pub attributes: TdAttributes,
    /// Extended features that may be given to a TD.
    pub xfam: Xfam,
    /// GetTdVmCallInfo leaf 1, R11: bits the kernel sets by itself.
    pub kernel_r11: u64,
    /// GetTdVmCallInfo leaf 1, R11: bits user space may set.
    pub user_r11: u64,
    /// GetTdVmCallInfo leaf 1, R12: bits the kernel sets by itself.
    pub kernel_r12: u64,
    /// GetTdVmCallInfo leaf 1, R12: bits user space may set.
    pub user_r12: u64,
    /// Whether the kernel reports something in words that this program does not know.
    pub unknown_words: bool,
    /// Masks of the CPUID bits that the VMM may set; an entry's flags are always 0.
    pub cpuid: CpuidTable,
}

/// Bit of R11: the TD may ask for an interrupt on events of the VMM.
pub const CALL_INFO_EVENT_NOTIFY: u64 = 1 << 1;

impl Capabilities {
    /// The configurable bits of one CPUID leaf.
    #[must_use]
    pub fn mask(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.cpuid
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
    }

    /// What GetTdVmCallInfo leaf 1 answers in R11, when the VMM itself has the leaves of `vmm`.
    #[must_use]
    pub const fn call_info_r11(&self, vmm: u64) -> u64 {
        self.kernel_r11 | (self.user_r11 & vmm)
    }

    /// What GetTdVmCallInfo leaf 1 answers in R12, as above.
    #[must_use]
    pub const fn call_info_r12(&self, vmm: u64) -> u64 {
        self.kernel_r12 | (self.user_r12 & vmm)
    }
}

/// Calls `ask` with room for more and more entries until it stops failing with `E2BIG`.
///
/// KVM does not write back how many entries `KVM_TDX_CAPABILITIES` has, so the buffer doubles, up
/// to the most that KVM takes anywhere.
pub(crate) fn with_room<T>(
    command: Command,
    mut ask: impl FnMut(usize) -> Result<T, CallError>,
) -> Result<T, TdxError> {
    let mut capacity: usize = 64;
    loop {
        match ask(capacity) {
            Err(error) if error.errno() == libc::E2BIG && capacity < KVM_MAX_CPUID_ENTRIES => {
                capacity = capacity.saturating_mul(2).min(KVM_MAX_CPUID_ENTRIES);
            }
            Err(error) if error.errno() == libc::E2BIG => {
                return Err(TdxError::TooManyEntries {
                    command,
                    limit: capacity,
                });
            }
            answer => return Ok(answer?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_doubles_until_the_entries_fit() {
        let mut tried = Vec::new();
        let found = with_room(Command::Capabilities, |capacity| {
            tried.push(capacity);
            if capacity < 100 {
                Err(CallError::new(Command::Capabilities, libc::E2BIG, 0))
            } else {
                Ok(capacity)
            }
        });
        assert_eq!(found.unwrap(), 128);
        assert_eq!(tried, [64, 128]);
    }

    #[test]
    fn room_stops_at_the_limit_of_kvm() {
        let error = with_room(Command::GetCpuid, |_| -> Result<(), _> {
            Err(CallError::new(Command::GetCpuid, libc::E2BIG, 0))
        });
        assert!(matches!(
            error,
            Err(TdxError::TooManyEntries { limit: 256, .. })
        ));
    }

    #[test]
    fn other_errors_are_not_retried() {
        let mut tries = 0;
        let error = with_room(Command::Capabilities, |_| -> Result<(), _> {
            tries += 1;
            Err(CallError::new(Command::Capabilities, libc::EIO, 0))
        });
        assert!(error.is_err());
        assert_eq!(tries, 1);
    }
}
