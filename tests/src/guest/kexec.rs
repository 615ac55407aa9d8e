//! Another kernel in the place of the running one: kexec, and a kernel for the case of a crash.
//!
//! The next initramfs is the content of this one, read from the root folder, so that every kernel finds the same
//! program again; the kernel's file is in the archive. The command line says how often still.
#![expect(unsafe_code, reason = "kexec_file_load has no wrapper")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::cpio::Archive;

/// The kernel in the archive.
pub const KERNEL: &str = "/kexec/kernel";
/// On the command line: how many kernels are still to follow.
const COUNT: &str = "tdvmm.kexec=";
/// The memory of the crashed kernel, in the kernel that was started for it.
const CRASHED: &str = "/proc/vmcore";

/// File systems that are no part of the archive.
const MOUNTS: [&str; 3] = ["proc", "sys", "dev"];
const INITRAMFS: &str = "/next-initramfs";

/// How many kernels `command_line` still asks for.
pub fn left(command_line: &str) -> u32 {
    let word = command_line
        .split_whitespace()
        .find_map(|w| w.strip_prefix(COUNT));
    word.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Bytes of the crashed kernel's memory, if this kernel was started after a crash.
pub fn crashed() -> Option<u64> {
    fs::metadata(CRASHED).ok().map(|file| file.size())
}

/// Loads the kernel that follows the one with `command_line`.
///
/// # Errors
/// The kernel refuses it.
pub fn load_next(command_line: &str) -> io::Result<()> {
    load(&next_line(command_line), 0)
}

/// Loads the kernel that is started when this one crashes.
///
/// # Errors
/// The kernel refuses it: it has no memory set aside (`crashkernel=`), for instance.
pub fn load_for_crash(command_line: &str) -> io::Result<()> {
    const KEXEC_FILE_ON_CRASH: libc::c_ulong = 2;
    // A crash kernel goes with one processor: the others are where the crash left them.
    load(
        &format!("{} nr_cpus=1", next_line(command_line)),
        KEXEC_FILE_ON_CRASH,
    )
}

/// The command line with the count one less, and without what was for one kernel only.
fn next_line(command_line: &str) -> String {
    let count = left(command_line).saturating_sub(1);
    let own = |word: &&str| {
        ![COUNT, "crashkernel=", "initrd="]
            .iter()
            .any(|start| word.starts_with(start))
    };
    let words: Vec<&str> = command_line.split_whitespace().filter(own).collect();
    format!("{} {COUNT}{count}", words.join(" "))
}

fn load(command_line: &str, flags: libc::c_ulong) -> io::Result<()> {
    let mut archive = Archive::new();
    add_folder(&mut archive, Path::new("/"))?;
    fs::write(INITRAMFS, archive.to_bytes())?;
    let (kernel, initramfs) = (File::open(KERNEL)?, File::open(INITRAMFS)?);
    let line = CString::new(command_line)?;
    // SAFETY: both descriptors are open, and `line` lives and has that many bytes with its NUL.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            line.as_bytes_with_nul().len(),
            line.as_ptr(),
            flags,
        )
    };
    fs::remove_file(INITRAMFS)?;
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn add_folder(archive: &mut Archive, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let text = path.to_string_lossy().into_owned();
        let kind = fs::symlink_metadata(&path)?;
        if kind.is_symlink() {
            archive.symlink(&text, &fs::read_link(&path)?.to_string_lossy());
        } else if kind.is_file() {
            archive.file(&text, kind.permissions().mode() & 0o7777, fs::read(&path)?);
        } else if kind.is_dir() && !MOUNTS.iter().any(|name| text == format!("/{name}")) {
            archive.directory(&text);
            add_folder(archive, &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_command_line_counts_down_and_drops_what_was_for_one_kernel() {
        let line = "quiet tdvmm.kexec=2 crashkernel=192M initrd=initrd tdvmm.then=kexec";
        assert_eq!(left(line), 2);
        assert_eq!(next_line(line), "quiet tdvmm.then=kexec tdvmm.kexec=1");
        assert_eq!(left("quiet"), 0);
        assert_eq!(next_line("quiet"), "quiet tdvmm.kexec=0");
    }
}
