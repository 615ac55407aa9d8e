//! The options that are of few keys: `--cpus`, `--platform`, `--memory`, `--restore`, `--serial`, `--rng`.

use std::path::PathBuf;

use super::pairs::Pairs;
use super::{
    AffinityConfig, ConfigError, CpusConfig, MAX_HOST_CPUS, MemoryConfig, PlatformConfig,
    RestoreConfig, SerialConfig, SerialMode, TopologyConfig, parse_size,
};

/// Reads `boot=N[,max=N][,topology=sockets:cores:threads][,tsc_khz=N][,affinity=VCPU@CPUS:VCPU@CPUS]`.
///
/// # Errors
///
/// If the text is not of that form.
pub fn parse_cpus(text: &str) -> Result<CpusConfig, ConfigError> {
    let pairs = Pairs::parse(
        "--cpus",
        text,
        &["boot", "max", "topology", "tsc_khz", "affinity"],
    )?;
    let mut cpus = CpusConfig::default();
    if let Some(boot) = pairs.get("boot") {
        cpus.boot = pairs.number("boot", boot)?;
    }
    if let Some(max) = pairs.get("max") {
        cpus.max = Some(pairs.number("max", max)?);
    }
    if let Some(khz) = pairs.get("tsc_khz") {
        cpus.tsc_khz = Some(pairs.number("tsc_khz", khz)?);
    }
    if let Some(affinity) = pairs.get("affinity") {
        cpus.affinity = affinity
            .split(':')
            .map(|one| parse_affinity(&pairs, one))
            .collect::<Result<_, _>>()?;
    }
    if let Some(topology) = pairs.get("topology") {
        cpus.topology = Some(parse_topology(&pairs, topology)?);
        if pairs.get("boot").is_none() {
            return Err(pairs.problem("give boot= too: it must be sockets x cores x threads"));
        }
    }
    Ok(cpus)
}

/// Reads `0@1-3+6`: vCPU 0 on CPUs 1, 2, 3 and 6 of the host.
fn parse_affinity(pairs: &Pairs, text: &str) -> Result<AffinityConfig, ConfigError> {
    let (vcpu, list) = text.split_once('@').ok_or_else(|| {
        pairs.problem(format!(
            "affinity: '{text}' is no VCPU@CPUS; write such as affinity=0@1:1@2-3+6"
        ))
    })?;
    let mut host_cpus = Vec::new();
    for part in list.split('+') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = pairs.number("affinity", first)?;
        let last: u32 = pairs.number("affinity", last)?;
        let count = last.checked_sub(first).map(|more| more as usize);
        match count {
            // A list in which CPUs are named again and again is bounded as well.
            Some(more) if more < MAX_HOST_CPUS - host_cpus.len().min(MAX_HOST_CPUS) => {
                host_cpus.extend(first..=last);
            }
            Some(_) => {
                return Err(pairs.problem(format!(
                    "affinity: '{part}' names more than {MAX_HOST_CPUS} CPUs"
                )));
            }
            None => {
                return Err(pairs.problem(format!("affinity: '{part}' ends before it starts")));
            }
        }
    }
    Ok(AffinityConfig {
        vcpu: pairs.number("affinity", vcpu)?,
        host_cpus,
    })
}

fn parse_topology(pairs: &Pairs, text: &str) -> Result<TopologyConfig, ConfigError> {
    let mut numbers = text.split(':');
    match (
        numbers.next(),
        numbers.next(),
        numbers.next(),
        numbers.next(),
    ) {
        (Some(sockets), Some(cores), Some(threads), None) => Ok(TopologyConfig {
            sockets: pairs.number("topology", sockets)?,
            cores: pairs.number("topology", cores)?,
            threads: pairs.number("topology", threads)?,
        }),
        _ => Err(pairs.problem("topology is sockets:cores:threads, such as 1:2:1")),
    }
}

/// Reads `tdx=on` and what belongs to a TD.
///
/// # Errors
///
/// If the text is not of that form.
pub fn parse_platform(text: &str) -> Result<PlatformConfig, ConfigError> {
    const KEYS: &[&str] = &[
        "tdx",
        "attributes",
        "sept_ve_disable",
        "xfam",
        "gpaw",
        "mrconfigid",
        "mrowner",
        "mrownerconfig",
        "debug",
        "perfmon",
        "pks",
        "migratable",
        "migtd_hash",
        "num_l2_vms",
        "l2bios",
        "vtpm_path",
    ];
    let pairs = Pairs::parse("--platform", text, KEYS)?;
    let text = |key| pairs.get(key).map(str::to_owned);
    let switch = |key| pairs.optional_switch(key);
    Ok(PlatformConfig {
        tdx: switch("tdx")?.unwrap_or(false),
        attributes: text("attributes"),
        sept_ve_disable: switch("sept_ve_disable")?,
        xfam: text("xfam"),
        gpaw: match pairs.get("gpaw") {
            None => None,
            Some("48") => Some(48),
            Some("52") => Some(52),
            Some(_) => return Err(pairs.problem("gpaw is 48 or 52")),
        },
        mrconfigid: text("mrconfigid"),
        mrowner: text("mrowner"),
        mrownerconfig: text("mrownerconfig"),
        debug: switch("debug")?,
        perfmon: switch("perfmon")?,
        pks: switch("pks")?,
        migratable: switch("migratable")?,
        migtd_hash: text("migtd_hash"),
        num_l2_vms: pairs
            .get("num_l2_vms")
            .map(|number| pairs.number("num_l2_vms", number))
            .transpose()?,
        l2bios: pairs.get("l2bios").map(PathBuf::from),
        vtpm_path: pairs.get("vtpm_path").map(PathBuf::from),
    })
}

/// Reads `source_url=URL`.
///
/// # Errors
///
/// If the text is not of that form.
pub fn parse_restore(text: &str) -> Result<RestoreConfig, ConfigError> {
    let pairs = Pairs::parse("--restore", text, &["source_url"])?;
    match pairs.get("source_url") {
        Some(url) => Ok(RestoreConfig {
            source_url: url.to_owned(),
        }),
        None => Err(pairs.problem("give source_url=, where the snapshot is")),
    }
}

/// Reads `size=N[K|M|G|T][,prefault=on|off]`.
///
/// # Errors
///
/// If the text is not of that form.
pub fn parse_memory(text: &str) -> Result<MemoryConfig, ConfigError> {
    let pairs = Pairs::parse("--memory", text, &["size", "prefault"])?;
    let mut memory = MemoryConfig::default();
    if let Some(size) = pairs.get("size") {
        memory.size = parse_size(size).map_err(|problem| pairs.problem(problem))?;
    }
    memory.prefault = pairs.optional_switch("prefault")?.unwrap_or(false);
    Ok(memory)
}

/// Reads `off`, `null`, `tty`, `file=PATH` or `socket=PATH`.
///
/// # Errors
///
/// If the text is none of these.
pub fn parse_serial(text: &str) -> Result<SerialConfig, ConfigError> {
    match text {
        "off" => return Ok(SerialConfig::plain(SerialMode::Off)),
        "null" => return Ok(SerialConfig::plain(SerialMode::Null)),
        "tty" => return Ok(SerialConfig::plain(SerialMode::Tty)),
        _ => {}
    }
    let wrong = || {
        ConfigError::option(
            "--serial",
            text,
            "write off, null, tty, file=PATH or socket=PATH",
        )
    };
    let pairs = Pairs::parse("--serial", text, &["file", "socket"]).map_err(|_| wrong())?;
    match (pairs.get("file"), pairs.get("socket")) {
        (Some(file), None) if !file.is_empty() => Ok(SerialConfig {
            file: Some(PathBuf::from(file)),
            ..SerialConfig::plain(SerialMode::File)
        }),
        (None, Some(socket)) if !socket.is_empty() => Ok(SerialConfig {
            socket: Some(PathBuf::from(socket)),
            ..SerialConfig::plain(SerialMode::Socket)
        }),
        _ => Err(wrong()),
    }
}

/// Reads `on` or `off`.
///
/// # Errors
///
/// If the text is neither.
pub fn parse_rng(text: &str) -> Result<bool, ConfigError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ConfigError::option("--rng", text, "write on or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn cpus_with_topology_is_read() {
        let cpus = parse_cpus("boot=4,topology=1:2:2").unwrap();
        assert_eq!(cpus.boot, 4);
        assert_eq!(
            cpus.topology,
            Some(TopologyConfig {
                sockets: 1,
                cores: 2,
                threads: 2
            })
        );
    }

    #[test]
    fn unknown_and_doubled_keys_name_the_option_and_the_keys() {
        let text = message(parse_cpus("boots=2"));
        assert_eq!(
            text,
            "--cpus boots=2: unknown key 'boots'; keys are boot, max, topology, tsc_khz, affinity"
        );
        assert!(message(parse_cpus("boot=2,boot=3")).contains("given twice"));
        assert!(message(parse_memory("512M")).contains("keys are size"));
        assert!(
            message(parse_memory("size=12Q")).starts_with("--memory size=12Q: '12Q' is no size")
        );
    }

    #[test]
    fn words_of_a_key_may_be_joined_either_way() {
        let platform = parse_platform("tdx=on,num-l2-vms=2,sept-ve-disable=on").unwrap();
        assert_eq!(platform.num_l2_vms, Some(2));
        assert_eq!(platform.sept_ve_disable, Some(true));
        assert!(message(parse_platform("num_l2_vms=2,num-l2-vms=3")).contains("given twice"));
    }

    #[test]
    fn quoted_path_may_hold_a_comma() {
        let serial = parse_serial("file=\"a,b\"").unwrap();
        assert_eq!(serial.file, Some(PathBuf::from("a,b")));
    }

    #[test]
    fn serial_of_another_form_is_refused_with_the_forms() {
        for text in [
            "",
            "ttyS0",
            "file=",
            "file=a,socket=b",
            "socket",
            "off,null",
        ] {
            assert!(
                message(parse_serial(text)).contains("off, null, tty"),
                "{text}"
            );
        }
    }
}
