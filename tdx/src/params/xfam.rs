//! XFAM: the extended processor state that a TD may use, in the bits of XCR0 and `IA32_XSS`.
//!
//! The TDX module takes some bits only in groups (AVX-512, AMX, CET); x87 and SSE are always set.
//! Rules: TDX module ABI, "XFAM"; the same as the dependencies of XSAVE.

use std::fmt;

use tdvmm_arch::cpuid::CpuidTable;

use super::refusal::Refusal;
use crate::caps::Capabilities;

/// Extended features of a TD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Xfam(pub u64);

/// Which extended features a TD should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XfamChoice {
    /// All that the wanted CPUID shows and the host reports, in whole groups.
    FromCpuid,
    /// These, or a refusal.
    Exactly(Xfam),
}

const NAMES: &[(u32, &str)] = &[
    (0, "x87"),
    (1, "SSE"),
    (2, "AVX"),
    (3, "MPX BNDREGS"),
    (4, "MPX BNDCSR"),
    (5, "AVX-512 opmask"),
    (6, "AVX-512 ZMM_Hi256"),
    (7, "AVX-512 Hi16_ZMM"),
    (8, "PT"),
    (9, "PKRU"),
    (10, "PASID"),
    (11, "CET user"),
    (12, "CET supervisor"),
    (13, "HDC"),
    (14, "UINTR"),
    (15, "LBR"),
    (16, "HWP"),
    (17, "AMX TILECFG"),
    (18, "AMX TILEDATA"),
    (19, "APX"),
];

/// Bits that come together, and the bits they build on.
const GROUPS: &[(u64, u64)] = &[
    (0b11, 0),            // x87 and SSE
    (1 << 2, 0b11),       // AVX
    (0b111 << 5, 1 << 2), // AVX-512
    (0b11 << 11, 0),      // CET
    (0b11 << 17, 0),      // AMX
];

impl Xfam {
    /// x87 and SSE, which no TD is without.
    pub const LEGACY: Self = Self(0b11);
    /// AMX tiles, for which the process needs a permission.
    pub const AMX: Self = Self(0b11 << 17);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The largest part of these bits that keeps the rules of groups.
    #[must_use]
    pub fn whole_groups(self) -> Self {
        let mut bits = self.0 | Self::LEGACY.0;
        for (group, base) in GROUPS {
            if bits & group != *group || bits & base != *base {
                bits &= !group;
            }
        }
        // MPX is gone from every processor that has TDX.
        Self(bits & !(0b11 << 3))
    }

    /// The bits that a CPUID table shows in leaf 0xD: XCR0 from sub-leaf 0, `IA32_XSS` from 1.
    #[must_use]
    pub fn in_cpuid(cpuid: &CpuidTable) -> Self {
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let xcr0 = cpuid
            .find(0xd, 0)
            .map_or(0, |leaf| join(leaf.eax, leaf.edx));
        let xss = cpuid
            .find(0xd, 1)
            .map_or(0, |leaf| join(leaf.ecx, leaf.edx));
        Self(xcr0 | xss)
    }
}

impl XfamChoice {
    /// The bits to give, or what is refused.
    pub(crate) fn resolve(
        self,
        cpuid: &CpuidTable,
        caps: &Capabilities,
    ) -> Result<Xfam, Vec<Refusal>> {
        // KVM adds the bits that are always set by itself, also where it does not report them.
        let supported = Xfam(caps.xfam.0 | Xfam::LEGACY.0);
        let wanted = match self {
            Self::FromCpuid => {
                return Ok(Xfam(Xfam::in_cpuid(cpuid).0 & supported.0).whole_groups());
            }
            Self::Exactly(wanted) => Xfam(wanted.0 | Xfam::LEGACY.0),
        };
        let mut refusals: Vec<_> = bits(wanted.0 & !supported.0)
            .map(|bit| {
                Refusal::new(
                    format!("extended feature {}", Xfam(1 << bit)),
                    format!(
                        "KVM_TDX_CAPABILITIES reports supported_xfam {:#x} without it, so this \
                         processor, kernel or TDX module lacks it",
                        caps.xfam.0
                    ),
                    "a processor and TDX module that have it and a kernel that passes it on",
                )
            })
            .collect();
        let torn = Xfam(wanted.0 & supported.0 & !wanted.whole_groups().0);
        if torn.0 != 0 {
            refusals.push(Refusal::new(
                format!("extended feature {torn} alone"),
                "the TDX module takes such bits in whole groups only",
                "adding the other bits of the group and what it builds on",
            ));
        }
        if refusals.is_empty() {
            Ok(wanted)
        } else {
            Err(refusals)
        }
    }
}

impl fmt::Display for Xfam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_bits(f, self.0, NAMES)
    }
}

/// The numbers of the bits set in `word`, ascending.
pub(crate) fn bits(word: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |bit| word & (1 << bit) != 0)
}

pub(crate) fn write_bits(
    f: &mut fmt::Formatter<'_>,
    word: u64,
    names: &[(u32, &str)],
) -> fmt::Result {
    if word == 0 {
        return f.write_str("none");
    }
    for (i, bit) in bits(word).enumerate() {
        let name = names
            .iter()
            .find(|(known, _)| *known == bit)
            .map_or("unnamed", |(_, n)| n);
        write!(f, "{}{name} (bit {bit})", if i == 0 { "" } else { ", " })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fake;
    use tdvmm_arch::cpuid::CpuidEntry;

    fn with_xcr0(eax: u32) -> CpuidTable {
        CpuidTable(vec![CpuidEntry {
            function: 0xd,
            flags: 1,
            eax,
            ..CpuidEntry::default()
        }])
    }

    #[test]
    fn xfam_from_cpuid_drops_incomplete_avx512() {
        let mut caps = fake::capabilities();
        caps.xfam = Xfam(0xe7);
        let got = XfamChoice::FromCpuid
            .resolve(&with_xcr0(0b0110_0111), &caps)
            .unwrap();
        assert_eq!(got, Xfam(0b111));
    }

    #[test]
    fn exact_xfam_beyond_the_host_is_refused_by_name() {
        let mut caps = fake::capabilities();
        caps.xfam = Xfam(0b111);
        let wanted = XfamChoice::Exactly(Xfam(0b111 | Xfam::AMX.0));
        let refusals = wanted.resolve(&CpuidTable::default(), &caps).unwrap_err();
        assert_eq!(refusals.len(), 2);
        assert!(refusals[0].what().contains("AMX TILECFG (bit 17)"));
        assert!(refusals[0].lacking().contains("supported_xfam 0x7"));
    }

    #[test]
    fn exact_xfam_with_half_a_group_is_refused() {
        let mut caps = fake::capabilities();
        caps.xfam = Xfam(0xe7);
        let wanted = XfamChoice::Exactly(Xfam(0b0010_0111));
        let refusals = wanted.resolve(&CpuidTable::default(), &caps).unwrap_err();
        assert!(refusals[0].what().contains("AVX-512 opmask"));
    }

    proptest! {
        #[test]
        fn whole_groups_is_idempotent_and_keeps_the_rules(word in any::<u64>()) {
            let whole = Xfam(word).whole_groups();
            prop_assert_eq!(whole.whole_groups(), whole);
            for (group, base) in GROUPS {
                let part = whole.0 & group;
                prop_assert!(part == 0 || (part == *group && whole.0 & base == *base));
            }
            prop_assert_eq!(whole.0 & !(word | Xfam::LEGACY.0), 0);
        }
    }
}
