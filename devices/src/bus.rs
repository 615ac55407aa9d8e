//! The address map of a guest, built once and then frozen.
//!
//! An access goes to the one device that holds all of its bytes. A bad access (none there, across an
//! edge, refused by the device) is the guest's mistake: reads give all ones, writes vanish, and the bus
//! counts it. The map itself has no lock; each device has one, which is never held while another is
//! taken, since no device calls back into a bus.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

/// A device that answers reads and writes by offset from its own start.
///
/// Called from any vCPU thread, one call at a time. `data` is 1 to 8 bytes long.
pub trait BusDevice: Send {
    /// Short name for messages.
    fn name(&self) -> &str;
    /// Fills `data` from the register at `offset`.
    ///
    /// # Errors
    ///
    /// If the access is none that the device has; the bus then answers all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;
    /// Writes `data` to the register at `offset`.
    ///
    /// # Errors
    ///
    /// If the access is none that the device has; the bus then drops it.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError>;
}

/// What was wrong with an access. The device itself is fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AccessError {
    /// There is nothing at this offset.
    #[error("no register at offset {0:#x}")]
    NoRegister(u64),
    /// The register is there, but not for an access of this many bytes.
    #[error("access of {0} bytes")]
    Size(usize),
    /// The offset is no multiple of the access's size.
    #[error("unaligned offset {0:#x}")]
    Unaligned(u64),
}

/// The address map cannot be built like this: a mistake of the program, not of the guest.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// The range holds no address or wraps.
    #[error("{name}: bad range of {len:#x} from {base:#x}")]
    Range {
        /// The device's name.
        name: String,
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
    },
    /// Two devices claim the same address.
    #[error("{name} at {base:#x} overlaps {other}")]
    Overlap {
        /// The device that came later.
        name: String,
        /// Its first address.
        base: u64,
        /// The device that was there.
        other: String,
    },
}

/// A device that may stand on several buses or at several places of one.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

struct Place {
    base: u64,
    last: u64,
    device: SharedDevice,
}

/// Collects places until [`BusBuilder::build`] freezes them.
#[derive(Default)]
pub struct BusBuilder {
    places: Vec<Place>,
}

/// See the module's text.
pub struct Bus {
    /// Sorted by `base`; no two overlap.
    places: Box<[Place]>,
    bad_accesses: AtomicU64,
}

impl BusBuilder {
    /// Puts `device` at the `len` addresses from `base`.
    ///
    /// # Errors
    ///
    /// If the range is empty, wraps, or overlaps one that is already there.
    pub fn insert(mut self, base: u64, len: u64, device: SharedDevice) -> Result<Self, MapError> {
        let name = || name_of(&device);
        let Some(last) = len.checked_sub(1).and_then(|more| base.checked_add(more)) else {
            return Err(MapError::Range {
                name: name(),
                base,
                len,
            });
        };
        if let Some(other) = self
            .places
            .iter()
            .find(|p| p.base <= last && base <= p.last)
        {
            return Err(MapError::Overlap {
                name: name(),
                base,
                other: name_of(&other.device),
            });
        }
        self.places.push(Place { base, last, device });
        Ok(self)
    }

    /// Freezes the map.
    #[must_use]
    pub fn build(mut self) -> Bus {
        self.places.sort_unstable_by_key(|place| place.base);
        Bus {
            places: self.places.into_boxed_slice(),
            bad_accesses: AtomicU64::new(0),
        }
    }
}

impl Bus {
    /// Reads `data.len()` bytes at `address`; all ones where nothing answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let done = self
            .find(address, data.len())
            .is_some_and(|(place, offset)| lock(&place.device).read(offset, data).is_ok());
        if !done {
            data.fill(0xff);
            self.bad_accesses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes `data` at `address`; drops it where nothing takes it.
    pub fn write(&self, address: u64, data: &[u8]) {
        let done = self
            .find(address, data.len())
            .is_some_and(|(place, offset)| lock(&place.device).write(offset, data).is_ok());
        if !done {
            self.bad_accesses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Accesses so far that no device answered.
    pub fn bad_accesses(&self) -> u64 {
        self.bad_accesses.load(Ordering::Relaxed)
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Place, u64)> {
        let after = self.places.partition_point(|place| place.base <= address);
        let place = self.places.get(after.checked_sub(1)?)?;
        let last = address.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        (last <= place.last).then(|| (place, address.wrapping_sub(place.base)))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.places
                    .iter()
                    .map(|p| format!("{:#x}-{:#x} {}", p.base, p.last, name_of(&p.device))),
            )
            .finish()
    }
}

impl fmt::Debug for BusBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusBuilder")
            .field("places", &self.places.len())
            .finish()
    }
}

fn name_of(device: &SharedDevice) -> String {
    lock(device).name().to_owned()
}

/// A panic ends the process (`panic = "abort"`), so a poisoned lock is only seen in tests.
fn lock(device: &SharedDevice) -> MutexGuard<'_, dyn BusDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn name(&self) -> &str {
            "echo"
        }
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            match offset {
                0 => data.fill(self.0),
                other => return Err(AccessError::NoRegister(other)),
            }
            Ok(())
        }
        fn write(&mut self, _: u64, data: &[u8]) -> Result<(), AccessError> {
            self.0 = *data.first().ok_or(AccessError::Size(0))?;
            Ok(())
        }
    }

    fn echo(value: u8) -> SharedDevice {
        Arc::new(Mutex::new(Echo(value)))
    }

    fn bus() -> Bus {
        let builder = BusBuilder::default();
        builder
            .insert(0x20, 4, echo(2))
            .unwrap()
            .insert(0x10, 4, echo(1))
            .unwrap()
            .build()
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn access_reaches_the_device_that_holds_it() {
        let bus = bus();
        bus.write(0x20, &[7]);
        assert_eq!((read(&bus, 0x10), read(&bus, 0x20)), (1, 7));
        assert_eq!(bus.bad_accesses(), 0);
    }

    #[test]
    fn access_that_nothing_answers_reads_all_ones_and_is_counted() {
        let bus = bus();
        for address in [0, 0x0f, 0x11, 0x14, 0x24, u64::MAX] {
            assert_eq!(read(&bus, address), 0xff);
        }
        assert_eq!(bus.bad_accesses(), 6);
    }

    #[test]
    fn access_across_the_edge_of_a_device_is_nobodys() {
        let bus = bus();
        let mut data = [0; 4];
        bus.read(0x22, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.read(u64::MAX - 1, &mut data);
        assert_eq!(bus.bad_accesses(), 2);
    }

    #[test]
    fn places_that_overlap_are_refused() {
        let builder = BusBuilder::default().insert(0x10, 4, echo(1)).unwrap();
        let error = builder.insert(0x13, 1, echo(2)).unwrap_err();
        assert!(matches!(error, MapError::Overlap { base: 0x13, .. }));
        let error = BusBuilder::default()
            .insert(u64::MAX, 2, echo(2))
            .unwrap_err();
        assert!(matches!(error, MapError::Range { .. }));
    }
}
