//! The launch, told call by call: what was asked of the kernel, how often, when, and which pages
//! with which digest. Written by `--transcript` as JSON; its regions replay to the MRTD.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tdvmm_arch::addr::{Gpa, GpaRange, PAGE_SIZE};

use crate::error::{Command, one_line};
use crate::log::{Measure, MeasurementLog, RegionRecord};
use crate::pages::Digest;

/// All TDX calls of a launch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// The calls.
    pub calls: Vec<CallRecord>,
}

/// One call, or one region with all its tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRecord {
    /// The kernel's name of the call.
    pub call: String,
    /// The vCPU, where the call is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Microseconds from the start of the launch to the first try.
    pub start_us: u64,
    /// Microseconds until it was done.
    pub took_us: u64,
    /// Number of tries; more than 1 where the kernel asked to be called again, 0 where the call failed in the end.
    pub tries: u32,
    /// The pages, where the call added some or was to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionNote>,
    /// What the call failed with; the launch ended with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Pages that a call added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionNote {
    /// First address, as `0x…`.
    pub gpa: String,
    /// Number of 4 KiB pages.
    pub pages: u64,
    /// Whether their contents are in MRTD.
    pub measured: bool,
    /// SHA-384 of the contents without the zeros at their end, in hex.
    pub sha384: String,
}

/// A transcript that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranscriptError {
    /// An address is not a page in hex.
    #[error("transcript: region at {0:?} is no page-aligned hex address")]
    Address(String),
    /// A region wraps around the address space.
    #[error("transcript: region at {gpa} has {pages} pages, which do not fit")]
    Size {
        /// Its address.
        gpa: String,
        /// Its pages.
        pages: u64,
    },
    /// A digest is not 96 hex digits.
    #[error("transcript: {0:?} is no SHA-384 digest")]
    Digest(String),
}

impl Transcript {
    /// The regions that were added, in order, for a replay.
    ///
    /// # Errors
    ///
    /// If a region is malformed: a transcript may come from a file.
    pub fn measurement_log(&self) -> Result<MeasurementLog, TranscriptError> {
        self.calls
            .iter()
            .filter(|call| call.error.is_none())
            .filter_map(|call| call.region.as_ref())
            .map(RegionNote::record)
            .collect()
    }
}

impl RegionNote {
    fn record(&self) -> Result<RegionRecord, TranscriptError> {
        let start = self
            .gpa
            .strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Gpa)
            .filter(|gpa| gpa.is_aligned(PAGE_SIZE))
            .ok_or_else(|| TranscriptError::Address(self.gpa.clone()))?;
        let range = self
            .pages
            .checked_mul(PAGE_SIZE)
            .filter(|len| *len != 0)
            .and_then(|len| GpaRange::from_len(start, len))
            .ok_or_else(|| TranscriptError::Size {
                gpa: self.gpa.clone(),
                pages: self.pages,
            })?;
        Ok(RegionRecord {
            range,
            measure: if self.measured {
                Measure::Yes
            } else {
                Measure::No
            },
            digest: digest_from_hex(&self.sha384)
                .ok_or_else(|| TranscriptError::Digest(self.sha384.clone()))?,
        })
    }
}

impl From<RegionRecord> for RegionNote {
    fn from(region: RegionRecord) -> Self {
        Self {
            gpa: format!("{:#x}", region.range.start().0),
            pages: region.range.len() / PAGE_SIZE,
            measured: region.measure == Measure::Yes,
            sha384: region.digest.to_string(),
        }
    }
}

fn digest_from_hex(text: &str) -> Option<Digest> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    Some(Digest(bytes.try_into().ok().filter(|_| rest.is_empty())?))
}

/// Where the transcript of a launch is written. Who starts the launch keeps a clone of it, and so has the calls also when
/// a step fails and takes the TD with it.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Transcript>>);

impl Recorder {
    /// The calls so far; one that failed is the last.
    #[must_use]
    pub fn transcript(&self) -> Transcript {
        self.lock().clone()
    }

    /// A leaf lock, held to add a call or to copy them.
    fn lock(&self) -> MutexGuard<'_, Transcript> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a transcript and a log while a launch goes on.
#[derive(Debug)]
pub(crate) struct Journal {
    started: Instant,
    recorder: Recorder,
    pub(crate) log: MeasurementLog,
}

/// A call that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    command: Command,
    vcpu: Option<u32>,
    at: Instant,
}

impl Journal {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self {
            started: Instant::now(),
            recorder,
            log: MeasurementLog::default(),
        }
    }

    pub(crate) fn transcript(&self) -> Transcript {
        self.recorder.transcript()
    }

    pub(crate) fn begin(command: Command, vcpu: Option<u32>) -> Begun {
        Begun {
            command,
            vcpu,
            at: Instant::now(),
        }
    }

    pub(crate) fn done(&mut self, call: Begun, tries: u32, region: Option<RegionRecord>) {
        if let Some(region) = region {
            self.log.push(region);
        }
        self.write(call, tries, region, None);
    }

    /// For `inspect_err`: writes down that `call` failed, and with what.
    pub(crate) fn failed<E: Error + 'static>(
        &self,
        call: Begun,
        region: Option<RegionRecord>,
    ) -> impl FnOnce(&E) {
        move |error: &E| self.write(call, 0, region, Some(one_line(error)))
    }

    fn write(&self, call: Begun, tries: u32, region: Option<RegionRecord>, error: Option<String>) {
        self.recorder.lock().calls.push(CallRecord {
            call: call.command.name().to_owned(),
            vcpu: call.vcpu,
            start_us: micros(call.at.saturating_duration_since(self.started)),
            took_us: micros(call.at.elapsed()),
            tries,
            region: region.map(RegionNote::from),
            error,
        });
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> RegionRecord {
        RegionRecord {
            range: GpaRange::constant(0xffc8_4000, 0x2000),
            measure: Measure::Yes,
            digest: Digest(std::array::from_fn(|i| u8::try_from(i).unwrap())),
        }
    }

    #[test]
    fn transcript_replays_to_the_log_it_was_written_with() {
        let mut journal = Journal::new(Recorder::default());
        journal.done(Journal::begin(Command::InitVm, None), 3, None);
        journal.done(
            Journal::begin(Command::InitMemRegion, Some(0)),
            1,
            Some(region()),
        );
        let text = serde_json::to_string(&journal.transcript()).unwrap();
        let read: Transcript = serde_json::from_str(&text).unwrap();
        assert_eq!(read, journal.transcript());
        assert_eq!(read.measurement_log().unwrap(), journal.log);
        assert_eq!(read.calls[0].call, "KVM_TDX_INIT_VM");
        assert_eq!(read.calls[1].region.as_ref().unwrap().gpa, "0xffc84000");
    }

    #[test]
    fn malformed_regions_are_refused() {
        let good = RegionNote::from(region());
        for (bad, want) in [
            (
                RegionNote {
                    gpa: "ffc84000".into(),
                    ..good.clone()
                },
                "hex address",
            ),
            (
                RegionNote {
                    gpa: "0x1001".into(),
                    ..good.clone()
                },
                "hex address",
            ),
            (
                RegionNote {
                    pages: u64::MAX,
                    ..good.clone()
                },
                "do not fit",
            ),
            (
                RegionNote {
                    pages: 0,
                    ..good.clone()
                },
                "do not fit",
            ),
            (
                RegionNote {
                    sha384: "00".into(),
                    ..good.clone()
                },
                "SHA-384",
            ),
        ] {
            assert!(bad.record().unwrap_err().to_string().contains(want));
        }
    }
}
