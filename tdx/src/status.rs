//! The TDX module's status word: class, operand, and what to do about it.
//!
//! KVM hands the 64-bit status of a failed SEAMCALL on in `kvm_tdx_cmd.hw_error`. The upper half
//! names the error, the lower half gives detail, mostly the number of the operand at fault. Names
//! and numbers are those of the TDX module's ABI; a status that is not in the table is shown as
//! its class and number, so a newer module loses the name only.

use std::fmt;

/// Status of a SEAMCALL that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TdxStatus(u64);

/// How bad a status is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Not an error.
    Warning,
    /// The call failed and may be repeated as it is.
    Recoverable,
    /// The call failed and would fail again.
    Error,
    /// The TD, or one of its vCPUs, is lost.
    Fatal,
}

impl TdxStatus {
    /// An operand is not valid.
    pub const OPERAND_INVALID: u32 = 0xc000_0100;
    /// An object is in use by another call.
    pub const OPERAND_BUSY: u32 = 0x8000_0200;
    /// The processor's random number generator had nothing to give.
    pub const RND_NO_ENTROPY: u32 = 0x8000_0203;
    /// The TD is to be finalized without a vCPU.
    pub const NO_VCPUS: u32 = 0xc000_0609;

    /// The status in `raw`, or `None` for 0, which is success or "the module was not asked".
    #[must_use]
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw == 0 { None } else { Some(Self(raw)) }
    }

    /// The number as the module gave it.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The upper half, which names the error.
    #[must_use]
    pub const fn code(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// The lower half.
    #[must_use]
    pub const fn detail(self) -> u32 {
        let [.., a, b, c, d] = self.0.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// Bits 47:40: the class.
    #[must_use]
    pub const fn class(self) -> u8 {
        self.0.to_be_bytes()[2]
    }

    /// How bad it is: bits 63, 62 and 61 are error, non-recoverable and fatal.
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self.0 >> 61 {
            0 | 1 => Severity::Warning,
            4 | 5 => Severity::Recoverable,
            6 => Severity::Error,
            _ => Severity::Fatal,
        }
    }

    /// The name of the error, where it is known.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let code = self.code();
        NAMES
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, name)| *name)
    }

    /// The name of the class.
    #[must_use]
    pub const fn class_name(self) -> &'static str {
        match self.class() {
            0x00 => "general",
            0x01 => "invalid operand",
            0x02 => "resource busy",
            0x03 => "page metadata",
            0x04 => "dependent resources",
            0x05 => "module state",
            0x06 => "TD state",
            0x07 => "vCPU state",
            0x08 => "key state",
            0x09 => "platform configuration",
            0x0a => "physical memory",
            0x0b => "guest memory mapping",
            0x0c => "metadata field",
            _ => "unknown class",
        }
    }

    /// The operand at fault, where the detail names one.
    #[must_use]
    pub fn operand(self) -> Option<&'static str> {
        let names_an_operand = matches!(self.class(), 0x01..=0x03) && self.name().is_some();
        if !names_an_operand || self.code() == Self::RND_NO_ENTROPY {
            return None;
        }
        let id = self.detail();
        OPERANDS
            .iter()
            .find(|(known, _)| *known == id)
            .map(|(_, name)| *name)
    }

    /// What the reader of the message can do about it.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        Some(match (self.code(), self.operand()) {
            (Self::OPERAND_INVALID, Some("CPUID_CONFIG")) => {
                "a CPUID value has a bit set that the module does not let the VMM configure"
            }
            (Self::OPERAND_INVALID, Some("ATTRIBUTES")) => {
                "the module refuses this combination of TD attributes"
            }
            (Self::OPERAND_INVALID, Some("XFAM")) => {
                "the module refuses this set of extended features: groups such as AVX-512 or AMX \
                 go together"
            }
            (Self::OPERAND_INVALID, Some("TSC_FREQUENCY")) => {
                "the TSC frequency must be from 100 MHz to 10 GHz, in steps of 25 MHz"
            }
            (Self::OPERAND_INVALID, Some("MAX_VCPUS")) => "too many vCPUs for the module",
            (Self::RND_NO_ENTROPY | Self::OPERAND_BUSY, _) => "passing trouble: try again",
            (Self::NO_VCPUS, _) => "no vCPU was initialised before the measurement was closed",
            (0x6000_0005, _) => {
                "the TD's memory is no longer accessible: the host took a page away"
            }
            _ => match self.severity() {
                Severity::Fatal => "the TD is lost: start it anew",
                Severity::Recoverable => "the call may be repeated",
                _ => return None,
            },
        })
    }
}

impl fmt::Display for TdxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)?;
        match self.name() {
            Some(name) => write!(f, " {name}")?,
            None => write!(f, " class {:#x}, {}", self.class(), self.class_name())?,
        }
        if let Some(operand) = self.operand() {
            write!(f, ", operand {operand}")?;
        }
        Ok(())
    }
}

/// Upper halves and their names: those that the calls of KVM can meet.
const NAMES: &[(u32, &str)] = &[
    (0x4000_0001, "NON_RECOVERABLE_VCPU"),
    (0x4000_0002, "NON_RECOVERABLE_TD"),
    (0x6000_0005, "NON_RECOVERABLE_TD_NON_ACCESSIBLE"),
    (0x6000_0007, "NON_RECOVERABLE_TD_WRONG_APIC_MODE"),
    (0x8000_0003, "INTERRUPTED_RESUMABLE"),
    (0x8000_0004, "INTERRUPTED_RESTARTABLE"),
    (0xc000_0100, "OPERAND_INVALID"),
    (0xc000_0101, "OPERAND_ADDR_RANGE_ERROR"),
    (0x8000_0200, "OPERAND_BUSY"),
    (0x8000_0201, "PREVIOUS_TLB_EPOCH_BUSY"),
    (0x8000_0202, "SYS_BUSY"),
    (0x8000_0203, "RND_NO_ENTROPY"),
    (0xc000_0300, "PAGE_METADATA_INCORRECT"),
    (0xc000_0400, "TD_ASSOCIATED_PAGES_EXIST"),
    (0xc000_0505, "SYS_NOT_READY"),
    (0xc000_0506, "SYS_SHUTDOWN"),
    (0xc000_0600, "TD_NOT_INITIALIZED"),
    (0xc000_0601, "TD_INITIALIZED"),
    (0xc000_0602, "TD_NOT_FINALIZED"),
    (0xc000_0603, "TD_FINALIZED"),
    (0xc000_0604, "TD_FATAL"),
    (0xc000_0605, "TD_NON_DEBUG"),
    (0xc000_0607, "LIFECYCLE_STATE_INCORRECT"),
    (0xc000_0608, "OP_STATE_INCORRECT"),
    (0xc000_0609, "NO_VCPUS"),
    (0xc000_0610, "TDCX_NUM_INCORRECT"),
    (0xc000_0700, "VCPU_STATE_INCORRECT"),
    (0x8000_0701, "VCPU_ASSOCIATED"),
    (0x8000_0702, "VCPU_NOT_ASSOCIATED"),
    (0xc000_0705, "MAX_VCPUS_EXCEEDED"),
    (0x8000_0800, "KEY_GENERATION_FAILED"),
    (0x8000_0810, "TD_KEYS_NOT_CONFIGURED"),
    (0xc000_0811, "KEY_STATE_INCORRECT"),
    (0x8000_0824, "FLUSHVP_NOT_DONE"),
    (0xc000_0b00, "EPT_WALK_FAILED"),
    (0xc000_0b01, "EPT_ENTRY_FREE"),
    (0xc000_0b02, "EPT_ENTRY_NOT_FREE"),
    (0xc000_0b0d, "EPT_ENTRY_STATE_INCORRECT"),
    (0xc000_0c02, "METADATA_FIELD_NOT_READABLE"),
];

/// Operand numbers: registers, the fields of `TD_PARAMS`, and structures.
const OPERANDS: &[(u32, &str)] = &[
    (0, "RAX"),
    (1, "RCX"),
    (2, "RDX"),
    (3, "RBX"),
    (5, "RBP"),
    (6, "RSI"),
    (7, "RDI"),
    (8, "R8"),
    (9, "R9"),
    (10, "R10"),
    (11, "R11"),
    (12, "R12"),
    (13, "R13"),
    (14, "R14"),
    (15, "R15"),
    (64, "ATTRIBUTES"),
    (65, "XFAM"),
    (66, "EXEC_CONTROLS"),
    (67, "EPTP_CONTROLS"),
    (68, "MAX_VCPUS"),
    (69, "CPUID_CONFIG"),
    (70, "TSC_FREQUENCY"),
    (128, "TDR"),
    (129, "TDCX"),
    (130, "TDVPR"),
    (144, "TDCS"),
    (146, "SEPT"),
    (169, "TD_EPOCH"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_config_refusal_names_class_operand_and_hint() {
        let status = TdxStatus::from_raw(0xc000_0100_0000_0045).unwrap();
        assert_eq!(status.class(), 1);
        assert_eq!(status.class_name(), "invalid operand");
        assert_eq!(status.operand(), Some("CPUID_CONFIG"));
        assert_eq!(status.severity(), Severity::Error);
        assert!(status.hint().unwrap().contains("CPUID"));
        assert_eq!(
            status.to_string(),
            "0xc000010000000045 OPERAND_INVALID, operand CPUID_CONFIG"
        );
    }

    #[test]
    fn entropy_failure_is_recoverable_and_names_no_operand() {
        let status = TdxStatus::from_raw(0x8000_0203_0000_0000).unwrap();
        assert_eq!(status.severity(), Severity::Recoverable);
        assert_eq!(status.operand(), None);
        assert_eq!(status.hint(), Some("passing trouble: try again"));
    }

    #[test]
    fn lost_td_is_fatal() {
        for raw in [0x4000_0002_0000_0000, 0x6000_0005_0000_0000] {
            assert_eq!(
                TdxStatus::from_raw(raw).unwrap().severity(),
                Severity::Fatal
            );
        }
    }

    #[test]
    fn unknown_status_shows_its_class() {
        let status = TdxStatus::from_raw(0xc000_06ff_0000_0001).unwrap();
        assert_eq!(status.to_string(), "0xc00006ff00000001 class 0x6, TD state");
        assert_eq!(status.operand(), None);
    }

    #[test]
    fn zero_is_no_status() {
        assert_eq!(TdxStatus::from_raw(0), None);
    }

    #[test]
    fn names_and_operands_are_listed_once() {
        for (i, (code, _)) in NAMES.iter().enumerate() {
            assert!(
                NAMES[i + 1..].iter().all(|(other, _)| other != code),
                "{code:#x}"
            );
        }
        for (i, (id, _)) in OPERANDS.iter().enumerate() {
            assert!(
                OPERANDS[i + 1..].iter().all(|(other, _)| other != id),
                "{id}"
            );
        }
    }
}
