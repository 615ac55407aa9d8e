//! The one model behind options, configuration file and, later, the control API.
//!
//! Plain data with serde; an unknown field is an error, so that a misspelt one is never dropped.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ByteSize;

/// A virtual machine as asked for, not yet checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// What runs in it.
    #[serde(default)]
    pub payload: PayloadConfig,
    /// Virtual processors.
    #[serde(default)]
    pub cpus: CpusConfig,
    /// Guest memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// The first serial port; without it, the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
}

/// Firmware, kernel and what they are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadConfig {
    /// Kernel file: bzImage or ELF vmlinux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system.
    #[serde(default, alias = "initrd", skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// Virtual processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpusConfig {
    /// How many there are when the guest starts.
    #[serde(alias = "boot_vcpus")]
    pub boot: u32,
    /// How they are arranged; without it, one socket with one core each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<TopologyConfig>,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot: 1,
            topology: None,
        }
    }
}

/// Sockets, cores in each, threads in each core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyConfig {
    /// Sockets of the machine.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

/// Guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// RAM in bytes.
    pub size: ByteSize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: ByteSize(512 << 20),
        }
    }
}

/// Where the bytes of the first serial port go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// The kind of backend.
    pub mode: SerialMode,
    /// With mode `file`: the file, created or emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// With mode `socket`: the unix socket to listen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// Kinds of backends of the serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SerialMode {
    /// There is no serial port.
    #[serde(alias = "Off")]
    Off,
    /// There is one, and its output goes nowhere.
    #[serde(alias = "Null")]
    Null,
    /// Standard input and output.
    #[serde(alias = "Tty")]
    Tty,
    /// Output to a file, no input.
    #[serde(alias = "File")]
    File,
    /// A unix socket on which one client at a time is served.
    #[serde(alias = "Socket")]
    Socket,
}

impl SerialConfig {
    /// A backend that needs no path.
    #[must_use]
    pub fn plain(mode: SerialMode) -> Self {
        Self {
            mode,
            file: None,
            socket: None,
        }
    }
}
