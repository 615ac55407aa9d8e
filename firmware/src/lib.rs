#![forbid(unsafe_code)]
//! Bytes in, facts out: firmware images, hand-off structures and measurements.
