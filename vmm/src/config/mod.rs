//! What the operator asked for: option texts become one model, the model becomes a checked [`Machine`].
//!
//! ```text
//! command line -> options --+
//!                           +-> model::VmConfig -> validate -> Machine -> plan
//! vm.json      -> serde   --+
//! ```
//!
//! All of it happens before anything is created. An error names the option, the value and the remedy.

mod affinity;
mod console;
mod devices;
mod disk;
mod features;
mod model;
mod options;
mod pairs;
mod size;
mod td;
mod validate;

pub use affinity::{Affinity, MAX_HOST_CPUS};
pub use console::{Console, ConsoleConfig, ConsoleMode, parse_console};
pub use devices::{Device, PciDevice};
pub use disk::{Disk, DiskCache, DiskConfig, ImageType, Limit, parse_disk};
pub use model::{
    AffinityConfig, CpusConfig, MemoryConfig, PayloadConfig, PlatformConfig, RestoreConfig,
    SerialConfig, SerialMode, TopologyConfig, VmConfig,
};
pub use options::{
    parse_cpus, parse_memory, parse_platform, parse_restore, parse_rng, parse_serial,
};
pub use size::{ByteSize, parse_size};
pub use td::TdOptions;
pub use validate::{
    FirmwarePayload, KernelPayload, MAX_CMDLINE, Machine, Payload, SerialBackend, validate,
};

use thiserror::Error;

/// An option or a configuration file asks for what cannot be.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A `key=value` list is not one, or has an unknown or doubled key.
    #[error("{option} {value}: {problem}")]
    Option {
        /// The option, such as `--cpus`.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// Something that the machine needs was not given.
    #[error("{option} is missing: {remedy}")]
    Missing {
        /// The option.
        option: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Two things that exclude each other were given.
    #[error("{option} {value}: {remedy}")]
    Conflict {
        /// The option that cannot be there.
        option: &'static str,
        /// Its value.
        value: String,
        /// Why, and what to do.
        remedy: &'static str,
    },
    /// The configuration file cannot be read.
    #[error("--config {path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What the parser or the file system said.
        problem: String,
    },
}

impl ConfigError {
    pub(crate) fn option(
        option: &'static str,
        value: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Option {
            option,
            value: value.into(),
            problem: problem.into(),
        }
    }
}
