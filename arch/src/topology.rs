//! How vCPUs are grouped into threads, cores and sockets, with APIC id equal to vCPU number.
//!
//! An APIC id is a bit field: thread number lowest, then core, then socket, each field as wide as its largest
//! number needs. Ids without gaps therefore want powers of two below the topmost level that has more than
//! one member. A topology that would leave gaps is refused with one that would not: equal numbers keep the
//! MADT, CPUID and KVM free of a translation that each would have to agree on.

use core::fmt;

use serde::Serialize;

use crate::VcpuId;

/// The most vCPUs that a guest can have: what KVM allows at most (`KVM_MAX_VCPUS`, a kernel build option).
pub const MAX_VCPUS: u32 = 4096;

/// Why a topology cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// A level without members.
    #[error("topology {sockets}:{cores}:{threads} has a level with no members")]
    Empty {
        /// Sockets asked for.
        sockets: u32,
        /// Cores per socket asked for.
        cores: u32,
        /// Threads per core asked for.
        threads: u32,
    },
    /// More vCPUs than [`MAX_VCPUS`].
    #[error("topology {sockets}:{cores}:{threads} has more than {MAX_VCPUS} vCPUs")]
    TooMany {
        /// Sockets asked for.
        sockets: u32,
        /// Cores per socket asked for.
        cores: u32,
        /// Threads per core asked for.
        threads: u32,
    },
    /// APIC ids would have gaps.
    #[error(
        "topology {sockets}:{cores}:{threads} would leave gaps in the APIC ids; {} has as many vCPUs",
        Topology { sockets: *alternative_sockets, cores: *alternative_cores, threads: *alternative_threads }
    )]
    Gaps {
        /// Sockets asked for.
        sockets: u32,
        /// Cores per socket asked for.
        cores: u32,
        /// Threads per core asked for.
        threads: u32,
        /// Sockets of a topology that has as many vCPUs and is legal.
        alternative_sockets: u32,
        /// Its cores per socket.
        alternative_cores: u32,
        /// Its threads per core.
        alternative_threads: u32,
    },
}

/// Sockets, cores per socket, threads per core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

impl Topology {
    /// `sockets` sockets of `cores` cores of `threads` threads each.
    ///
    /// # Errors
    ///
    /// If a level is empty, there are more than [`MAX_VCPUS`], or APIC ids would have gaps.
    pub fn new(sockets: u32, cores: u32, threads: u32) -> Result<Self, TopologyError> {
        if sockets == 0 || cores == 0 || threads == 0 {
            return Err(TopologyError::Empty {
                sockets,
                cores,
                threads,
            });
        }
        let vcpus = sockets
            .checked_mul(cores)
            .and_then(|cores| cores.checked_mul(threads));
        let Some(vcpus) = vcpus.filter(|vcpus| *vcpus <= MAX_VCPUS) else {
            return Err(TopologyError::TooMany {
                sockets,
                cores,
                threads,
            });
        };
        let topology = Self {
            sockets,
            cores,
            threads,
        };
        if topology.has_gaps() {
            let legal = [
                Self {
                    sockets: 1,
                    cores: sockets * cores,
                    threads,
                },
                Self {
                    sockets: 1,
                    cores: vcpus,
                    threads: 1,
                },
            ];
            let other = if legal[0].has_gaps() {
                legal[1]
            } else {
                legal[0]
            };
            return Err(TopologyError::Gaps {
                sockets,
                cores,
                threads,
                alternative_sockets: other.sockets,
                alternative_cores: other.cores,
                alternative_threads: other.threads,
            });
        }
        Ok(topology)
    }

    /// One socket of `vcpus` cores of one thread each.
    ///
    /// # Errors
    ///
    /// If `vcpus` is 0 or more than [`MAX_VCPUS`].
    pub fn flat(vcpus: u32) -> Result<Self, TopologyError> {
        Self::new(1, vcpus, 1)
    }

    fn has_gaps(self) -> bool {
        let above_threads = self.cores > 1 || self.sockets > 1;
        (above_threads && !self.threads.is_power_of_two())
            || (self.sockets > 1 && !self.cores.is_power_of_two())
    }

    /// Number of vCPUs.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }

    /// Number of sockets.
    #[must_use]
    pub const fn sockets(&self) -> u32 {
        self.sockets
    }

    /// Cores in a socket.
    #[must_use]
    pub const fn cores(&self) -> u32 {
        self.cores
    }

    /// Threads in a core.
    #[must_use]
    pub const fn threads(&self) -> u32 {
        self.threads
    }

    /// Logical processors in a socket.
    #[must_use]
    pub const fn threads_per_socket(&self) -> u32 {
        self.cores * self.threads
    }

    /// Bits of an APIC id that number the thread in its core: a right shift by them gives the core.
    #[must_use]
    pub const fn core_shift(&self) -> u32 {
        width(self.threads)
    }

    /// Bits of an APIC id that number thread and core: a right shift by them gives the socket.
    #[must_use]
    pub const fn socket_shift(&self) -> u32 {
        width(self.threads) + width(self.cores)
    }

    /// The socket, the core in it and the thread in that.
    #[must_use]
    pub const fn locate(&self, vcpu: VcpuId) -> (u32, u32, u32) {
        let core = vcpu.0 >> self.core_shift();
        (
            vcpu.0 >> self.socket_shift(),
            core & ((1 << width(self.cores)) - 1),
            vcpu.0 & ((1 << width(self.threads)) - 1),
        )
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.sockets, self.cores, self.threads)
    }
}

/// Bits that number `members` members.
const fn width(members: u32) -> u32 {
    members.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flat_topology_takes_any_number_of_cores() {
        for vcpus in [1, 3, 255, 256, 1000, MAX_VCPUS] {
            let topology = Topology::flat(vcpus).unwrap();
            assert_eq!((topology.vcpus(), topology.core_shift()), (vcpus, 0));
        }
        assert!(Topology::flat(0).is_err());
        assert!(Topology::flat(MAX_VCPUS + 1).is_err());
    }

    #[test]
    fn topology_with_gaps_is_refused_with_an_alternative() {
        let error = Topology::new(2, 3, 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "topology 2:3:2 would leave gaps in the APIC ids; 1:6:2 has as many vCPUs"
        );
        let error = Topology::new(1, 2, 3).unwrap_err();
        assert!(error.to_string().contains("1:6:1"), "{error}");
    }

    #[test]
    fn product_that_wraps_is_too_many() {
        assert!(matches!(
            Topology::new(1 << 16, 1 << 16, 1),
            Err(TopologyError::TooMany { .. })
        ));
    }

    #[test]
    fn three_threads_in_the_only_core_are_legal() {
        let topology = Topology::new(1, 1, 3).unwrap();
        assert_eq!((topology.core_shift(), topology.socket_shift()), (2, 2));
    }

    proptest! {
        #[test]
        fn legal_topology_numbers_every_vcpu_once_and_in_order(
            sockets in 1u32..9, cores in 1u32..33, threads in 1u32..5
        ) {
            match Topology::new(sockets, cores, threads) {
                Ok(topology) => {
                    let places: Vec<_> =
                        (0..topology.vcpus()).map(|id| topology.locate(VcpuId(id))).collect();
                    let expected: Vec<_> = (0..sockets)
                        .flat_map(|s| (0..cores).map(move |c| (s, c)))
                        .flat_map(|(s, c)| (0..threads).map(move |t| (s, c, t)))
                        .collect();
                    prop_assert_eq!(places, expected);
                }
                Err(TopologyError::Gaps { alternative_sockets, alternative_cores, alternative_threads, .. }) => {
                    let other = Topology::new(alternative_sockets, alternative_cores, alternative_threads);
                    prop_assert_eq!(other.map(|t| t.vcpus()), Ok(sockets * cores * threads));
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
