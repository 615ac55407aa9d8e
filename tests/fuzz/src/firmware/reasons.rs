//! A name for every way in which parsing can end.
//!
//! One table makes both the function that names an end and the list of names that the corpus has to
//! reach. Its patterns are a match without a rest, so a new variant does not compile before it stands
//! in a table, and the corpus is not complete before it reaches it.

use tdvmm_firmware::fwcfg::FwCfgError;
use tdvmm_firmware::hob::HobError;
use tdvmm_firmware::image::{DescriptorError, LayoutError, ParseError, RegionError, SectionError};
use tdvmm_firmware::td_shim::DirectBootError;
use tdvmm_firmware::varstore::{ReplaceError, VarStoreError};

/// `LIST of_function(Error) { pattern => name }`; what follows `; else` no recipe reaches, with the reason there.
macro_rules! ends {
    ($(
        $(#[$doc:meta])*
        $list:ident $function:ident($error:ty) {
            $($pattern:pat => $name:literal,)+
        } $(; else {
            $($other:pat => $other_name:literal,)+
        })?
    )+) => {$(
        #[doc = concat!("What [`", stringify!($function), "`] gives that a corpus reaches.")]
        pub const $list: &[&str] = &["legal", $($name),+];

        $(#[$doc])*
        #[must_use]
        pub const fn $function<T>(result: &Result<T, $error>) -> &'static str {
            match result {
                Ok(_) => "legal",
                $(Err($pattern) => $name,)+
                $($(Err($other) => $other_name,)+)?
            }
        }
    )+};
}

ends! {
    /// How parsing an image ended.
    IMAGE of_image(ParseError) {
        ParseError::Size(_) => "size",
        ParseError::GuidTable { .. } => "guid table",
        ParseError::GuidEntry { .. } => "guid entry",
        ParseError::NoMetadata { .. } => "no metadata",
        ParseError::VariablesOnly => "variables only",
        ParseError::CodeOnly { .. } => "code only",
        ParseError::Descriptor { source: DescriptorError::OutOfFile { .. }, .. } => "descriptor out of file",
        ParseError::Descriptor { source: DescriptorError::Signature(_), .. } => "descriptor signature",
        ParseError::Descriptor { source: DescriptorError::Version(_), .. } => "descriptor version",
        ParseError::Descriptor { source: DescriptorError::Length { .. }, .. } => "descriptor length",
        ParseError::Descriptor { source: DescriptorError::TooManySections(_), .. } => "too many sections",
        ParseError::Section { source: SectionError::Kind(_), .. } => "section type",
        ParseError::Section { source: SectionError::Attributes(_), .. } => "section attributes",
        ParseError::Section { source: SectionError::Unaligned { .. }, .. } => "section unaligned",
        ParseError::Section { source: SectionError::Unreachable { .. }, .. } => "section unreachable",
        ParseError::Section { source: SectionError::MemorySize(_), .. } => "section memory size",
        ParseError::Section { source: SectionError::RawSize(_), .. } => "section raw size",
        ParseError::Section { source: SectionError::RawExceedsMemory { .. }, .. } => "section raw exceeds memory",
        ParseError::Section { source: SectionError::DataOutOfFile { .. }, .. } => "section data out of file",
        ParseError::Layout(LayoutError::MemoryOverlap { .. }) => "memory overlap",
        ParseError::Layout(LayoutError::FileOverlap { .. }) => "file overlap",
        ParseError::Layout(LayoutError::Duplicate { .. }) => "duplicate",
        ParseError::Layout(LayoutError::NoResetVector(_)) => "no reset vector",
        ParseError::Layout(LayoutError::OrphanParameters { .. }) => "orphan parameters",
        ParseError::Layout(LayoutError::TooMuchMemory { .. }) => "too much memory",
        ParseError::Layout(LayoutError::NoMemoryMap) => "no memory map",
    }

    /// How parsing a store of variables ended.
    STORE of_store(VarStoreError) {
        VarStoreError::NotAVolume => "not a volume",
        VarStoreError::VolumeSize { .. } => "volume size",
        VarStoreError::Checksum(_) => "checksum",
        VarStoreError::Format(_) => "format",
        VarStoreError::Store { .. } => "store",
        VarStoreError::Variable { .. } => "variable",
        VarStoreError::Garbage { .. } => "garbage",
    }

    /// How replacing the variables of an image ended.
    REPLACE of_replace(ReplaceError) {
        ReplaceError::NoVariables(None) => "no variables",
        ReplaceError::NoVariables(Some(_)) => "no image",
        ReplaceError::Size { .. } => "other size",
        ReplaceError::Unusable(_) => "unusable",
    }

    /// How laying out a kernel for TD-Shim ended.
    KERNEL of_kernel(DirectBootError) {
        DirectBootError::NoSection(_) => "no section",
        DirectBootError::Occupied => "occupied",
        DirectBootError::Initramfs => "initramfs",
        DirectBootError::Format => "format",
        DirectBootError::KernelTooLong { .. } => "kernel too long",
        DirectBootError::CmdlineTooLong { .. } => "command line too long",
        DirectBootError::Nul(_) => "nul",
        DirectBootError::Elsewhere { .. } => "elsewhere",
        DirectBootError::Overlap(_) => "overlap",
        DirectBootError::Segment(_) => "segment",
    }

    /// How putting contents into an image's sections ended.
    REGIONS of_regions(RegionError) {
        RegionError::NoSection(_) => "no section",
        RegionError::Occupied { .. } => "occupied",
        RegionError::TooLong { .. } => "too long",
    }

    /// How offering a kernel through fw_cfg ended.
    FW_CFG of_fw_cfg(FwCfgError) {
        FwCfgError::Nul { .. } => "nul",
        FwCfgError::ShortKernel { .. } => "short kernel",
    }; else {
        // A file of 4 GiB.
        FwCfgError::TooLarge { .. } => "too large",
        // Tables are the VMM's own.
        FwCfgError::Acpi { .. } => "tables",
    }

    /// How making the hand-off blocks for an image ended.
    HOB of_hob(HobError) {
        HobError::NoSection => "no section",
        HobError::NotRam { .. } => "not RAM",
    }; else {
        // Takes some 40 sections apart from each other, and a TD_HOB section of one page.
        HobError::TooLarge { .. } => "too large",
        // RAM, tables and the number of vCPUs are the VMM's own.
        HobError::Order(_) => "order",
        HobError::Table { .. } => "table",
        HobError::Extensions(_) => "extensions",
        HobError::ApStacks { .. } => "stacks",
    }
}
