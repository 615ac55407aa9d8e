//! What the lanes share.

pub mod conformance;
