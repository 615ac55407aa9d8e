//! The atomics of the rings. Under `cfg(loom)` they are loom's, so that the loom test runs the very code
//! that serves guests.

#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
