//! Which format an image has, by its first bytes. Pure.
//!
//! A file that bears the mark of a format is refused unless the configuration says what it is: whoever
//! guesses raw destroys an image, and whoever guesses another format lets a guest, which writes the first
//! bytes of its disk, name host files as backing files.

use std::fmt;

/// Bytes that [`Format::of`] wants to see.
pub const PROBE_LEN: usize = 512;

/// A format with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's copy-on-write formats, version 2 and 3.
    Qcow2,
    /// QEMU's older one.
    Qed,
    /// VMware.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Hyper-V.
    Vhdx,
    /// Virtual PC.
    Vhd,
}

impl Format {
    /// The format whose mark the file starts with.
    #[must_use]
    pub fn of(start: &[u8]) -> Option<Self> {
        let marks: [(usize, &[u8], Format); 6] = [
            (0, b"QFI\xfb", Format::Qcow2),
            (0, b"QED\0", Format::Qed),
            (0, b"KDMV", Format::Vmdk),
            (0x40, b"\x7f\x10\xda\xbe", Format::Vdi),
            (0, b"vhdxfile", Format::Vhdx),
            (0, b"conectix", Format::Vhd),
        ];
        let found = marks
            .into_iter()
            .find(|(at, mark, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(mark)));
        found.map(|(_, _, format)| format)
    }

    /// As `qemu-img` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Qed => "qed",
            Format::Vmdk => "vmdk",
            Format::Vdi => "vdi",
            Format::Vhdx => "vhdx",
            Format::Vhd => "vpc",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_of_a_format_is_found() {
        assert_eq!(Format::of(b"QFI\xfb\0\0\0\x03"), Some(Format::Qcow2));
        let mut vdi = vec![0; 512];
        vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        assert_eq!(Format::of(&vdi), Some(Format::Vdi));
        assert_eq!(Format::of(b"vhdxfile"), Some(Format::Vhdx));
    }

    #[test]
    fn file_without_a_mark_is_of_no_format() {
        assert_eq!(Format::of(&[0; 512]), None);
        assert_eq!(Format::of(b"QFI"), None);
        assert_eq!(Format::of(b""), None);
    }
}
