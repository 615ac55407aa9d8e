//! What secure boot will say to the kernel, as far as that can be known beforehand.
//!
//! Firmware that enforces secure boot refuses a kernel on a console that the host may not see, and then waits. So who
//! starts the machine is told before, and again at its end. Nothing is decided here: the firmware decides.

use std::fmt;

use serde::Serialize;
use tdvmm_firmware::fwcfg::KernelFiles;
use tdvmm_firmware::varstore::{KeyKind, SecureBoot, VariableStore, variables_range};

/// Why the firmware will not start the kernel, or may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// It bears no signature, and no hash of it can be in the list of what may start.
    Unsigned,
    /// It is to be started without a shim, so its signature has to be by one of the firmware's own keys.
    NoShim,
    /// It is to be started by a shim and has no `.sbat` section, without which shims from 15.3 on start nothing.
    NoSbat,
}

impl Doubt {
    /// What to do about it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Unsigned => {
                "give a signed kernel and its shim (--shim), or a variable store without keys (--firmware-vars)"
            }
            Self::NoShim => "kernels of distributions need the distribution's shim (--shim)",
            Self::NoSbat => {
                "give a kernel with an .sbat section (CONFIG_EFI_SBAT), or a variable store whose db has the kernel's \
                 own key, without --shim (--firmware-vars)"
            }
        }
    }
}

impl Doubt {
    /// What is said at the end of a machine that somebody ended: where the firmware may have started the kernel all
    /// the same, that is left open.
    #[must_use]
    pub fn in_hindsight(self) -> String {
        let condition = match self {
            Self::Unsigned => "",
            Self::NoShim | Self::NoSbat => "if it did not start: ",
        };
        format!("{condition}{self}: {}", self.remedy())
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => {
                "the firmware enforces secure boot and refuses the kernel, which bears no signature"
            }
            Self::NoShim => {
                "the firmware enforces secure boot and refuses the kernel if none of its own keys has signed it"
            }
            Self::NoSbat => {
                "the firmware enforces secure boot and the shim refuses the kernel, which has no .sbat section"
            }
        })
    }
}

/// Whether the firmware in `image` may refuse `files`.
pub(super) fn doubt(image: &[u8], files: &KernelFiles) -> Option<Doubt> {
    let variables = variables_range(image).ok()?;
    let store = VariableStore::parse(image.get(variables)?).ok()?;
    if store.secure_boot() != SecureBoot::Enforced {
        return None;
    }
    let kernel = (*files.kernel).as_ref();
    let allows_hashes = || {
        let keys = store.keys();
        keys.db.iter().any(|key| key.kind == KeyKind::Sha256)
    };
    if !is_signed(kernel) && !allows_hashes() {
        return Some(Doubt::Unsigned);
    }
    if files.shim.is_none() {
        return Some(Doubt::NoShim);
    }
    (!has_section(kernel, *b".sbat\0\0\0")).then_some(Doubt::NoSbat)
}

/// The number of `N` bytes at `at`, little-endian.
fn number<const N: usize>(program: &[u8], at: usize) -> Option<usize> {
    let bytes: &[u8; N] = program.get(at..)?.first_chunk()?;
    let wide = bytes
        .iter()
        .rev()
        .fold(0, |wide, byte| wide << 8 | u64::from(*byte));
    usize::try_from(wide).ok()
}

/// Whether an EFI program has a section of this name. Source: PE format, "COFF File Header", "Section Table".
fn has_section(program: &[u8], name: [u8; 8]) -> bool {
    let sections = || {
        let header = number::<4>(program, 0x3c)?;
        let count = number::<2>(program, header.checked_add(6)?)?;
        let optional = number::<2>(program, header.checked_add(20)?)?;
        let table = header.checked_add(24)?.checked_add(optional)?;
        Some(program.get(table..)?.chunks_exact(40).take(count))
    };
    sections().is_some_and(|mut all| all.any(|section| section.starts_with(&name)))
}

/// Whether an EFI program has a certificate table. Source: PE format, "Optional Header Data Directories", entry 4.
fn is_signed(program: &[u8]) -> bool {
    let certificates = || {
        let header = number::<4>(program, 0x3c)?;
        let optional = header.checked_add(24)?;
        let is_pe = program.get(header..)?.starts_with(b"PE\0\0");
        // PE32+; PE32 is for 32-bit firmware.
        let is_64_bit = program.get(optional..)?.starts_with(&[0x0b, 0x02]);
        let directories = number::<4>(program, optional.checked_add(108)?)?;
        let len = number::<4>(program, optional.checked_add(112 + 4 * 8 + 4)?)?;
        Some(is_pe && is_64_bit && directories > 4 && len > 0)
    };
    certificates().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directories: u32, certificates: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x98..0x9a].copy_from_slice(&[0x0b, 0x02]);
        bytes[0x98 + 108..][..4].copy_from_slice(&directories.to_le_bytes());
        bytes[0x98 + 148..][..4].copy_from_slice(&certificates.to_le_bytes());
        bytes
    }

    #[test]
    fn program_is_signed_if_it_has_certificates() {
        assert!(is_signed(&program(16, 1472)));
        assert!(!is_signed(&program(16, 0)));
        assert!(!is_signed(&program(4, 1472)));
    }

    #[test]
    fn refusal_of_a_kernel_that_may_have_started_is_told_with_its_condition() {
        let is_open = |doubt: Doubt| doubt.in_hindsight().starts_with("if it did not start: ");
        assert!(is_open(Doubt::NoShim) && is_open(Doubt::NoSbat));
        let unsigned = Doubt::Unsigned.in_hindsight();
        assert!(unsigned.starts_with("the firmware enforces secure boot and refuses the kernel"));
    }

    #[test]
    fn section_is_found_by_its_whole_name_among_those_that_count() {
        let mut bytes = program(16, 0);
        bytes[0x80 + 20] = 240;
        let table = 0x80 + 24 + 240;
        bytes[table..table + 5].copy_from_slice(b".text");
        bytes[table + 40..table + 45].copy_from_slice(b".sbat");
        let with_count = |count| {
            let mut bytes = bytes.clone();
            bytes[0x80 + 6] = count;
            has_section(&bytes, *b".sbat\0\0\0")
        };
        assert!(with_count(2) && !with_count(1));
        assert!(!has_section(b"MZ", *b".sbat\0\0\0"));
    }

    #[test]
    fn what_is_no_program_is_not_signed() {
        assert!(!is_signed(b"MZ"));
        let mut wild = program(16, 1472);
        wild[0x3c..0x40].fill(0xff);
        assert!(!is_signed(&wild));
        // The last byte of the directory's entry is at 0x12f.
        for len in 0..0x130 {
            assert!(!is_signed(&program(16, 1)[..len]), "{len:#x}");
        }
    }
}
