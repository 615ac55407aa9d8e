//! Whether this process may open as many files as its machine needs.
//!
//! Most are opened late: a queue has its ring, its timer and its interrupt when the driver starts it. A limit that is too
//! low would leave a running guest without its disks, so it is looked at before anything is created, and the soft limit
//! is raised as far as the hard one lets it: it is kept low for programs that use select(2), and this one does not.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use crate::config::Device;
use crate::plan::Plan;
use crate::plan::pci::Function;

/// Standard streams, log, KVM and the VM, private memory, signals, the main loop, the serial port with its client and
/// with those that have gone and are still read.
const MACHINE: u64 = 48;
/// A function's I/O thread has two, the interrupt of its configuration one; the others are an image and its lock, or the
/// stream of a console.
const FUNCTION: u64 = 10;
/// The doorbell of a queue, and its interrupt.
const QUEUE: u64 = 2;
/// What a disk's queue has beside those: an io_uring with its completions, and a timer.
const DISK_QUEUE: u64 = 3;
/// What is not counted, and refuses nothing: backing files, and what the parent has left open.
const SPARE: u64 = 512;

/// The machine needs more open files than this process may have.
#[derive(Debug, PartialEq, Eq, Error)]
#[error(
    "{asked}: the machine needs {needed} open files, and this process may have {limit}; \
     ask for less, or raise the hard limit (ulimit -Hn)"
)]
pub struct TooManyFiles {
    /// The option that asks for the most of them.
    asked: String,
    /// How many there would be.
    needed: u64,
    /// The hard limit.
    limit: u64,
}

/// Makes sure that all files of the machine of `plan` can be opened.
///
/// # Errors
///
/// If the hard limit is too low.
pub fn make_room(plan: &Plan) -> Result<(), TooManyFiles> {
    let wanted = Wanted::new(&plan.pci, plan.topology.vcpus());
    let raised = wanted.under(getrlimit(Resource::Nofile))?;
    if let Some(raised) = raised
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::warn!("the soft limit of open files cannot be raised to the hard one: {error}");
    }
    Ok(())
}

/// Open files of the parts of a machine.
struct Wanted {
    vcpus: u64,
    functions: u64,
    /// The most queues that a disk has.
    num_queues: u16,
}

impl Wanted {
    fn new(functions: &[Function], vcpus: u32) -> Self {
        let files = |function: &Function| {
            let (queues, each) = match &function.device {
                Device::Disk(disk) => (disk.num_queues, QUEUE + DISK_QUEUE),
                // Each queue has a vector, and so has the configuration.
                _ => (function.vectors.saturating_sub(1), QUEUE),
            };
            FUNCTION + u64::from(queues) * each
        };
        let num_queues = functions
            .iter()
            .filter_map(|function| match &function.device {
                Device::Disk(disk) => Some(disk.num_queues),
                _ => None,
            });
        Self {
            vcpus: vcpus.into(),
            functions: functions.iter().map(files).sum(),
            num_queues: num_queues.max().unwrap_or_default(),
        }
    }

    /// The limit to set, where `limit` is not enough as it is.
    fn under(&self, limit: Rlimit) -> Result<Option<Rlimit>, TooManyFiles> {
        let needed = MACHINE + self.vcpus + self.functions;
        if let Some(limit) = limit.maximum.filter(|limit| *limit < needed) {
            let asked = if self.num_queues > 0 && self.functions >= self.vcpus {
                format!("--disk num_queues={}", self.num_queues)
            } else {
                format!("--cpus boot={}", self.vcpus)
            };
            return Err(TooManyFiles {
                asked,
                needed,
                limit,
            });
        }
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        let is_low = limit.current.is_some_and(|soft| soft < needed + SPARE);
        Ok((is_low && raised != limit).then_some(raised))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{VmConfig, parse_disk, validate};
    use crate::plan::pci::functions;

    fn wanted(disks: &[&str], vcpus: u32) -> Wanted {
        let mut config = VmConfig::default();
        config.payload.kernel = Some("vmlinuz".into());
        config.disks = disks.iter().map(|text| parse_disk(text).unwrap()).collect();
        config.rng = true;
        Wanted::new(&functions(&validate(&config).unwrap().devices), vcpus)
    }

    fn limit(soft: u64, hard: u64) -> Rlimit {
        Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        }
    }

    #[test]
    fn small_machine_is_content_with_the_usual_limit() {
        let wanted = wanted(&["path=a"], 4);
        assert_eq!(wanted.under(limit(1024, 1 << 19)), Ok(None));
        // Nothing can be raised, and nothing has to be.
        assert_eq!(wanted.under(limit(100, 100)), Ok(None));
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        assert_eq!(wanted.under(unlimited), Ok(None));
    }

    #[test]
    fn soft_limit_is_raised_for_many_queues() {
        let wanted = wanted(&["path=a,num_queues=64", "path=b,num_queues=64"], 4);
        let hard = limit(1 << 19, 1 << 19);
        assert_eq!(wanted.under(limit(1024, 1 << 19)), Ok(Some(hard)));
    }

    #[test]
    fn hard_limit_that_is_too_low_is_named_with_the_option_that_asks_for_most() {
        let disks = ["path=a,num_queues=64", "path=b,num_queues=3"];
        let refused = |wanted: Wanted| wanted.under(limit(256, 256)).unwrap_err().to_string();
        // 48 of the machine, 4 vCPUs, 3 functions, 67 queues of disks and one of the entropy device.
        assert_eq!(
            refused(wanted(&disks, 4)),
            "--disk num_queues=64: the machine needs 419 open files, and this process may have 256; \
             ask for less, or raise the hard limit (ulimit -Hn)"
        );
        let vcpus = refused(wanted(&["path=a"], 300));
        assert!(vcpus.starts_with("--cpus boot=300: "), "{vcpus}");
    }
}
