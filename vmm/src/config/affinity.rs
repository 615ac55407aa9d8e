//! Which CPUs of the host each vCPU may run on.
//!
//! What can be known without the host is checked here; whether the host has the CPUs, and lets this process
//! use them, is checked before anything is created ([`crate::affinity`]).

use serde::Serialize;

use super::{ConfigError, CpusConfig};

/// CPUs of the host by number of the vCPU, each list ascending. A vCPU without one runs where the host lets
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Affinity(Vec<(u32, Vec<u32>)>);

impl Affinity {
    /// Reads what was asked for: each vCPU exists and is named once, and has a CPU to run on.
    pub(super) fn new(cpus: &CpusConfig) -> Result<Self, ConfigError> {
        let mut lists: Vec<(u32, Vec<u32>)> = Vec::with_capacity(cpus.affinity.len());
        for one in &cpus.affinity {
            let wrong = |problem: String| {
                ConfigError::option("--cpus", format!("affinity={}@...", one.vcpu), problem)
            };
            if one.vcpu >= cpus.boot {
                let last = cpus.boot.saturating_sub(1);
                return Err(wrong(format!("vCPUs have the numbers 0 to {last}")));
            }
            if one.host_cpus.is_empty() {
                return Err(wrong("names no CPU of the host".into()));
            }
            if lists.iter().any(|(vcpu, _)| *vcpu == one.vcpu) {
                return Err(wrong("the vCPU is named twice; join its CPUs by +".into()));
            }
            let mut host_cpus = one.host_cpus.clone();
            host_cpus.sort_unstable();
            host_cpus.dedup();
            lists.push((one.vcpu, host_cpus));
        }
        Ok(Self(lists))
    }

    /// The CPUs of `vcpu`, if it is bound to any.
    #[must_use]
    pub fn of(&self, vcpu: u32) -> Option<&[u32]> {
        let found = self.0.iter().find(|(number, _)| *number == vcpu);
        found.map(|(_, host_cpus)| host_cpus.as_slice())
    }

    /// All lists, with the numbers of their vCPUs.
    pub fn lists(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.0
            .iter()
            .map(|(vcpu, host_cpus)| (*vcpu, host_cpus.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse_cpus;
    use super::*;

    fn affinity(text: &str) -> Result<Affinity, String> {
        let cpus = parse_cpus(text).map_err(|error| error.to_string())?;
        Affinity::new(&cpus).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_and_ranges_are_read() {
        let affinity = affinity("boot=3,affinity=0@1:2@6+2-3+3").unwrap();
        assert_eq!(affinity.of(0), Some(&[1][..]));
        assert_eq!(affinity.of(1), None);
        assert_eq!(affinity.of(2), Some(&[2, 3, 6][..]));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_option() {
        for (text, problem) in [
            ("boot=2,affinity=2@0", "vCPUs have the numbers 0 to 1"),
            ("boot=2,affinity=0@1:0@2", "named twice"),
            ("boot=2,affinity=0", "is no VCPU@CPUS"),
            ("boot=2,affinity=0@", "is no number"),
            ("boot=2,affinity=0@3-1", "ends before it starts"),
            ("boot=2,affinity=0@0-4294967295", "more than 8192 CPUs"),
            ("boot=2,affinity=0@0-8191+0-8191", "more than 8192 CPUs"),
        ] {
            let error = affinity(text).unwrap_err();
            assert!(error.starts_with("--cpus "), "{error}");
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
