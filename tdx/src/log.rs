//! What went into MRTD: the regions of a launch, in the order of their calls.
//!
//! MRTD depends on the order of the calls, on every page that is added, measured or not, and on the
//! contents of the measured ones (TDX module: `TDH.MEM.PAGE.ADD`, `TDH.MR.EXTEND`). The log holds
//! all of that but the contents, of which it has the digest; whoever has the contents replays it.

use tdvmm_arch::addr::GpaRange;

use crate::pages::Digest;

/// Whether the contents of a region are measured. Its addresses always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Page adds and extends.
    Yes,
    /// Page adds only.
    No,
}

/// One region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRecord {
    /// Where it was added.
    pub range: GpaRange,
    /// Whether its contents are in MRTD.
    pub measure: Measure,
    /// SHA-384 of its contents, without the zeros at their end.
    pub digest: Digest,
}

/// The regions of one launch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeasurementLog {
    regions: Vec<RegionRecord>,
}

impl MeasurementLog {
    /// The regions, in the order in which they were added.
    #[must_use]
    pub fn regions(&self) -> &[RegionRecord] {
        &self.regions
    }

    pub(crate) fn push(&mut self, region: RegionRecord) {
        self.regions.push(region);
    }

    /// The first region that shares a page with `range`.
    pub(crate) fn overlapping(&self, range: GpaRange) -> Option<GpaRange> {
        self.regions
            .iter()
            .map(|region| region.range)
            .find(|earlier| earlier.overlaps(range))
    }
}

impl FromIterator<RegionRecord> for MeasurementLog {
    fn from_iter<I: IntoIterator<Item = RegionRecord>>(regions: I) -> Self {
        Self {
            regions: regions.into_iter().collect(),
        }
    }
}
