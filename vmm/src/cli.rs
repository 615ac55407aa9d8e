//! The command line. Its options become the same model as a configuration file.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use tdvmm_firmware::measure::Digest;
use tdvmm_tdx::params::Identity;

use crate::config::{
    ConfigError, Machine, PayloadConfig, VmConfig, parse_console, parse_cpus, parse_disk,
    parse_memory, parse_platform, parse_restore, parse_rng, parse_serial,
};

/// How a machine is launched, beside what it is.
#[derive(Clone, Debug, Default)]
pub struct LaunchOptions {
    /// Where the transcript of a TD's launch goes.
    pub transcript: Option<PathBuf>,
    /// The only MRTD that a TD may have.
    pub mrtd: Option<Digest>,
}

/// A minimal virtual machine monitor for Intel TDX on Linux KVM.
///
/// Runs one virtual machine until it ends. The exit code says how it ended: 0 when the guest switched
/// itself off (README.md has the table).
#[derive(Debug, Parser)]
#[command(
    name = "tdvmm",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// Something else than running a machine.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Firmware to start: OVMF with its variable store in one file, or TD-Shim
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    firmware: Option<PathBuf>,

    /// Variable store that replaces the one in the firmware file, of the same size
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    firmware_vars: Option<PathBuf>,

    /// Boot loader (shimx64.efi) by which firmware with secure boot starts a signed kernel
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    shim: Option<PathBuf>,

    /// Kernel to start: a bzImage (vmlinuz) or an ELF vmlinux
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    kernel: Option<PathBuf>,

    /// Initial RAM file system for the kernel
    #[arg(
        long,
        value_name = "FILE",
        visible_alias = "initrd",
        conflicts_with = "config"
    )]
    initramfs: Option<PathBuf>,

    /// Kernel command line; repeated ones are joined by a space
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "config",
        allow_hyphen_values = true
    )]
    cmdline: Vec<String>,

    /// Virtual processors: boot=N[,max=N][,topology=SOCKETS:CORES:THREADS][,tsc_khz=N]
    /// [,affinity=VCPU@CPUS:VCPU@CPUS], CPUS such as 1-3+6  [default: boot=1]
    #[arg(long, value_name = "boot=N", conflicts_with = "config")]
    cpus: Option<String>,

    /// Guest memory: size=N with an optional K, M, G or T, and prefault=on to have all of it provided
    /// before the guest starts  [default: size=512M]
    #[arg(long, value_name = "size=N", conflicts_with = "config")]
    memory: Option<String>,

    /// Kind of machine: tdx=on for a Trust Domain, with attributes=, sept_ve_disable=, xfam=, gpaw=,
    /// mrconfigid=, mrowner= and mrownerconfig= (96 hex digits, base64 or @file); where the host reports
    /// them, debug=, perfmon=, pks=, migratable=, migtd_hash=, num_l2_vms=, l2bios=, vtpm_path=
    #[arg(long, value_name = "tdx=on", conflicts_with = "config")]
    platform: Option<String>,

    /// First serial port: off, null, tty, file=PATH or socket=PATH  [default: tty, in a TD off]
    #[arg(long, value_name = "WHERE", conflicts_with = "config")]
    serial: Option<String>,

    /// Disk: path=FILE[,readonly=on][,direct=on][,cache=writeback|none][,image_type=raw|qcow2][,backing_files=on]
    /// [,num_queues=N][,queue_size=N][,serial=TEXT][,id=NAME][,bw_size=N][,ops_size=N]; once for each disk.
    /// backing_files=on: open the files that a qcow2 image names, so that the guest can read them  [default: off]
    #[arg(long, value_name = "path=FILE", conflicts_with = "config")]
    disk: Vec<String>,

    /// Virtio console (hvc0): off, tty, pty, file=PATH[,max_size=N] or socket=PATH  [default: off]
    #[arg(long, value_name = "WHERE", conflicts_with = "config")]
    console: Option<String>,

    /// Virtio entropy device: on or off  [default: off]
    #[arg(long, value_name = "on", conflicts_with = "config")]
    rng: Option<String>,

    /// Start from a snapshot: source_url=URL
    #[arg(long, value_name = "source_url=URL", conflicts_with = "config")]
    restore: Option<String>,

    /// Read the machine from a JSON file instead of from options
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Write every TDX call of the launch, with pages, digests and times, to a JSON file
    #[arg(long, value_name = "FILE")]
    pub transcript: Option<PathBuf>,

    /// Go on only if the TD's measurement is this: mrtd=HEX
    #[arg(long, value_name = "mrtd=HEX")]
    pub expect: Option<String>,

    /// Print what the guest would be given, as JSON, and end; needs no KVM
    #[arg(long)]
    pub print_plan: bool,

    /// Append the log to a file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Log more: -v information, -vv debugging, -vvv everything
    #[arg(short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What the program does instead of running a machine.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell what a firmware image holds, what a TD launched from it adds and measures, and its MRTD
    Inspect {
        /// The firmware image
        file: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell whether this host can run TDs, and what to do where it cannot
    Check {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
    /// What the operator wants of a launch beside the machine itself.
    ///
    /// # Errors
    ///
    /// If an option's text cannot be understood, or is for TDs and the machine is none.
    pub fn launch_options(&self, machine: &Machine) -> Result<LaunchOptions, ConfigError> {
        for (option, value) in [
            (
                "--transcript",
                self.transcript
                    .as_ref()
                    .map(|path| path.display().to_string()),
            ),
            ("--expect", self.expect.clone()),
        ] {
            if let (Some(value), None) = (value, &machine.td) {
                let remedy = "is for TDs only; give --platform tdx=on too, or leave it out";
                return Err(ConfigError::Conflict {
                    option,
                    value,
                    remedy,
                });
            }
        }
        let mrtd = self.expect.as_deref().map(parse_expect).transpose()?;
        Ok(LaunchOptions {
            transcript: self.transcript.clone(),
            mrtd,
        })
    }

    /// The machine that the options or the file describe, not yet checked.
    ///
    /// # Errors
    ///
    /// If an option's text or the file cannot be understood.
    pub fn model(&self) -> Result<VmConfig, ConfigError> {
        if let Some(path) = &self.config {
            return read_file(path);
        }
        Ok(VmConfig {
            payload: PayloadConfig {
                firmware: self.firmware.clone(),
                firmware_vars: self.firmware_vars.clone(),
                shim: self.shim.clone(),
                kernel: self.kernel.clone(),
                initramfs: self.initramfs.clone(),
                cmdline: (!self.cmdline.is_empty()).then(|| self.cmdline.join(" ")),
            },
            cpus: self
                .cpus
                .as_deref()
                .map(parse_cpus)
                .transpose()?
                .unwrap_or_default(),
            memory: self
                .memory
                .as_deref()
                .map(parse_memory)
                .transpose()?
                .unwrap_or_default(),
            platform: self
                .platform
                .as_deref()
                .map(parse_platform)
                .transpose()?
                .unwrap_or_default(),
            serial: self.serial.as_deref().map(parse_serial).transpose()?,
            disks: self
                .disk
                .iter()
                .map(|text| parse_disk(text))
                .collect::<Result<_, _>>()?,
            console: self.console.as_deref().map(parse_console).transpose()?,
            rng: self
                .rng
                .as_deref()
                .map(parse_rng)
                .transpose()?
                .unwrap_or_default(),
            restore: self.restore.as_deref().map(parse_restore).transpose()?,
        })
    }
}

fn parse_expect(text: &str) -> Result<Digest, ConfigError> {
    text.strip_prefix("mrtd=")
        .and_then(|digits| {
            Identity::from_text(digits)
                .ok()
                .filter(|_| digits.len() == 96)
        })
        .map(|Identity(bytes)| Digest::from_bytes(bytes))
        .ok_or_else(|| {
            let problem = "write mrtd= and 96 hex digits, as `tdvmm inspect` prints them";
            ConfigError::option("--expect", text, problem)
        })
}

fn read_file(path: &Path) -> Result<VmConfig, ConfigError> {
    let problem = |problem: String| ConfigError::File {
        path: path.display().to_string(),
        problem,
    };
    let text = std::fs::read_to_string(path).map_err(|e| problem(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| problem(e.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::ByteSize;

    fn model(arguments: &[&str]) -> VmConfig {
        Cli::try_parse_from([&["tdvmm"], arguments].concat())
            .unwrap()
            .model()
            .unwrap()
    }

    #[test]
    fn command_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn repeated_command_lines_are_joined() {
        let config = model(&["--kernel", "k", "--cmdline", "a b", "--cmdline", "-c"]);
        assert_eq!(config.payload.cmdline.as_deref(), Some("a b -c"));
        assert_eq!(
            model(&["--initrd", "i"]).payload.initramfs,
            Some("i".into())
        );
    }

    #[test]
    fn options_and_file_describe_the_same_model() {
        let options = model(&[
            "--kernel",
            "vmlinuz",
            "--cpus",
            "boot=2,affinity=0@1:1@2-3",
            "--memory",
            "size=1G,prefault=on",
            "--serial",
            "file=out",
        ]);
        let file = r#"{"payload": {"kernel": "vmlinuz"}, "cpus": {"boot_vcpus": 2,
            "affinity": [{"vcpu": 0, "host_cpus": [1]}, {"vcpu": 1, "host_cpus": [2, 3]}]},
            "memory": {"size": "1G", "prefault": true}, "serial": {"mode": "File", "file": "out"}}"#;
        assert_eq!(serde_json::from_str::<VmConfig>(file).unwrap(), options);
        assert_eq!(options.memory.size, ByteSize(1 << 30));
    }

    #[test]
    fn expected_mrtd_is_hex_and_for_tds_only() {
        assert!(parse_expect(&format!("mrtd={}", "a7".repeat(48))).is_ok());
        assert!(parse_expect("mrtd=a7").is_err());
        assert!(parse_expect(&"a7".repeat(48)).is_err());
        let cli = Cli::try_parse_from(["tdvmm", "--kernel", "k", "--expect", "mrtd=0"]).unwrap();
        let machine = crate::config::validate(&cli.model().unwrap()).unwrap();
        let error = cli.launch_options(&machine).unwrap_err().to_string();
        assert!(
            error.starts_with("--expect mrtd=0: is for TDs only"),
            "{error}"
        );
    }

    #[test]
    fn file_beside_options_is_refused() {
        let result = Cli::try_parse_from(["tdvmm", "--config", "c", "--kernel", "k"]);
        assert!(
            result
                .unwrap_err()
                .to_string()
                .contains("cannot be used with")
        );
    }
}
