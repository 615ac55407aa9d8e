//! What a driver asks of a disk (virtio 1.3, 5.2.6): a header, the sizes of the chain's parts, and the
//! disk's geometry in; a checked request or the reason against it out. Pure.

use thiserror::Error;

/// Bytes of a sector, the unit of all positions.
pub const SECTOR: u64 = 512;
/// Bytes of the header, and of a discard or write-zeroes segment.
pub const HEADER_LEN: usize = 16;
/// Bytes of the answer to GET_ID (virtio 1.3, 5.2.6).
pub const ID_LEN: usize = 20;

/// At most so many sectors are discarded at once, 2 GiB.
pub const MAX_DISCARD: u32 = 1 << 22;
/// At most so many sectors are zeroed at once, 16 MiB: what the host may have to write out.
pub const MAX_WRITE_ZEROES: u32 = 1 << 15;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
const FLAG_UNMAP: u32 = 1;

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed, or the request makes no sense.
    IoError = 1,
    /// There is no such request.
    Unsupported = 2,
}

/// A request that the disk can serve. All ranges are within it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// From the disk into the writable part.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// From the readable part behind the header to the disk.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// What was written until now is to last.
    Flush,
    /// The serial number.
    GetId,
    /// The content may be forgotten.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The content is to be zeros.
    WriteZeroes {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Whether the space may be given back.
        unmap: bool,
    },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Of no type that there is.
    #[error("request of type {0}")]
    Type(u32),
    /// A write to a disk that is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Data of no whole sectors, or none.
    #[error("{0} bytes of data")]
    Length(u64),
    /// Not all of it is on the disk.
    #[error("{len} bytes at sector {sector} are not on the disk")]
    Range {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
    },
    /// Flags that there are none of.
    #[error("flags {0:#x}")]
    Flags(u32),
}

impl RequestError {
    /// What the driver is told.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            RequestError::Type(_) | RequestError::Flags(_) => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// What of a disk matters for checking a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, a multiple of a sector.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether DISCARD and WRITE_ZEROES are offered.
    pub discard: bool,
}

/// The parts of a chain: the header, the first bytes behind it (a discard segment), and the sizes of
/// what the driver gives behind the header and of what it wants before the status byte.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Type, reserved, sector.
    pub header: [u8; HEADER_LEN],
    /// Zeros where the driver gave less.
    pub segment: [u8; HEADER_LEN],
    /// Bytes behind the header.
    pub given: u32,
    /// Bytes before the status.
    pub wanted: u32,
}

/// Decides what `parts` ask for.
///
/// # Errors
///
/// If the request is none that this disk serves.
pub fn parse(parts: &Parts, disk: &Limits) -> Result<Request, RequestError> {
    let [t0, t1, t2, t3, _, _, _, _, s @ ..] = parts.header;
    let sector = u64::from_le_bytes(s);
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    if disk.read_only && matches!(kind, TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES) {
        return Err(RequestError::ReadOnly);
    }
    match kind {
        TYPE_IN => {
            let len = parts.wanted;
            let offset = on_disk(sector, u64::from(len), disk)?;
            Ok(Request::Read { offset, len })
        }
        TYPE_OUT => {
            let len = parts.given;
            let offset = on_disk(sector, u64::from(len), disk)?;
            Ok(Request::Write { offset, len })
        }
        TYPE_FLUSH => Ok(Request::Flush),
        TYPE_GET_ID => Ok(Request::GetId),
        TYPE_DISCARD | TYPE_WRITE_ZEROES if disk.discard => parse_segment(kind, parts, disk),
        other => Err(RequestError::Type(other)),
    }
}

/// One segment of sector, count and flags, as the configuration says (`max_discard_seg` is 1).
fn parse_segment(kind: u32, parts: &Parts, disk: &Limits) -> Result<Request, RequestError> {
    if usize::try_from(parts.given) != Ok(HEADER_LEN) {
        return Err(RequestError::Length(u64::from(parts.given)));
    }
    let [a, b, c, d, e, f, g, h, n0, n1, n2, n3, flags @ ..] = parts.segment;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let len = u64::from(count).wrapping_mul(SECTOR);
    let (max, known) = match kind {
        TYPE_DISCARD => (MAX_DISCARD, 0),
        _ => (MAX_WRITE_ZEROES, FLAG_UNMAP),
    };
    // A discard with the unmap flag set is unsupported (virtio 1.3, 5.2.6.2).
    if flags & !known != 0 {
        return Err(RequestError::Flags(flags));
    }
    if count > max {
        return Err(RequestError::Length(len));
    }
    let offset = on_disk(sector, len, disk)?;
    Ok(match kind {
        TYPE_DISCARD => Request::Discard { offset, len },
        _ => Request::WriteZeroes {
            offset,
            len,
            unmap: flags & FLAG_UNMAP != 0,
        },
    })
}

/// The first byte, if the range is whole sectors on the disk.
fn on_disk(sector: u64, len: u64, disk: &Limits) -> Result<u64, RequestError> {
    if len == 0 || !len.is_multiple_of(SECTOR) {
        return Err(RequestError::Length(len));
    }
    let range = RequestError::Range { sector, len };
    let offset = sector.checked_mul(SECTOR).ok_or(range)?;
    let end = offset.checked_add(len).ok_or(range)?;
    if end > disk.size {
        return Err(range);
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Limits = Limits {
        size: 64 * SECTOR,
        read_only: false,
        discard: true,
    };

    fn parts(kind: u32, sector: u64, given: u32, wanted: u32) -> Parts {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        Parts {
            header,
            segment: [0; 16],
            given,
            wanted,
        }
    }

    fn with_segment(kind: u32, sector: u64, count: u32, flags: u32) -> Parts {
        let mut parts = parts(kind, 99, 16, 0);
        parts.segment[..8].copy_from_slice(&sector.to_le_bytes());
        parts.segment[8..12].copy_from_slice(&count.to_le_bytes());
        parts.segment[12..].copy_from_slice(&flags.to_le_bytes());
        parts
    }

    #[test]
    fn read_at_the_last_sector_is_taken_and_beyond_it_refused() {
        let request = parse(&parts(0, 63, 0, 512), &DISK);
        let expected = Request::Read {
            offset: 63 * 512,
            len: 512,
        };
        assert_eq!(request, Ok(expected));
        for (sector, len) in [
            (64, 512),
            (63, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
        ] {
            let error = parse(&parts(0, sector, 0, len), &DISK).unwrap_err();
            assert!(matches!(error, RequestError::Range { .. }));
            assert_eq!(error.status(), Status::IoError);
        }
    }

    #[test]
    fn data_of_no_whole_sectors_is_refused() {
        for len in [0, 1, 511, 513] {
            let error = RequestError::Length(u64::from(len));
            assert_eq!(parse(&parts(1, 0, len, 0), &DISK), Err(error));
        }
    }

    #[test]
    fn read_only_disk_takes_no_write_of_any_kind() {
        let disk = Limits {
            read_only: true,
            ..DISK
        };
        for parts in [
            parts(1, 0, 512, 0),
            with_segment(11, 0, 1, 0),
            with_segment(13, 0, 1, 0),
        ] {
            assert_eq!(parse(&parts, &disk), Err(RequestError::ReadOnly));
        }
        assert_eq!(parse(&parts(4, 0, 0, 0), &disk), Ok(Request::Flush));
    }

    #[test]
    fn discard_and_write_zeroes_check_segment_and_flags() {
        let discard = Request::Discard {
            offset: 512,
            len: 1024,
        };
        assert_eq!(parse(&with_segment(11, 1, 2, 0), &DISK), Ok(discard));
        let zeroes = Request::WriteZeroes {
            offset: 512,
            len: 1024,
            unmap: true,
        };
        assert_eq!(parse(&with_segment(13, 1, 2, 1), &DISK), Ok(zeroes));
        let error = parse(&with_segment(11, 1, 2, 1), &DISK).unwrap_err();
        assert_eq!(
            (error, error.status()),
            (RequestError::Flags(1), Status::Unsupported)
        );
        assert!(parse(&with_segment(13, 1, MAX_WRITE_ZEROES + 1, 0), &DISK).is_err());
        assert!(parse(&with_segment(13, 63, 2, 0), &DISK).is_err());
        let mut short = with_segment(11, 1, 2, 0);
        short.given = 15;
        assert_eq!(parse(&short, &DISK), Err(RequestError::Length(15)));
    }

    #[test]
    fn unknown_type_is_unsupported() {
        for kind in [2, 3, 5, 7, 9, 10, 12, 14, 24, u32::MAX] {
            let error = parse(&parts(kind, 0, 512, 512), &DISK).unwrap_err();
            assert_eq!(error.status(), Status::Unsupported);
        }
    }

    proptest! {
        #[test]
        fn request_that_is_taken_is_on_the_disk(
            header: [u8; 16],
            kind in 0u32..15,
            segment: [u8; 16],
            sector in prop_oneof![0u64..70, any::<u64>()],
            given: u32,
            wanted: u32,
            sectors in 0u64..100,
        ) {
            let mut parts = Parts { header, segment, given, wanted };
            parts.header[..4].copy_from_slice(&kind.to_le_bytes());
            parts.header[8..].copy_from_slice(&sector.to_le_bytes());
            let disk = Limits { size: sectors * SECTOR, read_only: false, discard: true };
            match parse(&parts, &disk) {
                Ok(Request::Read { offset, len } | Request::Write { offset, len }) => {
                    prop_assert!(offset + u64::from(len) <= disk.size && len > 0);
                }
                Ok(Request::Discard { offset, len } | Request::WriteZeroes { offset, len, .. }) => {
                    prop_assert!(offset + len <= disk.size && len > 0);
                }
                Ok(Request::Flush | Request::GetId) | Err(_) => {}
            }
        }
    }
}
