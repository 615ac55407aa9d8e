//! Making a vCPU thread leave `KVM_RUN`.
//!
//! A kick sets `immediate_exit` in the vCPU's run page and then sends a signal whose handler does
//! nothing. Inside `KVM_RUN` the signal ends it; outside, the flag makes the next `KVM_RUN` return at
//! once. So no kick is lost, whenever it comes. KVM: Documentation/virt/kvm/api.rst, 5, immediate_exit.

#![expect(
    unsafe_code,
    reason = "a signal handler, and a flag in memory shared with the kernel"
)]

use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::KvmError;

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes kicks harmless outside of `KVM_RUN`. Called once, before the first vCPU thread starts. That their signal is
/// not blocked is seen to by `machine::events::take_signals`, which sets the whole mask in one call.
///
/// # Errors
///
/// If the handler cannot be installed.
pub fn prepare() -> Result<(), KvmError> {
    register_signal_handler(kick_signal(), ignore).map_err(|errno| KvmError::Call {
        call: "sigaction",
        source: std::io::Error::from_raw_os_error(errno.errno()),
    })
}

/// Whether this process ignores `signal`.
#[must_use]
pub fn is_ignored(signal: libc::c_int) -> bool {
    let mut current = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is installed (the new action is null), and `current` has room for the result.
    let ret = unsafe { libc::sigaction(signal, std::ptr::null(), current.as_mut_ptr()) };
    if ret != 0 {
        return false;
    }
    // SAFETY: the call returned 0, so it filled the struct.
    let current = unsafe { current.assume_init() };
    current.sa_sigaction == libc::SIG_IGN
}

/// Where the `immediate_exit` flag of a vCPU stands. Taken from the vCPU before it moves to its thread.
#[derive(Debug)]
pub struct ExitFlag(NonNull<u8>);

// SAFETY: the byte is only accessed atomically, by any number of threads, and by the kernel.
unsafe impl Send for ExitFlag {}

impl ExitFlag {
    /// The flag of `vcpu`. It stays where it is when `vcpu` moves: the run page is a mapping of its own.
    pub fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(&mut vcpu.get_kvm_run().immediate_exit))
    }
}

/// A vCPU thread that can be kicked, and gives its vCPU back when joined.
#[derive(Debug)]
pub struct KickableThread {
    thread: JoinHandle<VcpuFd>,
    flag: ExitFlag,
}

impl KickableThread {
    /// Pairs a thread with the flag of the vCPU that it runs and returns.
    pub fn new(thread: JoinHandle<VcpuFd>, flag: ExitFlag) -> Self {
        Self { thread, flag }
    }

    /// Makes the thread leave `KVM_RUN`, now or at its next entry. One that is done is left alone: a signal
    /// would only hold up its end.
    pub fn kick(&self) {
        if self.thread.is_finished() {
            return;
        }
        // SAFETY: the byte lies in the run page, which is mapped until the `VcpuFd` is dropped. The thread
        // owns that and returns it through `join`, which takes `self`, so it has not been dropped. A byte
        // is always aligned. The vCPU's own thread makes exclusive borrows of the whole page
        // (`VcpuFd::get_kvm_run`): in `vcpu::KvmVcpu`, which takes single fields beside the atomic store in
        // `clear_exit_flag`, in the calls of `kvm_ioctls` that it makes, which read the exit, and in
        // `tdvmm_tdx::ioctl`, whose `exit_bytes` copies from the exit reason on, behind this byte, and
        // whose `answer` writes behind that. So none of them reads or writes this byte but by that store;
        // the kernel only reads it. No access to the byte is at odds with this one, although the borrow's
        // type claims the byte for its time: the page is memory shared with the kernel, mapped outside of
        // anything that Rust allocated.
        let flag = unsafe { AtomicU8::from_ptr(self.flag.0.as_ptr()) };
        // What the thread is told was stored before this (`fence` in `vcpu::KvmVcpu::clear_exit_flag`).
        fence(Ordering::SeqCst);
        flag.store(1, Ordering::SeqCst);
        // SAFETY: the thread has not been joined, as joining takes `self`; so its id is valid. The
        // signal's handler was installed by `prepare` and does nothing.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    /// Waits for the thread, which must have been told to end.
    pub fn join(self) {
        // What a panic in the thread was has been reported by its hook.
        let _ = self.thread.join();
    }
}
