//! From the model to a machine that can be: every value checked once, and carried on as a type that cannot
//! hold a wrong one.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tdvmm_arch::layout::RamLayout;
use tdvmm_arch::topology::Topology;

use super::devices::{self, PciDevice};
use super::{
    Affinity, ConfigError, ConsoleMode, PayloadConfig, SerialConfig, SerialMode, TdOptions,
    VmConfig,
};

/// Bytes of a command line with its final 0, at most. Linux: COMMAND_LINE_SIZE of x86 is 2048; newer and
/// other kernels may take more, and the kernel's own limit is checked against its header.
pub const MAX_CMDLINE: usize = 64 << 10;

/// A machine that can be, as far as that can be known without asking the host.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// What is started.
    pub payload: Payload,
    /// How the vCPUs are arranged, and so how many there are.
    pub topology: Topology,
    /// Where RAM lies.
    pub ram: RamLayout,
    /// Whether the host provides all of RAM before the guest starts.
    pub prefault: bool,
    /// Where vCPUs may run.
    pub affinity: Affinity,
    /// The first serial port.
    pub serial: SerialBackend,
    /// What becomes a PCI function, in the order of the slots.
    pub devices: Vec<PciDevice>,
    /// Set when the machine is a TD.
    pub td: Option<TdOptions>,
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// A kernel, without firmware.
    Kernel(KernelPayload),
    /// Firmware, which may find a kernel in fw_cfg.
    Firmware(FirmwarePayload),
}

/// A kernel and what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelPayload {
    /// The kernel file.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The command line: no 0 in it, and shorter than [`MAX_CMDLINE`].
    pub cmdline: String,
}

/// Firmware and what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FirmwarePayload {
    /// The image.
    pub image: PathBuf,
    /// A variable store that replaces the image's own.
    pub vars: Option<PathBuf>,
    /// A kernel to start instead of looking for a disk.
    pub kernel: Option<KernelPayload>,
    /// A boot loader that checks and starts the kernel.
    pub shim: Option<PathBuf>,
}

/// Where the bytes of the first serial port go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SerialBackend {
    /// There is no port.
    Off,
    /// Nowhere.
    Null,
    /// Standard input and output.
    Tty,
    /// A file, created or emptied.
    File(PathBuf),
    /// A unix socket that is created and listened on.
    Socket(PathBuf),
}

/// Checks a model.
///
/// # Errors
///
/// At the first value that cannot be; the message names the option, the value and the remedy.
pub fn validate(config: &VmConfig) -> Result<Machine, ConfigError> {
    let size = config.memory.size.0;
    let td = TdOptions::new(&config.platform, &config.cpus)?;
    Ok(Machine {
        payload: payload(&config.payload, td.is_some())?,
        topology: topology(config)?,
        ram: RamLayout::new(size)
            .map_err(|e| ConfigError::option("--memory", format!("size={size}"), e.to_string()))?,
        prefault: config.memory.prefault,
        affinity: Affinity::new(&config.cpus)?,
        serial: serial(config, td.is_some())?,
        devices: devices::devices(config)?,
        td,
    })
}

fn payload(config: &PayloadConfig, in_td: bool) -> Result<Payload, ConfigError> {
    let kernel = kernel(config)?;
    if in_td && config.firmware.is_none() {
        return Err(ConfigError::Missing {
            option: "--firmware",
            remedy: "a TD starts in firmware: give OVMF built for TDX, or TD-Shim",
        });
    }
    let Some(image) = config.firmware.clone() else {
        only_with(
            "--firmware-vars",
            config.firmware_vars.as_deref(),
            "give --firmware too",
        )?;
        only_with(
            "--shim",
            config.shim.as_deref(),
            "a shim is started by firmware: give it too",
        )?;
        return kernel.map(Payload::Kernel).ok_or(ConfigError::Missing {
            option: "--kernel",
            remedy: "give a bzImage (vmlinuz) or an ELF vmlinux to start, or --firmware",
        });
    };
    if kernel.is_none() {
        only_with(
            "--shim",
            config.shim.as_deref(),
            "a shim starts a kernel: give --kernel too",
        )?;
    }
    Ok(Payload::Firmware(FirmwarePayload {
        image,
        vars: config.firmware_vars.clone(),
        kernel,
        shim: config.shim.clone(),
    }))
}

fn only_with(
    option: &'static str,
    given: Option<&Path>,
    remedy: &'static str,
) -> Result<(), ConfigError> {
    given.map_or(Ok(()), |path| {
        Err(ConfigError::Conflict {
            option,
            value: path.display().to_string(),
            remedy,
        })
    })
}

fn kernel(config: &PayloadConfig) -> Result<Option<KernelPayload>, ConfigError> {
    let Some(kernel) = config.kernel.clone() else {
        let needs_kernel = "it is given to a kernel: give --kernel too";
        only_with("--initramfs", config.initramfs.as_deref(), needs_kernel)?;
        only_with(
            "--cmdline",
            config.cmdline.as_deref().map(Path::new),
            needs_kernel,
        )?;
        return Ok(None);
    };
    let cmdline = config.cmdline.clone().unwrap_or_default();
    let problem = if cmdline.contains('\0') {
        Some("holds a 0 byte, which would end it".to_owned())
    } else if cmdline.len() >= MAX_CMDLINE {
        Some(format!(
            "has {} bytes; at most {} fit",
            cmdline.len(),
            MAX_CMDLINE - 1
        ))
    } else {
        None
    };
    if let Some(problem) = problem {
        let start: String = cmdline.chars().take(40).collect();
        return Err(ConfigError::option(
            "--cmdline",
            format!("{start:?}"),
            problem,
        ));
    }
    Ok(Some(KernelPayload {
        kernel,
        initramfs: config.initramfs.clone(),
        cmdline,
    }))
}

fn topology(config: &VmConfig) -> Result<Topology, ConfigError> {
    let boot = config.cpus.boot;
    let wrong = |value: String, problem: String| ConfigError::option("--cpus", value, problem);
    if boot == 0 {
        return Err(wrong(
            "boot=0".into(),
            "a machine needs at least one vCPU".into(),
        ));
    }
    let Some(wanted) = config.cpus.topology else {
        return Topology::flat(boot).map_err(|e| wrong(format!("boot={boot}"), e.to_string()));
    };
    let value = format!(
        "boot={boot},topology={}:{}:{}",
        wanted.sockets, wanted.cores, wanted.threads
    );
    let topology = Topology::new(wanted.sockets, wanted.cores, wanted.threads)
        .map_err(|e| wrong(value.clone(), e.to_string()))?;
    if topology.vcpus() == boot {
        Ok(topology)
    } else {
        let vcpus = topology.vcpus();
        Err(wrong(
            value,
            format!("the topology has {vcpus} vCPUs; give boot={vcpus}"),
        ))
    }
}

fn serial(config: &VmConfig, in_td: bool) -> Result<SerialBackend, ConfigError> {
    let console = config.console.as_ref().map(|console| console.mode);
    let Some(config) = &config.serial else {
        if console == Some(ConsoleMode::Tty) {
            // There is one terminal.
            return Ok(SerialBackend::Off);
        }
        // Each byte costs a TD two world switches and shows the host what it prints: only when asked for.
        return Ok(if in_td {
            SerialBackend::Off
        } else {
            SerialBackend::Tty
        });
    };
    let SerialConfig { mode, file, socket } = config;
    match (mode, file, socket) {
        (SerialMode::Off, None, None) => Ok(SerialBackend::Off),
        (SerialMode::Null, None, None) => Ok(SerialBackend::Null),
        (SerialMode::Tty, None, None) => Ok(SerialBackend::Tty),
        (SerialMode::File, Some(file), None) => Ok(SerialBackend::File(file.clone())),
        (SerialMode::Socket, None, Some(socket)) => Ok(SerialBackend::Socket(socket.clone())),
        _ => Err(ConfigError::Conflict {
            option: "--serial",
            value: format!("{mode:?}").to_lowercase(),
            remedy: "mode file needs a file, mode socket a socket, and the others neither",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ByteSize, CpusConfig, TopologyConfig};
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            payload: PayloadConfig {
                kernel: Some("vmlinuz".into()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn message(config: &VmConfig) -> String {
        validate(config).unwrap_err().to_string()
    }

    #[test]
    fn kernel_alone_is_a_machine() {
        let machine = validate(&config()).unwrap();
        assert_eq!(machine.topology.vcpus(), 1);
        assert_eq!(machine.ram.size(), 512 << 20);
        assert_eq!(machine.serial, SerialBackend::Tty);
    }

    #[test]
    fn every_refusal_names_the_option_and_the_value() {
        let with = |change: fn(&mut VmConfig)| {
            let mut config = config();
            change(&mut config);
            message(&config)
        };
        assert!(with(|c| c.payload.kernel = None).starts_with("--kernel is missing"));
        assert!(with(|c| c.payload.shim = Some("s".into())).starts_with("--shim s: "));
        let initramfs = with(|c| {
            c.payload = PayloadConfig {
                initramfs: Some("i".into()),
                ..Default::default()
            };
        });
        assert!(initramfs.starts_with("--initramfs i: "), "{initramfs}");
        assert!(with(|c| c.cpus.boot = 0).starts_with("--cpus boot=0: "));
        assert!(with(|c| c.memory.size = ByteSize(4095)).starts_with("--memory size=4095: "));
        let text = with(|c| {
            let topology = Some(TopologyConfig {
                sockets: 1,
                cores: 2,
                threads: 2,
            });
            c.cpus = CpusConfig {
                boot: 3,
                topology,
                ..Default::default()
            };
        });
        assert_eq!(
            text,
            "--cpus boot=3,topology=1:2:2: the topology has 4 vCPUs; give boot=4"
        );
        assert!(with(|c| c.payload.cmdline = Some("a\0b".into())).contains("0 byte"));
        assert!(with(|c| c.payload.cmdline = Some("a".repeat(MAX_CMDLINE))).contains("65535"));
        let file = with(|c| c.serial = Some(SerialConfig::plain(SerialMode::File)));
        assert!(file.starts_with("--serial file: "));
    }

    #[test]
    fn unknown_field_of_a_file_is_refused() {
        let error = serde_json::from_str::<VmConfig>(r#"{"cpus":{"boot":2,"bot":3}}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `bot`"));
    }
}
