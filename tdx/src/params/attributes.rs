//! TD attributes: 64 bits that are part of what a quote attests.
//!
//! Bit numbers: `arch/x86/include/asm/shared/tdx.h`.

use std::fmt;

use super::refusal::Refusal;
use crate::caps::Capabilities;

/// Attributes of a TD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TdAttributes(pub u64);

const NAMES: &[(u32, &str)] = &[
    (0, "DEBUG"),
    (4, "HGS_PLUS"),
    (5, "PERF_PROFILING"),
    (6, "PMT_PROFILING"),
    (16, "ICSSD"),
    (27, "LASS"),
    (28, "SEPT_VE_DISABLE"),
    (29, "MIGRATABLE"),
    (30, "PKS"),
    (31, "KEY_LOCKER"),
    (62, "TPA"),
    (63, "PERFMON"),
];

impl TdAttributes {
    /// Off-TD debug: the host may read and write the TD's state. A quote shows it.
    pub const DEBUG: Self = Self(1);
    /// A touch of a page that was not accepted ends the TD instead of raising #VE in it. Linux
    /// guests want it set and stop early otherwise.
    pub const SEPT_VE_DISABLE: Self = Self(1 << 28);
    /// The TD may be migrated by a migration TD.
    pub const MIGRATABLE: Self = Self(1 << 29);
    /// Supervisor protection keys.
    pub const PKS: Self = Self(1 << 30);
    /// The guest owns the performance counters.
    pub const PERFMON: Self = Self(1 << 63);
    /// What a TD has if nothing is said.
    pub const DEFAULT: Self = Self::SEPT_VE_DISABLE;

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits of `self` that `other` lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The attribute of this name, as in the kernel's header and in any case: `debug`, `perfmon`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .find(|(_, known)| known.eq_ignore_ascii_case(&name.replace('-', "_")))
            .map(|(bit, _)| Self(1 << bit))
    }

    /// One refusal for each bit that the host does not report, with the option of `asked_by` for it.
    pub(crate) fn refusals(self, caps: &Capabilities, asked_by: &[(Self, String)]) -> Vec<Refusal> {
        super::xfam::bits(self.without(caps.attributes).0)
            .map(|bit| {
                let one = Self(1 << bit);
                let option = asked_by.iter().find(|(asked, _)| asked.contains(one));
                let option = option.map(|(_, option)| option.as_str());
                one.refusal(caps).asked_by(option)
            })
            .collect()
    }

    fn refusal(self, caps: &Capabilities) -> Refusal {
        Refusal::new(
            format!("TD attribute {self}"),
            format!(
                "KVM_TDX_CAPABILITIES reports supported_attrs {:#x} without it, so this kernel or \
                 this TDX module lacks it",
                caps.attributes.0
            ),
            "a kernel whose KVM passes the attribute on and a TDX module that offers it",
        )
    }
}

impl fmt::Display for TdAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::xfam::write_bits(f, self.0, NAMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_bits_are_shown_by_name_and_number() {
        let both = TdAttributes::DEBUG.with(TdAttributes::PERFMON);
        assert_eq!(both.to_string(), "DEBUG (bit 0), PERFMON (bit 63)");
        assert_eq!(TdAttributes(1 << 40).to_string(), "unnamed (bit 40)");
        assert_eq!(TdAttributes(0).to_string(), "none");
    }

    #[test]
    fn attributes_are_found_by_name_in_any_case() {
        assert_eq!(
            TdAttributes::by_name("sept-ve-disable"),
            Some(TdAttributes::SEPT_VE_DISABLE)
        );
        assert_eq!(TdAttributes::by_name("PKS"), Some(TdAttributes::PKS));
        assert_eq!(TdAttributes::by_name("sgx"), None);
    }

    #[test]
    fn refusal_of_an_attribute_names_its_option_and_ends_when_the_host_reports_it() {
        let mut caps = crate::fake::capabilities();
        let wanted = TdAttributes::DEFAULT.with(TdAttributes::PERFMON);
        let asked_by = [(TdAttributes::PERFMON, "--platform perfmon=on".to_owned())];
        let refusals = wanted.refusals(&caps, &asked_by);
        assert_eq!(refusals.len(), 1);
        assert_eq!(refusals[0].option(), Some("--platform perfmon=on"));
        assert!(refusals[0].what().contains("PERFMON (bit 63)"));
        assert_eq!(wanted.refusals(&caps, &[])[0].option(), None);
        caps.attributes = caps.attributes.with(TdAttributes::PERFMON);
        assert_eq!(wanted.refusals(&caps, &asked_by), []);
    }
}
