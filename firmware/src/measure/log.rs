//! What was loaded into a TD, in order, kept so that MRTD can be computed again later.
//!
//! The log holds digests, not contents. A replay is given the contents of measured regions again
//! and takes them only where they are what was logged.

use alloc::vec::Vec;

use serde::Serialize;
use tdvmm_arch::GpaRange;
use thiserror::Error;

use super::mrtd::{MrtdBuilder, Order, RegionShapeError};
use super::{Digest, Measure, Region};

/// One region that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// The memory.
    pub range: GpaRange,
    /// Whether the contents went into MRTD.
    pub measured: Measure,
    /// Bytes of contents, without the zeros at the end.
    pub len: usize,
    /// SHA-384 of those bytes, so it is the same whether zeros were given or left out.
    pub sha384: Digest,
}

/// The regions of a TD in the order of loading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MeasurementLog {
    entries: Vec<LogEntry>,
}

/// A replay that cannot tell what MRTD was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// Nothing was given for a measured entry.
    #[error("entry {entry} ({range}) was measured, but its contents are not at hand")]
    Missing {
        /// Place in the log.
        entry: usize,
        /// Its memory.
        range: GpaRange,
    },
    /// Other contents than those logged.
    #[error("entry {entry} ({range}) was logged with other contents than those of SHA-384 {given}")]
    Differs {
        /// Place in the log.
        entry: usize,
        /// Its memory.
        range: GpaRange,
        /// What was given.
        given: Digest,
    },
    /// Contents larger than the memory.
    #[error("entry {entry} cannot be added")]
    Shape {
        /// Place in the log.
        entry: usize,
        /// Why.
        source: RegionShapeError,
    },
}

impl MeasurementLog {
    /// The log of a TD to which nothing was added.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// Notes a region that was added.
    pub fn record(&mut self, region: &Region<'_>) -> Result<(), RegionShapeError> {
        region.check_shape()?;
        let content = without_trailing_zeros(region.bytes);
        self.entries.push(LogEntry {
            range: region.range,
            measured: region.measure,
            len: content.len(),
            sha384: Digest::of(content),
        });
        Ok(())
    }

    /// What was added, in order.
    #[must_use]
    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// Computes MRTD from the log. `contents` is asked once for each measured entry, in order, by
    /// its place in the log.
    pub fn replay<'a>(
        &self,
        order: Order,
        mut contents: impl FnMut(usize, &LogEntry) -> Option<&'a [u8]>,
    ) -> Result<Digest, ReplayError> {
        let mut builder = MrtdBuilder::new(order);
        for (entry, logged) in self.entries.iter().enumerate() {
            let bytes = match logged.measured {
                Measure::No => &[],
                Measure::Yes => {
                    let range = logged.range;
                    let missing = ReplayError::Missing { entry, range };
                    let bytes = contents(entry, logged).ok_or(missing)?;
                    check_same(entry, logged, bytes)?;
                    bytes
                }
            };
            let region = Region {
                range: logged.range,
                measure: logged.measured,
                bytes,
            };
            builder
                .add_region(&region)
                .map_err(|source| ReplayError::Shape { entry, source })?;
        }
        Ok(builder.finish())
    }
}

fn check_same(entry: usize, logged: &LogEntry, bytes: &[u8]) -> Result<(), ReplayError> {
    let given = Digest::of(without_trailing_zeros(bytes));
    if given != logged.sha384 {
        return Err(ReplayError::Differs {
            entry,
            range: logged.range,
            given,
        });
    }
    Ok(())
}

fn without_trailing_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    end.and_then(|last| bytes.get(..=last)).unwrap_or_default()
}
