//! The system calls: ioctls on byte buffers, and memory of this process.
//!
//! Arguments of ioctls are byte buffers that are filled by offset, as the reference lists them. That keeps this
//! module's contract small: a buffer is at least as long as the kernel's side of the call.
#![expect(unsafe_code, reason = "ioctl, mmap and the shared kvm_run page")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

/// An errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

const NAMES: [(i32, &str); 17] = [
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::EINTR, "EINTR"),
    (libc::EIO, "EIO"),
    (libc::ENXIO, "ENXIO"),
    (libc::E2BIG, "E2BIG"),
    (libc::EBADF, "EBADF"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EFAULT, "EFAULT"),
    (libc::EBUSY, "EBUSY"),
    (libc::EEXIST, "EEXIST"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::ENOSYS, "ENOSYS"),
];

impl Errno {
    fn last() -> Self {
        Self(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// `EINVAL` and so on.
    pub fn name(self) -> String {
        let known = NAMES.iter().find(|(number, _)| *number == self.0);
        known.map_or_else(
            || format!("errno {}", self.0),
            |(_, name)| (*name).to_owned(),
        )
    }

    /// The errno of a name.
    pub fn named(name: &str) -> Option<Self> {
        let known = NAMES.iter().find(|(_, known)| *known == name);
        known.map(|(number, _)| Self(*number))
    }
}

/// A struct of the kernel, by offsets, little-endian.
#[derive(Clone, Debug)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// Zeroes.
    pub fn new(len: usize) -> Self {
        Self(vec![0; len])
    }

    /// Sets bytes at an offset.
    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Sets a u32.
    pub fn u32(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_le_bytes())
    }

    /// Sets a u64.
    pub fn u64(self, at: usize, value: u64) -> Self {
        self.put(at, &value.to_le_bytes())
    }

    /// Reads a u32.
    pub fn get_u32(&self, at: usize) -> u32 {
        self.0[at..at + 4]
            .iter()
            .rev()
            .fold(0, |v, b| v << 8 | u32::from(*b))
    }

    /// Reads a u64.
    pub fn get_u64(&self, at: usize) -> u64 {
        self.0[at..at + 8]
            .iter()
            .rev()
            .fold(0, |v, b| v << 8 | u64::from(*b))
    }

    /// Where it is, for a pointer inside of another struct. Valid until it is moved into or changed by value.
    pub fn address(&mut self) -> u64 {
        self.0.as_mut_ptr().expose_provenance() as u64
    }
}

/// An ioctl whose argument is a struct, which the kernel may change.
pub fn ioctl(fd: BorrowedFd<'_>, nr: u64, arg: &mut Bytes) -> Result<i32, Errno> {
    // SAFETY: `arg` is valid for its whole length for the duration of the call, and every caller makes it as long as
    // the struct (with its trailing array) that the ioctl reads and writes.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), nr, arg.0.as_mut_ptr()) };
    if r < 0 { Err(Errno::last()) } else { Ok(r) }
}

/// An ioctl whose argument is a number, which may stand for an address on purpose.
pub fn ioctl_number(fd: BorrowedFd<'_>, nr: u64, arg: u64) -> Result<i32, Errno> {
    // SAFETY: the numbers that callers pass are no addresses of this process, so the kernel cannot write to its memory.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), nr, arg) };
    if r < 0 { Err(Errno::last()) } else { Ok(r) }
}

/// Takes a descriptor that an ioctl returned.
pub fn descriptor(result: Result<i32, Errno>) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel has just made this descriptor for us, and nothing else in this process knows it.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Memory of this process that the kernel knows by address.
#[derive(Debug)]
pub struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, valid from any thread until dropped.
unsafe impl Send for Mapping {}
// SAFETY: all access through a shared reference is volatile, byte by byte, as to a device; no reference is ever made.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory, not reserved until touched.
    pub fn anonymous(len: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(len, flags, -1)
    }

    /// The start of a file, shared: the `kvm_run` page of a vCPU.
    pub fn of_file(fd: BorrowedFd<'_>, len: usize) -> Self {
        Self::map(len, libc::MAP_SHARED, fd.as_raw_fd())
    }

    /// The same of a file that may not let itself be mapped.
    pub fn try_of_file(fd: BorrowedFd<'_>, len: usize) -> Result<Self, Errno> {
        // SAFETY: the kernel chooses the place, so nothing that exists is overwritten.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast()) {
            Some(start) if at != libc::MAP_FAILED => Ok(Self { at: start, len }),
            _ => Err(Errno::last()),
        }
    }

    fn map(len: usize, flags: i32, fd: i32) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so nothing that exists is overwritten.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, 0) };
        assert_ne!(
            at,
            libc::MAP_FAILED,
            "mmap of {len} bytes: {}",
            Errno::last().name()
        );
        let at = NonNull::new(at.cast()).expect("mmap does not return null");
        Self { at, len }
    }

    /// Its address.
    pub fn address(&self) -> u64 {
        self.at.as_ptr().expose_provenance() as u64
    }

    fn byte(&self, at: usize) -> *mut u8 {
        assert!(at < self.len);
        self.at.as_ptr().wrapping_add(at)
    }

    /// Writes bytes.
    pub fn put(&self, at: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: `byte` checked that the place is inside of the mapping; volatile, since a guest or the kernel
            // may look at the same time.
            unsafe { self.byte(at + i).write_volatile(*byte) };
        }
    }

    /// Reads a little-endian number of up to 8 bytes.
    pub fn get(&self, at: usize, bytes: usize) -> u64 {
        let mut value = 0;
        for i in (0..bytes).rev() {
            // SAFETY: as in `put`.
            let byte = unsafe { self.byte(at + i).read_volatile() };
            value = value << 8 | u64::from(byte);
        }
        value
    }

    /// Gives the memory behind a range back to the kernel.
    pub fn discard(&self, at: usize, len: usize) {
        assert!(len <= self.len && at <= self.len - len);
        let start = self.at.as_ptr().wrapping_add(at);
        // SAFETY: the range lies inside of the mapping, which holds no Rust value.
        let r = unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
        assert_eq!(r, 0, "madvise: {}", Errno::last().name());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// Mode of [`fallocate`] that gives pages back: FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE.
pub const PUNCH_HOLE: i32 = 3;

/// Allocates a range of a file or gives it back.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, at: u64, len: u64) -> Result<(), Errno> {
    let (at, len) = (
        i64::try_from(at).expect("fits"),
        i64::try_from(len).expect("fits"),
    );
    // SAFETY: the call reads its arguments only.
    let r = unsafe { libc::fallocate(fd.as_raw_fd(), mode, at, len) };
    if r < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// Sets a parameter of the module.
pub fn set_parameter(name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/sys/module/kvm_amd/parameters/{name}"), value)
}
