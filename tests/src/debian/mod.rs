//! Packages of the Debian archive, without touching the machine's own.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use tdvmm_tests::debian::{Packages, Role};
//! let packages = Packages::open()?;                  // the cache and resources/testbed.toml
//! let kernel = packages.kernel(Role::Main)?;         // all parts at one version
//! let headers = kernel.unpack("headers")?;           // a folder with the package's files
//! let busybox = packages.unpack("busybox")?.join("usr/bin/busybox");
//! # Ok(()) }
//! ```
//!
//! A pin that the cache holds needs no network at all. Otherwise apt itself, with a configuration
//! and state of its own in the cache, reads the suite's signed index and downloads; nothing is
//! installed and nothing outside of the cache is written. What was chosen is recorded in
//! `resolved/`, so a run after a replaced pin uses the same version and says so again.

mod apt;
mod pins;
mod resolve;
mod store;
mod suites;
mod version;

pub use apt::{Archive, missing_apt};
pub use pins::{KernelPin, PackagePin, Part, Pins, Role};
pub use resolve::{Deb, ResolvedKernel, ResolvedPackage};
pub use store::{Kernel, Packages, dependencies, sha256_file, unpack_deb};
pub use version::compare as compare_versions;
