//! The measurements of a TD, as the TDX module computes them: MRTD, with which it starts, and the RTMRs.
//!
//! MRTD is the SHA-384 of what the module was told: 128 bytes for each page added, and for each 256
//! bytes of a measured page 128 bytes and the 256 bytes themselves. Page contents that are not
//! measured do not go in, but that the page was added does. So MRTD depends on the set, the order
//! and the addresses of the added pages, and on the contents of the measured ones.
//!
//! Source: TDX module, `tdh_mem_page_add.c`, `tdh_mr_extend.c`, `tdh_mr_finalize.c`; the order
//! within a region: KVM, `tdx_gmem_post_populate()`.

mod digest;
mod log;
mod mrtd;
mod rtmr;

use tdvmm_arch::GpaRange;

pub use digest::Digest;
pub use log::{LogEntry, MeasurementLog, ReplayError};
pub use mrtd::{MrtdBuilder, Order, RegionShapeError, mrtd};
pub use rtmr::Rtmr;

use serde::Serialize;

/// Whether the contents of a region go into MRTD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Added and extended.
    Yes,
    /// Added only.
    No,
}

/// Memory that is added to a TD before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region<'a> {
    /// Whole pages.
    pub range: GpaRange,
    /// Whether the contents go into MRTD.
    pub measure: Measure,
    /// The contents; zeros follow up to the end of the range.
    pub bytes: &'a [u8],
}
