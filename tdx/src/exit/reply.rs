//! Answers to a TD's exits, as 8-byte words to put into `kvm_run`.

use crate::abi;

/// The three answers to MapGPA that KVM takes: positive errnos. With anything else the next
/// `KVM_RUN` fails with EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum MapGpaStatus {
    /// The pages are what the guest wants them to be.
    Done = 0,
    /// The guest is to ask again.
    Retry = 11,
    /// The guest cannot have that.
    Invalid = 22,
}

/// A TDVMCALL's status, as the guest sees it in R10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmcallStatus {
    /// Done, or accepted.
    Success,
    /// Ask again.
    Retry,
    /// An operand is not valid.
    InvalidOperand,
    /// An address or a size is not aligned.
    AlignError,
    /// There is no such call.
    Unsupported,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// What the kernel has put in stands.
    Keep,
    /// To MapGPA and to other hypercalls.
    MapGpa(MapGpaStatus),
    /// To GetQuote and SetupEventNotifyInterrupt.
    Status(VmcallStatus),
    /// To GetTdVmCallInfo: which leaves there are.
    CallInfo {
        /// R11.
        r11: u64,
        /// R12.
        r12: u64,
    },
}

/// Offsets in `kvm_run`.
const HYPERCALL_RET: usize = 88;
const TDX_RET: usize = 48;
const TDX_INFO_R11: usize = 64;
const TDX_INFO_R12: usize = 72;

impl VmcallStatus {
    /// The number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        match self {
            Self::Success => abi::TDVMCALL_STATUS_SUCCESS,
            Self::Retry => abi::TDVMCALL_STATUS_RETRY,
            Self::InvalidOperand => abi::TDVMCALL_STATUS_INVALID_OPERAND,
            Self::AlignError => abi::TDVMCALL_STATUS_ALIGN_ERROR,
            Self::Unsupported => abi::TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED,
        }
    }
}

impl Reply {
    /// The words to write, as (offset, value), for an exit of this reason and TDVMCALL number.
    /// `None` if the answer does not belong to such an exit: writing it would change something
    /// else.
    pub(crate) fn words(self, reason: u32, nr: u64) -> Option<Vec<(usize, u64)>> {
        let info = nr == abi::TDVMCALL_GET_TD_VM_CALL_INFO;
        let status = matches!(
            nr,
            abi::TDVMCALL_GET_QUOTE | abi::TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT
        );
        match (self, reason) {
            (Self::Keep, _) => Some(Vec::new()),
            (Self::MapGpa(status), abi::KVM_EXIT_HYPERCALL) => {
                Some(vec![(HYPERCALL_RET, status as u64)])
            }
            (Self::Status(answer), abi::KVM_EXIT_TDX) if status || info => {
                Some(vec![(TDX_RET, answer.raw())])
            }
            (Self::CallInfo { r11, r12 }, abi::KVM_EXIT_TDX) if info => Some(vec![
                (TDX_RET, VmcallStatus::Success.raw()),
                (TDX_INFO_R11, r11),
                (TDX_INFO_R12, r12),
            ]),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_gpa_answers_are_positive_errnos() {
        let words = |status| {
            Reply::MapGpa(status)
                .words(abi::KVM_EXIT_HYPERCALL, 12)
                .unwrap()
        };
        assert_eq!(words(MapGpaStatus::Done), [(88, 0)]);
        assert_eq!(words(MapGpaStatus::Retry), [(88, 11)]);
        assert_eq!(words(MapGpaStatus::Invalid), [(88, 22)]);
    }

    #[test]
    fn answer_to_another_exit_is_not_written() {
        let map = Reply::MapGpa(MapGpaStatus::Done);
        assert_eq!(map.words(abi::KVM_EXIT_TDX, abi::TDVMCALL_GET_QUOTE), None);
        let info = Reply::CallInfo { r11: 2, r12: 0 };
        assert_eq!(info.words(abi::KVM_EXIT_TDX, abi::TDVMCALL_GET_QUOTE), None);
        let status = Reply::Status(VmcallStatus::Success);
        assert_eq!(status.words(abi::KVM_EXIT_HYPERCALL, 12), None);
        assert_eq!(status.words(abi::KVM_EXIT_TDX, 0x10009), None);
    }

    #[test]
    fn keep_writes_nothing() {
        assert_eq!(
            Reply::Keep.words(abi::KVM_EXIT_TDX, 0x10009),
            Some(Vec::new())
        );
    }

    #[test]
    fn call_info_says_success_and_both_registers() {
        let words = Reply::CallInfo { r11: 2, r12: 5 }
            .words(abi::KVM_EXIT_TDX, abi::TDVMCALL_GET_TD_VM_CALL_INFO)
            .unwrap();
        assert_eq!(words, [(48, 0), (64, 2), (72, 5)]);
    }
}
