//! What a TD asks of user space: pure decoding of `struct kvm_run`, and the answers.
//!
//! [`decode`] takes the bytes of `kvm_run` after `KVM_RUN` returned and gives an owned [`TdExit`].
//! The guest chooses most of the numbers in there: nothing in them can make this panic, allocate or
//! loop. KVM strips the shared bit from every address before it gets here; the direction of a
//! conversion comes from a flag alone. Layout: `include/uapi/linux/kvm.h`, `struct kvm_run`;
//! meaning: `arch/x86/kvm/vmx/tdx.c`, `handle_tdvmcall`.

mod fatal;
mod quote;
mod reply;

pub use fatal::FatalReport;
pub use quote::{QuoteHeader, QuoteRequest};
pub use reply::{MapGpaStatus, Reply, VmcallStatus};

use tdvmm_arch::addr::{Gpa, GpaRange, PAGE_SIZE};

use crate::abi;

/// Bytes of `kvm_run` that [`decode`] looks at: the header and the union.
pub const RUN_BYTES: usize = 288;

pub(crate) const EXIT_REASON: usize = 8;
const UNION: usize = 32;

/// An exit that only a TD makes, or that means something else from a TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TdExit {
    /// The guest wants pages to be private or shared. Answer with [`Reply::MapGpa`].
    MapGpa {
        /// The pages; at most 2 MiB, as KVM cuts larger requests.
        range: GpaRange,
        /// What they are to be.
        to: Visibility,
    },
    /// A hypercall that is no sound MapGPA: answer [`MapGpaStatus::Invalid`].
    UnknownHypercall {
        /// Its number.
        nr: u64,
    },
    /// GetQuote. Answer with [`Reply::Status`].
    GetQuote(QuoteRequest),
    /// GetTdVmCallInfo. Answer with [`Reply::CallInfo`].
    GetTdVmCallInfo {
        /// The leaf of the question; KVM passes leaf 1 on.
        leaf: u64,
    },
    /// SetupEventNotifyInterrupt, for the vCPU that made the exit. Answer with [`Reply::Status`].
    SetupEventNotify {
        /// The vector; `None` if it is not one of 32 to 255.
        vector: Option<u8>,
    },
    /// A TDVMCALL that this program does not know. The kernel has put an error in already: answer
    /// [`Reply::Keep`].
    UnknownVmcall {
        /// Its number.
        nr: u64,
    },
    /// The guest gave up. It is not to run again.
    Fatal(FatalReport),
    /// An access whose side, private or shared, is not the page's. `KVM_RUN` has failed with
    /// EFAULT and can be entered again after the conversion.
    MemoryFault {
        /// The pages.
        range: GpaRange,
        /// The side that the guest meant.
        meant: Visibility,
    },
    /// A memory fault with a flag that this program does not know, or with no sound range.
    UnknownFault {
        /// All flags.
        flags: u64,
    },
    /// None of the above: an exit as any VM makes it.
    Other {
        /// The exit reason.
        reason: u32,
    },
}

/// Whose a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// The TD's own.
    Private,
    /// The host's as well.
    Shared,
}

/// The exit in `run`. Bytes that are missing count as 0.
#[must_use]
pub fn decode(run: &[u8]) -> TdExit {
    let run = Run(run);
    match run.reason() {
        abi::KVM_EXIT_HYPERCALL => hypercall(run),
        abi::KVM_EXIT_MEMORY_FAULT => memory_fault(run),
        abi::KVM_EXIT_TDX => vmcall(run),
        abi::KVM_EXIT_SYSTEM_EVENT if run.u32(UNION) == abi::KVM_SYSTEM_EVENT_TDX_FATAL => {
            // One word of type and count, then the registers.
            TdExit::Fatal(FatalReport::decode(&std::array::from_fn(|register| {
                run.word(register.saturating_add(1))
            })))
        }
        reason => TdExit::Other { reason },
    }
}

fn hypercall(run: Run<'_>) -> TdExit {
    // nr, six arguments, ret.
    let nr = run.word(0);
    let range = run
        .word(2)
        .checked_mul(PAGE_SIZE)
        .and_then(|len| pages(run.word(1), len))
        .filter(|_| nr == abi::KVM_HC_MAP_GPA_RANGE);
    match range {
        Some(range) if run.word(3) & abi::KVM_MAP_GPA_RANGE_ENCRYPTED != 0 => TdExit::MapGpa {
            range,
            to: Visibility::Private,
        },
        Some(range) => TdExit::MapGpa {
            range,
            to: Visibility::Shared,
        },
        None => TdExit::UnknownHypercall { nr },
    }
}

fn memory_fault(run: Run<'_>) -> TdExit {
    let flags = run.word(0);
    let meant = match flags {
        0 => Visibility::Shared,
        abi::KVM_MEMORY_EXIT_FLAG_PRIVATE => Visibility::Private,
        _ => return TdExit::UnknownFault { flags },
    };
    match pages(run.word(1), run.word(2)) {
        Some(range) => TdExit::MemoryFault { range, meant },
        None => TdExit::UnknownFault { flags },
    }
}

fn vmcall(run: Run<'_>) -> TdExit {
    // flags, nr, ret, arguments.
    match run.word(1) {
        abi::TDVMCALL_GET_QUOTE => TdExit::GetQuote(QuoteRequest {
            gpa: Gpa(run.word(3)),
            size: run.word(4),
        }),
        abi::TDVMCALL_GET_TD_VM_CALL_INFO => TdExit::GetTdVmCallInfo { leaf: run.word(3) },
        abi::TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT => TdExit::SetupEventNotify {
            vector: u8::try_from(run.word(3))
                .ok()
                .filter(|vector| *vector >= 32),
        },
        nr => TdExit::UnknownVmcall { nr },
    }
}

/// Whole pages, at least one.
fn pages(gpa: u64, len: u64) -> Option<GpaRange> {
    GpaRange::from_len(Gpa(gpa), len)
        .filter(|range| !range.is_empty() && range.is_aligned(PAGE_SIZE))
}

/// The bytes of `kvm_run`.
#[derive(Clone, Copy)]
struct Run<'a>(&'a [u8]);

impl Run<'_> {
    fn reason(self) -> u32 {
        self.u32(EXIT_REASON)
    }

    fn u32(self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// The `index`th 8-byte word of the union.
    fn word(self, index: usize) -> u64 {
        let offset = index.saturating_mul(8).saturating_add(UNION);
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(reason: u32, words: &[u64]) -> Vec<u8> {
        let mut run = vec![0; RUN_BYTES];
        run[EXIT_REASON..EXIT_REASON + 4].copy_from_slice(&reason.to_le_bytes());
        for (i, word) in words.iter().enumerate() {
            run[UNION + 8 * i..UNION + 8 * i + 8].copy_from_slice(&word.to_le_bytes());
        }
        run
    }

    #[test]
    fn map_gpa_direction_comes_from_the_attribute_bit_alone() {
        let range = GpaRange::constant(0x10_0000, 0x20_0000);
        let exit = |attributes| decode(&run(3, &[12, 0x10_0000, 512, attributes]));
        assert_eq!(
            exit(0x10),
            TdExit::MapGpa {
                range,
                to: Visibility::Private
            }
        );
        assert_eq!(
            exit(0),
            TdExit::MapGpa {
                range,
                to: Visibility::Shared
            }
        );
    }

    #[test]
    fn map_gpa_of_nothing_unaligned_or_wrapping_is_unknown() {
        for (gpa, pages) in [
            (0x1000, 0),
            (0x1001, 1),
            (u64::MAX - 0xfff, 2),
            (0, u64::MAX),
        ] {
            let exit = decode(&run(3, &[12, gpa, pages, 0]));
            assert_eq!(exit, TdExit::UnknownHypercall { nr: 12 });
        }
        assert_eq!(
            decode(&run(3, &[11, 0, 1, 0])),
            TdExit::UnknownHypercall { nr: 11 }
        );
    }

    #[test]
    fn memory_fault_flags_say_which_side_was_meant() {
        let range = GpaRange::constant(0x5000, 0x1000);
        let exit = |flags| decode(&run(39, &[flags, 0x5000, 0x1000]));
        assert_eq!(
            exit(8),
            TdExit::MemoryFault {
                range,
                meant: Visibility::Private
            }
        );
        assert_eq!(
            exit(0),
            TdExit::MemoryFault {
                range,
                meant: Visibility::Shared
            }
        );
        assert_eq!(exit(9), TdExit::UnknownFault { flags: 9 });
    }

    #[test]
    fn vmcalls_are_told_apart_by_number() {
        let exit = |nr, rest: [u64; 2]| decode(&run(40, &[0, nr, 0, rest[0], rest[1]]));
        assert_eq!(
            exit(0x10002, [0x7000, 0x2000]),
            TdExit::GetQuote(QuoteRequest {
                gpa: Gpa(0x7000),
                size: 0x2000
            })
        );
        assert_eq!(exit(0x10000, [1, 0]), TdExit::GetTdVmCallInfo { leaf: 1 });
        assert_eq!(
            exit(0x10004, [32, 0]),
            TdExit::SetupEventNotify { vector: Some(32) }
        );
        assert_eq!(
            exit(0x10004, [31, 0]),
            TdExit::SetupEventNotify { vector: None }
        );
        assert_eq!(
            exit(0x10004, [256, 0]),
            TdExit::SetupEventNotify { vector: None }
        );
        assert_eq!(exit(0x10005, [0, 0]), TdExit::UnknownVmcall { nr: 0x10005 });
    }

    #[test]
    fn fatal_error_is_told_from_other_system_events() {
        let mut words = [0u64; 17];
        words[0] = 7 | 16 << 32;
        assert!(matches!(decode(&run(24, &words)), TdExit::Fatal(_)));
        assert_eq!(decode(&run(24, &[1])), TdExit::Other { reason: 24 });
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..RUN_BYTES),
            reason in prop_oneof![Just(3u32), Just(24), Just(39), Just(40), any::<u32>()],
        ) {
            if let Some(field) = bytes.get_mut(EXIT_REASON..EXIT_REASON + 4) {
                field.copy_from_slice(&reason.to_le_bytes());
            }
            match decode(&bytes) {
                TdExit::MapGpa { range, .. } | TdExit::MemoryFault { range, .. } => {
                    prop_assert!(!range.is_empty() && range.is_aligned(PAGE_SIZE));
                }
                TdExit::SetupEventNotify { vector: Some(vector) } => prop_assert!(vector >= 32),
                TdExit::Fatal(report) => prop_assert!(report.to_string().len() < 1024),
                _ => {}
            }
        }
    }
}
