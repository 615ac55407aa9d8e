//! Names for what is known: GUIDs of the table, and releases by their MRTD.

use alloc::string::ToString;

use crate::guid::Guid;
use crate::measure::Digest;

/// What an entry of the GUID table holds. Source: EDK2
/// `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`, `OvmfPkg/ResetVector/X64/IgvmMetadata.asm`.
pub(super) fn meaning(guid: Guid) -> Option<&'static str> {
    let found = MEANINGS.iter().find(|(known, _)| *known == guid);
    found.map(|(_, meaning)| *meaning)
}

const MEANINGS: [(Guid, &str); 6] = [
    (
        Guid::new(
            0xe47a_6535,
            0x984a,
            0x4798,
            [0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2],
        ),
        "TDX descriptor, as an offset from the end",
    ),
    (
        Guid::new(
            0xdc88_6566,
            0x984a,
            0x4798,
            [0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc],
        ),
        "SEV-SNP descriptor, as an offset from the end",
    ),
    (
        Guid::new(
            0x7255_371f,
            0x3a3b,
            0x4b04,
            [0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54],
        ),
        "SEV table of hashes",
    ),
    (
        Guid::new(
            0x4c2e_b361,
            0x7d9b,
            0x4cc3,
            [0x80, 0x81, 0x12, 0x7c, 0x90, 0xd3, 0xd2, 0x94],
        ),
        "SEV launch secret",
    ),
    (
        Guid::new(
            0x00f7_71de,
            0x1a7e,
            0x4fcb,
            [0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e],
        ),
        "SEV-ES reset address of other processors",
    ),
    (
        Guid::new(
            0x784f_a70e,
            0x3176,
            0x4677,
            [0x8a, 0x20, 0x04, 0xb6, 0x86, 0x99, 0xe3, 0x74],
        ),
        "IGVM parameter areas, as an offset from the end",
    ),
];

/// The release whose MRTD (upstream order) this is. Code is compressed in most images, so its version
/// cannot be read from the file; its measurement names it as well.
#[must_use]
pub fn known_release(mrtd: &Digest) -> Option<&'static str> {
    let mrtd = mrtd.to_string();
    let found = RELEASES.iter().find(|(known, _)| *known == mrtd);
    found.map(|(_, release)| *release)
}

/// Computed from the packages.
const RELEASES: [(&str, &str); 4] = [
    (
        "a7a1f751abc454f9cbab198ca8d2edb2821935df525c74182b5e776cb0929e8c\
         59aefecce725b0d08a5e9d3d3183bd08",
        "edk2-stable202608 (Debian ovmf-inteltdx 2026.08+ds-2)",
    ),
    (
        "ab742989d480d040f178cf83c3ae0734f923dbddb7325b4a826e0d87c30cb299\
         aff85beb23ad30a1c6f975a8d0ce3e7a",
        "edk2-stable202608 (Debian ovmf-generic 2026.08+ds-2)",
    ),
    (
        "5f77220a7135b2be2087c3555b897a1c56ca84516fafc622a33fa498a46305a1\
         2597a18bb57bc50f714ffab9fe6f004d",
        "edk2-stable202608 (Debian ovmf-amdsev 2026.08+ds-2)",
    ),
    (
        "a3afbdb368328e9a14d6c908c7a79529fa626673ff8aca5b8a652441b88e66d6\
         e559359a527324ddbbaef38389d51bc4",
        "edk2-stable202608 (Debian ovmf-legacy 2026.08+ds-2)",
    ),
];
