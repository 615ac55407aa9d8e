//! Guest memory as this process holds it.
//!
//! An ordinary VM has one backing, a TD two: memory of this process for pages that are shared, and
//! guest_memfd for those that are private. [`convert`] moves pages between the two.

pub mod convert;
pub mod pages;
pub mod prefault;
pub mod ram;
