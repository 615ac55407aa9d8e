//! The width of guest-physical addresses, which also says where the shared half begins.
//!
//! KVM reads it from CPUID 0x80000008.EAX[23:16] of the *initial* table; the vCPU's own table must
//! say the same, or the VM dies at its first run (`tdx_load_mmu_pgd`).

use tdvmm_arch::addr::Gpa;
use tdvmm_arch::cpuid::CpuidTable;

use super::refusal::Refusal;

/// Width of guest-physical addresses. The top bit marks a shared address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gpaw {
    /// 48 bits, shared bit 47; every TDX host has it.
    Bits48,
    /// 52 bits, shared bit 51; needs 5-level EPT in the host.
    Bits52,
}

impl Gpaw {
    /// The number of bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits48 => 48,
            Self::Bits52 => 52,
        }
    }

    /// From a number of bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            48 => Some(Self::Bits48),
            52 => Some(Self::Bits52),
            _ => None,
        }
    }

    /// The bit that marks an address as shared; also the first address above the private half.
    #[must_use]
    pub const fn shared_bit(self) -> u64 {
        match self {
            Self::Bits48 => 1 << 47,
            Self::Bits52 => 1 << 51,
        }
    }

    /// EAX of leaf 0x80000008 with this width in bits 23:16.
    #[must_use]
    pub(crate) fn in_eax(self, eax: u32) -> u32 {
        (eax & !0x00ff_0000) | u32::from(self.bits()) << 16
    }

    /// The width asked for, or the smallest that holds the RAM.
    pub(crate) fn choose(
        asked: Option<Self>,
        ram_top: Gpa,
        cpuid: &CpuidTable,
    ) -> Result<Self, Refusal> {
        let fits = |width: Self| ram_top.0 <= width.shared_bit();
        let width = asked.unwrap_or(if fits(Self::Bits48) {
            Self::Bits48
        } else {
            Self::Bits52
        });
        if !fits(width) {
            return Err(Refusal::new(
                format!("RAM up to {ram_top} with {} address bits", width.bits()),
                format!(
                    "the private half of such a TD ends at {:#x}",
                    width.shared_bit()
                ),
                "less memory, or 52 address bits on a host with 5-level EPT",
            ));
        }
        // A processor whose physical addresses fit in four levels has no five-level EPT. Where it
        // does have them, KVM decides, as CAPABILITIES does not tell.
        let host = cpuid
            .find(0x8000_0008, 0)
            .map_or(u32::MAX, |leaf| leaf.eax & 0xff);
        if width == Self::Bits52 && host <= 48 {
            return Err(Refusal::new(
                "52 guest-physical address bits",
                format!("this processor has {host} physical address bits and no 5-level EPT"),
                "a host with 5-level EPT",
            ));
        }
        Ok(width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tdvmm_arch::cpuid::CpuidEntry;

    fn host(bits: u32) -> CpuidTable {
        let leaf = CpuidEntry {
            function: 0x8000_0008,
            eax: bits,
            ..CpuidEntry::default()
        };
        CpuidTable(vec![leaf])
    }

    #[test]
    fn gpaw_is_48_unless_ram_needs_more() {
        let top = |top| Gpaw::choose(None, Gpa(top), &host(52));
        assert_eq!(top(1 << 40), Ok(Gpaw::Bits48));
        assert_eq!(top(1 << 47), Ok(Gpaw::Bits48));
        assert_eq!(top((1 << 47) + 4096), Ok(Gpaw::Bits52));
    }

    #[test]
    fn gpaw_52_on_a_host_with_46_bits_is_refused() {
        let refusal = Gpaw::choose(Some(Gpaw::Bits52), Gpa(0), &host(46)).unwrap_err();
        assert!(refusal.lacking().contains("46 physical address bits"));
    }

    #[test]
    fn gpaw_48_with_ram_in_the_shared_half_is_refused() {
        assert!(Gpaw::choose(Some(Gpaw::Bits48), Gpa(1 << 48), &host(52)).is_err());
    }

    #[test]
    fn gpaw_replaces_what_capabilities_echo() {
        assert_eq!(Gpaw::Bits48.in_eax(0x00ff_3934), 0x0030_3934);
    }
}
