//! Binding vCPU threads to CPUs of the host (`--cpus affinity=`).

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use thiserror::Error;

use crate::config::{Affinity, MAX_HOST_CPUS};

/// A vCPU cannot be bound as asked for.
#[derive(Debug, Error)]
pub enum AffinityError {
    /// The CPU is not there, or not for this process.
    #[error(
        "--cpus affinity={vcpu}@{cpu}: the host has no CPU {cpu}, or does not let this process use it; it may use {allowed}"
    )]
    NotAllowed {
        /// The vCPU.
        vcpu: u32,
        /// The first of its CPUs that it cannot have.
        cpu: u32,
        /// The CPUs that this process may use, as a list of ranges.
        allowed: String,
    },
    /// The host does not tell which CPUs there are.
    #[error(
        "--cpus affinity=: cannot ask which CPUs this process may use (of hosts with more than {MAX_HOST_CPUS} this tdvmm cannot)"
    )]
    Ask(#[source] io::Error),
}

/// Refuses CPUs that the host does not have, or that this process may not use. Asks nothing when no vCPU is
/// bound.
///
/// # Errors
///
/// At the first such CPU.
pub fn check(affinity: &Affinity) -> Result<(), AffinityError> {
    if affinity.lists().next().is_none() {
        return Ok(());
    }
    let set = sched_getaffinity(this_thread()).map_err(|errno| AffinityError::Ask(errno.into()))?;
    check_against(affinity, |cpu| is_in(&set, cpu))
}

fn check_against(affinity: &Affinity, allowed: impl Fn(u32) -> bool) -> Result<(), AffinityError> {
    for (vcpu, host_cpus) in affinity.lists() {
        if let Some(&cpu) = host_cpus.iter().find(|cpu| !allowed(**cpu)) {
            let allowed = ranges((0..capacity()).filter(|cpu| allowed(*cpu)));
            return Err(AffinityError::NotAllowed { vcpu, cpu, allowed });
        }
    }
    Ok(())
}

/// Lets the calling thread run on `host_cpus` only.
///
/// # Errors
///
/// The kernel's, for instance when all of them have been switched off.
pub fn bind(host_cpus: &[u32]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in host_cpus {
        set.set(usize::try_from(*cpu).unwrap_or(usize::MAX))?;
    }
    Ok(sched_setaffinity(this_thread(), &set)?)
}

fn this_thread() -> Pid {
    Pid::from_raw(0)
}

fn capacity() -> u32 {
    u32::try_from(CpuSet::count()).unwrap_or(u32::MAX)
}

fn is_in(set: &CpuSet, cpu: u32) -> bool {
    usize::try_from(cpu).is_ok_and(|cpu| set.is_set(cpu).unwrap_or(false))
}

/// `0-2,5` of ascending numbers.
fn ranges(numbers: impl Iterator<Item = u32>) -> String {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match found.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => found.push((number, number)),
        }
    }
    let texts = found.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{VmConfig, parse_cpus, validate};

    fn affinity(text: &str) -> Affinity {
        let config = VmConfig {
            payload: crate::config::PayloadConfig {
                kernel: Some("k".into()),
                ..Default::default()
            },
            cpus: parse_cpus(text).unwrap(),
            ..Default::default()
        };
        validate(&config).unwrap().affinity
    }

    #[test]
    fn cpu_that_is_not_allowed_is_refused_with_those_that_are() {
        let wanted = affinity("boot=2,affinity=0@1:1@2+5");
        assert!(check_against(&wanted, |_| true).is_ok());
        let error = check_against(&wanted, |cpu| matches!(cpu, 0..=2 | 7)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--cpus affinity=1@5: the host has no CPU 5, or does not let this process use it; it may use 0-2,7"
        );
    }

    #[test]
    fn cpus_that_can_be_named_are_those_of_a_set() {
        assert_eq!(CpuSet::count(), MAX_HOST_CPUS);
    }

    #[test]
    fn bound_thread_runs_where_it_was_bound_to() {
        let allowed = sched_getaffinity(this_thread()).unwrap();
        let cpu = (0..capacity()).find(|cpu| is_in(&allowed, *cpu)).unwrap();
        std::thread::spawn(move || {
            bind(&[cpu]).unwrap();
            let now = sched_getaffinity(this_thread()).unwrap();
            let bound: Vec<u32> = (0..capacity()).filter(|at| is_in(&now, *at)).collect();
            assert_eq!(bound, [cpu]);
        })
        .join()
        .unwrap();
        assert!(check(&affinity(&format!("boot=1,affinity=0@{cpu}"))).is_ok());
        assert!(check(&affinity("boot=1,affinity=0@1023")).is_err());
    }
}
