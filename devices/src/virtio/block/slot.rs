//! A request's chain with the list of pieces that the kernel is to fill or to take.
//!
//! The pieces are always of the slot's own chain, which keeps the guest memory mapped: that is what the
//! system calls here and the submissions of [`super::uring`] rest on.
#![expect(unsafe_code, reason = "vectored I/O on guest memory by host address")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::Fixed;
use io_uring::{opcode, squeue};

use crate::virtio::chain::Chain;
use crate::virtio::segment::Segment;

/// `FALLOC_FL_NO_HIDE_STALE` of linux/falloc.h.
pub(super) const NO_HIDE_STALE: i32 = 0x04;
/// Pieces per call (`UIO_MAXIOV`); what is more is left for the next call.
const MAX_PIECES: usize = 1024;
/// Bytes per call at most, of each request in flight: who stops a worker waits for no more. A multiple of every
/// block, so that parts of an aligned request are aligned.
const STEP: u32 = 4 << 20;

/// Segments, and pieces, of a slot that is kept for further requests: those of a MiB in pages, which is what drivers send
/// at most to a queue of the usual size.
const KEPT: usize = 256;

/// A `struct iovec` with an exposed address, so that it may change threads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Piece {
    base: usize,
    len: usize,
}

const _: () = assert!(size_of::<Piece>() == size_of::<libc::iovec>());
const _: () =
    assert!(std::mem::offset_of!(Piece, len) == std::mem::offset_of!(libc::iovec, iov_len));

/// What a slot does, as the kernel is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Read,
    Write {
        /// Lasting when it returns.
        sync: bool,
    },
    Flush,
    /// With the mode of fallocate(2).
    Allocate {
        mode: i32,
        len: u64,
        /// Whether zeros are asked for, or only room given back.
        zeros: bool,
    },
}

/// Whether a call may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Yes,
    No,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Slot {
    chain: Chain,
    /// Pieces of `chain`, and of nothing else.
    pieces: Vec<Piece>,
    /// Pieces that are done with.
    first: usize,
    pub work: Work,
    /// Position on the disk of what is left.
    pub offset: u64,
    /// Bytes left.
    pub left: u32,
    /// Where the transfer ends in the writable part of the chain, or in the readable one.
    end: u32,
    /// Bytes that the driver gets if all goes well, with the status.
    pub written: u32,
}

impl Slot {
    pub fn new(chain: Chain) -> Self {
        Slot {
            chain,
            pieces: Vec::with_capacity(16),
            first: 0,
            work: Work::Flush,
            offset: 0,
            left: 0,
            end: 0,
            written: 0,
        }
    }

    /// Whether it has not grown beyond what most requests need. Chains of 1024 segments take 40 KiB, and there are as many
    /// slots as there were requests in flight.
    pub fn is_usual(&self) -> bool {
        self.chain.room() <= KEPT && self.pieces.capacity() <= KEPT
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The chain, to be taken anew; forgets the pieces of the former one.
    pub fn chain_mut(&mut self) -> &mut Chain {
        self.pieces.clear();
        self.first = 0;
        &mut self.chain
    }

    /// Makes the pieces of a transfer of `len` bytes: of the writable part for a read, else of the
    /// readable part behind the first `skip` bytes.
    pub fn load(&mut self, work: Work, offset: u64, skip: u32, len: u32) {
        self.work = work;
        self.offset = offset;
        self.left = len;
        self.end = skip.wrapping_add(len);
        self.first = 0;
        self.pieces.clear();
        let segments = match work {
            Work::Read => self.chain.writable(),
            _ => self.chain.readable(),
        };
        fill(&mut self.pieces, segments, skip, len);
    }

    /// The pieces of the next call.
    fn open_pieces(&self) -> &[Piece] {
        let open = self.pieces.get(self.first..).unwrap_or_default();
        let open = open.get(..MAX_PIECES).unwrap_or(open);
        if self.left <= STEP {
            return open;
        }
        let mut room = usize::try_from(step(self.left)).unwrap_or_default();
        let fits = |piece: &&Piece| {
            let rest = room.checked_sub(piece.len);
            room = rest.unwrap_or_default();
            rest.is_some()
        };
        let count = open.iter().take_while(fits).count();
        // The first one always fits, as `fill` has cut them.
        open.get(..count.max(1)).unwrap_or(open)
    }

    /// `done` bytes were transferred.
    pub fn advance(&mut self, done: usize) {
        let done_all = u32::try_from(done).unwrap_or(u32::MAX).min(self.left);
        self.left = self.left.wrapping_sub(done_all);
        self.offset = self.offset.wrapping_add(u64::from(done_all));
        let mut done = done;
        for piece in self.pieces.get_mut(self.first..).unwrap_or_default() {
            if done < piece.len {
                piece.base = piece.base.wrapping_add(done);
                piece.len = piece.len.wrapping_sub(done);
                break;
            }
            done = done.wrapping_sub(piece.len);
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Where what is left begins in the chain's writable part, or in its readable one, for a backend that
    /// copies.
    pub fn place(&self) -> u32 {
        self.end.wrapping_sub(self.left)
    }

    /// Reads or writes as much as the file gives at once, at `offset`.
    pub fn transfer(&self, file: &File, wait: Wait) -> io::Result<usize> {
        let pieces = self.open_pieces();
        let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
        let list = pieces.as_ptr().cast::<libc::iovec>();
        let offset = libc::off64_t::try_from(self.offset).unwrap_or(libc::off64_t::MAX);
        let mut flags = match wait {
            Wait::Yes => 0,
            Wait::No => libc::RWF_NOWAIT,
        };
        let fd = file.as_raw_fd();
        let done = match self.work {
            Work::Read => {
                // SAFETY: `fd` is open as long as `file`; `list` has `count` elements, borrowed from
                // `self` for the call, with the layout of iovec (asserted above); each names bytes of
                // a segment of `self.chain`, which keeps them mapped, readable and writable; only the
                // kernel and the guest write them, no reference to them exists.
                unsafe { libc::preadv2(fd, list, count, offset, flags) }
            }
            Work::Write { sync } => {
                if sync {
                    flags |= libc::RWF_DSYNC;
                }
                // SAFETY: as above; the kernel only reads the bytes.
                unsafe { libc::pwritev2(fd, list, count, offset, flags) }
            }
            Work::Flush | Work::Allocate { .. } => return Err(io::ErrorKind::InvalidInput.into()),
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// The submission for what is left, on registered file 0. It points into the slot: whoever pushes it
    /// keeps the slot where it is and unchanged until the completion.
    pub fn submission(&self) -> squeue::Entry {
        let pieces = self.open_pieces();
        let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let list = pieces.as_ptr().cast::<libc::iovec>();
        let file = Fixed(0);
        match self.work {
            Work::Read => opcode::Readv::new(file, list, count)
                .offset(self.offset)
                .build(),
            Work::Write { sync } => opcode::Writev::new(file, list, count)
                .offset(self.offset)
                .rw_flags(if sync { libc::RWF_DSYNC } else { 0 })
                .build(),
            Work::Flush => opcode::Fsync::new(file)
                .flags(io_uring::types::FsyncFlags::DATASYNC)
                .build(),
            Work::Allocate { mode, len, .. } => opcode::Fallocate::new(file, len)
                .offset(self.offset)
                .mode(mode)
                .build(),
        }
    }
}

/// Bytes of the next call where `left` are left: calls end where a multiple of [`STEP`] is left.
fn step(left: u32) -> u32 {
    match left % STEP {
        0 => left.min(STEP),
        rest => rest,
    }
}

/// Makes pieces of which none goes on where a call ends.
fn fill(pieces: &mut Vec<Piece>, segments: &[Segment], mut skip: u32, mut len: u32) {
    for segment in segments {
        let mut start = skip.min(segment.len());
        skip = skip.wrapping_sub(start);
        while len > 0 && start < segment.len() {
            let here = segment.len().wrapping_sub(start).min(step(len));
            let (Ok(from), Ok(size)) = (usize::try_from(start), usize::try_from(here)) else {
                return;
            };
            pieces.push(Piece {
                base: segment.host().addr().wrapping_add(from),
                len: size,
            });
            start = start.wrapping_add(here);
            len = len.wrapping_sub(here);
        }
    }
}

/// fallocate(2).
pub(super) fn allocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let offset = libc::off64_t::try_from(offset).unwrap_or(libc::off64_t::MAX);
    let len = libc::off64_t::try_from(len).unwrap_or(libc::off64_t::MAX);
    // SAFETY: `file` is open; the call touches no memory of this process.
    match unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a block device forget a range, by the ioctl BLKDISCARD (`_IO(0x12, 119)` of linux/fs.h).
pub(super) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset, len];
    // SAFETY: `file` is open; the request reads two 64-bit numbers from the pointer, which lives over
    // the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Clears and then sets flags of this open file description, of those that `F_SETFL` can change.
pub(super) fn change_flags(file: &File, clear: libc::c_int, set: libc::c_int) -> io::Result<()> {
    // SAFETY: `file` is open; F_GETFL takes no argument and touches no memory of this process.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `file` is open; F_SETFL takes an int and touches no memory of this process.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !clear | set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A lock on all of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// With others that only read.
    Shared,
    /// Alone.
    Exclusive,
    /// No more.
    None,
}

/// Takes or gives up a lock on all of `file` for this open file description (`F_OFD_SETLK`).
pub(super) fn lock(file: &File, how: Lock) -> io::Result<()> {
    let kind = match how {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::None => libc::F_UNLCK,
    };
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: `file` is open; F_OFD_SETLK takes a pointer to a flock, which lives over the call and is
    // only read.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A number that a block device tells by ioctl: BLKSSZGET (0x1268) or BLKPBSZGET (0x127b), both `int`.
pub(super) fn block_size(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut size: libc::c_uint = 0;
    // SAFETY: `file` is open; both requests write one int to the pointer, which lives over the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut size) } {
        0 => Ok(size),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests;
