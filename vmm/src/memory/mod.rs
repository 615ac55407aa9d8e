//! Guest memory as this process holds it.

pub mod ram;
