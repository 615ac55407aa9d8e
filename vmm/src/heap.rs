//! One heap for all threads.
//!
//! glibc gives every thread that allocates an arena of its own: 64 MiB of address space, four system calls and
//! some touched pages for each vCPU. The threads here allocate when they start and when something unusual
//! happens, so they have nothing to gain from it.

#![expect(unsafe_code, reason = "glibc's settings have no safe interface")]

/// Makes all threads use the first arena. Called once, before there is a second thread.
pub fn use_one_arena() {
    // SAFETY: the call takes two integers. It is safe beside other threads only from glibc 2.26 on, but there
    // are none yet. Where the setting is unknown it answers 0 and changes nothing, which is fine.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
