//! What the program tells of itself.

pub mod log;
pub mod progress;
