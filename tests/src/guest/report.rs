//! What a guest said about itself, read from its console. Pure.

use anyhow::{Context, Result, ensure};

use super::{MARKER, PREFIX, REPORT_END};

/// The interrupts that a guest reports: what the kernel counts as an error, and the local timer. Each character of a
/// report costs a TD two milliseconds here.
pub const INTERRUPTS: [&str; 5] = ["LOC", "ERR", "MIS", "SPU", "MCE"];

/// A guest's report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `uname -r`.
    pub release: String,
    /// Online CPUs as the kernel writes lists, for instance `0-3`.
    pub online: String,
    /// Each CPU.
    pub cpus: Vec<Cpu>,
    /// Memory that the kernel manages, in KiB.
    pub memory_kib: u64,
    /// RAM in the map that the VMM gave, in bytes.
    pub map_bytes: u64,
    /// The lines of `/proc/interrupts` that [`INTERRUPTS`] names.
    pub interrupts: Vec<String>,
    /// What a TD says of itself, by key: `mrtd`, `rtmr0` and so on in hex, `quote`, `selftest`.
    pub td: Vec<(String, String)>,
    /// What the kernel says of being in a TD, see [`super::td::ANNOUNCEMENTS`].
    pub announcements: Vec<String>,
    /// Kernel log records that are warnings or worse.
    pub warnings: Vec<String>,
}

/// A CPU as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Number.
    pub number: u32,
    /// APIC id.
    pub apic_id: u32,
    /// Socket.
    pub package: u32,
    /// Core in its socket.
    pub core: u32,
    /// CPUs of the same core.
    pub siblings: String,
}

impl Report {
    /// Reads the report between [`MARKER`] and [`REPORT_END`].
    pub fn parse(console: &str) -> Result<Self> {
        let (_, after) = console
            .split_once(MARKER)
            .context("the guest did not print its marker")?;
        let (body, _) = after
            .split_once(REPORT_END)
            .context("the guest's report has no end")?;
        let mut report = Self::default();
        for line in body
            .lines()
            .filter_map(|line| line.trim_end().strip_prefix(PREFIX))
        {
            report.take(line)?;
        }
        ensure!(!report.cpus.is_empty(), "the guest reported no CPU");
        Ok(report)
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "release" => self.release = value.to_owned(),
            "online" => self.online = value.to_owned(),
            "cpu" => self
                .cpus
                .push(Cpu::parse(value).with_context(|| line.to_owned())?),
            "memory" => self.memory_kib = value.parse().with_context(|| line.to_owned())?,
            "map" => self.map_bytes = value.parse().with_context(|| line.to_owned())?,
            "interrupt" => self.interrupts.push(value.to_owned()),
            "td" => {
                let (key, value) = value.split_once(' ').unwrap_or((value, ""));
                self.td.push((key.to_owned(), value.to_owned()));
            }
            "says" => self.announcements.push(value.to_owned()),
            "dmesg" => self.warnings.push(value.to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// What a TD says of itself under a key.
    pub fn td_value(&self, key: &str) -> Option<&str> {
        let found = self.td.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str())
    }

    /// The count of an interrupt by its label, summed over all CPUs, for instance of `ERR`.
    pub fn interrupt_count(&self, label: &str) -> Option<u64> {
        let rest = self
            .interrupts
            .iter()
            .find_map(|l| l.strip_prefix(label)?.strip_prefix(':'))?;
        Some(
            rest.split_whitespace()
                .map_while(|w| w.parse::<u64>().ok())
                .sum(),
        )
    }
}

impl Cpu {
    /// Parses `0 apicid 0 package 0 core 0 siblings 0-1`.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [
            number,
            "apicid",
            apic_id,
            "package",
            package,
            "core",
            core,
            "siblings",
            siblings,
        ] = words[..]
        else {
            return None;
        };
        Some(Self {
            number: number.parse().ok()?,
            apic_id: apic_id.parse().ok()?,
            package: package.parse().ok()?,
            core: core.parse().ok()?,
            siblings: siblings.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "noise\r\nTDVMM-GUEST-UP\r\n\
        TDVMM-GUEST release 7.2.13\r\n\
        TDVMM-GUEST online 0-1\r\n\
        TDVMM-GUEST cpu 0 apicid 0 package 0 core 0 siblings 0\r\n\
        TDVMM-GUEST cpu 1 apicid 1 package 0 core 1 siblings 1\r\n\
        TDVMM-GUEST memory 480000\r\n\
        TDVMM-GUEST map 536870912\r\n\
        TDVMM-GUEST td mrtd 00ff\r\n\
        TDVMM-GUEST interrupt LOC: 10 20 Local timer interrupts\r\n\
        TDVMM-GUEST interrupt ERR: 0\r\n\
        TDVMM-GUEST dmesg 4 careful\r\n\
        TDVMM-GUEST-END\r\n";

    #[test]
    fn report_is_read_from_a_console_with_carriage_returns() {
        let report = Report::parse(CONSOLE).unwrap();
        assert_eq!(report.cpus.len(), 2);
        assert_eq!(report.cpus[1].core, 1);
        assert_eq!(report.map_bytes, 512 << 20);
        assert_eq!(report.interrupt_count("LOC"), Some(30));
        assert_eq!(report.interrupt_count("ERR"), Some(0));
        assert_eq!(report.interrupt_count("MIS"), None);
        assert_eq!(report.td_value("mrtd"), Some("00ff"));
        assert_eq!(report.td_value("rtmr0"), None);
        assert_eq!(report.warnings, ["4 careful"]);
    }

    #[test]
    fn report_without_end_is_an_error() {
        let cut = CONSOLE.replace("TDVMM-GUEST-END", "");
        assert!(Report::parse(&cut).is_err());
        assert!(Report::parse("nothing").is_err());
    }
}
