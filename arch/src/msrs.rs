//! Model-specific registers that differ from their reset value when a kernel is entered without firmware.
//!
//! They are what firmware leaves on every processor. All vCPUs get them, not only the first: Linux compares
//! the MTRRs of its processors and blames the firmware for a difference.

/// `IA32_MISC_ENABLE` (SDM volume 4, table 2-2).
pub const IA32_MISC_ENABLE: u32 = 0x1a0;

/// `IA32_MTRR_DEF_TYPE`.
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast string operations on; branch trace store and precise event sampling not available, as KVM itself
/// starts a vCPU.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;

/// MTRRs enabled, default type write-back.
const MTRR_DEF_TYPE: u64 = 1 << 11 | 6;

/// (index, value) for every vCPU of a guest that is booted without firmware.
#[must_use]
pub const fn boot_msrs() -> &'static [(u32, u64)] {
    &[
        (IA32_MISC_ENABLE, MISC_ENABLE),
        (IA32_MTRR_DEF_TYPE, MTRR_DEF_TYPE),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_by_default() {
        assert!(boot_msrs().contains(&(0x2ff, 0x806)));
    }
}
