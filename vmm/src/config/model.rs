//! The one model behind options, configuration file and, later, the control API.
//!
//! Plain data with serde; an unknown field is an error, so that a misspelt one is never dropped.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ByteSize, ConsoleConfig, DiskConfig};

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
    /// What kind of machine it is.
    #[serde(default)]
    pub platform: PlatformConfig,
    /// The first serial port; without it, the terminal, and in a TD none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// Disks, in the order of their PCI slots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// The virtio console; without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// Whether there is a virtio entropy device.
    #[serde(default)]
    pub rng: bool,
}

/// Firmware, kernel and what they are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadConfig {
    /// Firmware image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// Variable store that replaces the one in the firmware image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_vars: Option<PathBuf>,
    /// Boot loader that checks the kernel's signature, for firmware that enforces secure boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim: Option<PathBuf>,
    /// Kernel file: bzImage or, without firmware, ELF vmlinux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system.
    #[serde(default, alias = "initrd", skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// An ordinary VM or a TD, and what belongs to a TD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformConfig {
    /// Whether it is a TD. All that follows is for TDs only.
    #[serde(default)]
    pub tdx: bool,
    /// Names of TD attributes, joined by `+`, beside SEPT_VE_DISABLE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<String>,
    /// Whether a touch of an unaccepted page ends the TD instead of raising #VE; on unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sept_ve_disable: Option<bool>,
    /// Extended features, as a number; without it those of the host that a TD can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xfam: Option<String>,
    /// Width of guest-physical addresses, 48 or 52; without it the smallest that holds RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpaw: Option<u8>,
    /// 48 bytes for the configuration: 96 hex digits, base64, or @file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrconfigid: Option<String>,
    /// 48 bytes for the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrowner: Option<String>,
    /// 48 bytes for the owner's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrownerconfig: Option<String>,
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
    /// TSC frequency of a TD in kHz, a multiple of 25 MHz; without it the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc_khz: Option<u32>,
    /// CPUs of the host that a vCPU may run on; one that is not named runs where the host lets it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<AffinityConfig>,
}

/// Where one vCPU may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AffinityConfig {
    /// The vCPU's number.
    pub vcpu: u32,
    /// Numbers of the host's CPUs.
    pub host_cpus: Vec<u32>,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot: 1,
            topology: None,
            tsc_khz: None,
            affinity: Vec::new(),
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
    #[serde(default = "default_size")]
    pub size: ByteSize,
    /// Whether the host provides all of it before the guest starts.
    #[serde(default)]
    pub prefault: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: default_size(),
            prefault: false,
        }
    }
}

const fn default_size() -> ByteSize {
    ByteSize(512 << 20)
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
