//! Which CPUs of the host each vCPU may run on.
//!
//! What can be known without the host is checked here; whether the host has the CPUs, and lets this process
//! use them, is checked before anything is created ([`crate::affinity`]).

use std::collections::BTreeSet;

use serde::Serialize;

use super::{ConfigError, CpusConfig};

/// CPUs of the host that can be named: those below this number. It is what the C library's `cpu_set_t` holds.
pub const MAX_HOST_CPUS: usize = 1024;

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
            if let Some(cpu) = host_cpus
                .last()
                .filter(|cpu| **cpu as usize >= MAX_HOST_CPUS)
            {
                return Err(wrong(format!(
                    "names CPU {cpu} of the host; this tdvmm binds to CPUs below {MAX_HOST_CPUS}"
                )));
            }
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

    /// The CPUs that any of `vcpus` vCPUs may run on, ascending; `None` if one of them is not bound.
    #[must_use]
    pub fn of_all(&self, vcpus: u32) -> Option<Vec<u32>> {
        // Each is named once at most.
        if self.0.len() < usize::try_from(vcpus).ok()? {
            return None;
        }
        let lists = self.0.iter().flat_map(|(_, host_cpus)| host_cpus);
        let all: BTreeSet<u32> = lists.copied().collect();
        Some(all.into_iter().collect())
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
    fn cpus_of_all_are_told_when_every_vcpu_is_bound() {
        let affinity = affinity("boot=2,affinity=0@7:1@1-2+7").unwrap();
        assert_eq!(affinity.of_all(2), Some(vec![1, 2, 7]));
        assert_eq!(affinity.of_all(3), None);
        assert_eq!(Affinity::default().of_all(1), None);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_option() {
        for (text, problem) in [
            ("boot=2,affinity=2@0", "vCPUs have the numbers 0 to 1"),
            ("boot=2,affinity=0@1:0@2", "named twice"),
            ("boot=2,affinity=0", "is no VCPU@CPUS"),
            ("boot=2,affinity=0@", "is no number"),
            ("boot=2,affinity=0@3-1", "ends before it starts"),
            ("boot=2,affinity=0@0-4294967295", "more than 1024 CPUs"),
            ("boot=2,affinity=0@0-1023+0-1023", "more than 1024 CPUs"),
            ("boot=2,affinity=0@1+1024", "CPU 1024 of the host"),
        ] {
            let error = affinity(text).unwrap_err();
            assert!(error.starts_with("--cpus "), "{error}");
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
