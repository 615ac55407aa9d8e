//! The configuration space of one function: bytes, and which of their bits a guest may change.
//!
//! Conventional PCI, so 256 bytes with a type 0 header (PCI Local Bus 3.0, 6.1); the rest of the 4 KiB
//! that ECAM gives a function reads as all ones, which tells Linux that there is none. Sizing a BAR
//! needs no code: the bits below its size cannot be written.

use thiserror::Error;

/// Bytes of the space.
const LEN: usize = 256;
const COMMAND: u8 = 0x04;
const STATUS: usize = 0x06;
const BAR0: u8 = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: u8 = 0x3c;
/// The first byte after the header.
const FIRST_CAPABILITY: u8 = 0x40;
/// Bits of the command register that do something or that drivers expect to stick: I/O and memory
/// decoding, bus master, parity and SERR reporting, INTx off.
const COMMAND_BITS: u16 = 0x0547;
const COMMAND_MEMORY: u16 = 1 << 1;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BARS: u8 = 6;
/// Bits of a memory BAR that are not address.
const BAR_FLAGS: u32 = 0xf;

/// What a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface, as `0xccsspp`.
    pub class: u32,
    /// Revision id.
    pub revision: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A memory BAR and where it decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Number, 0 to 5.
    pub index: u8,
    /// Guest-physical address.
    pub base: u64,
    /// Bytes, a power of two.
    pub size: u64,
}

/// The layout of a space cannot be like this: a mistake of the program, not of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpaceError {
    /// There are BARs 0 to 5, of a power of two of at least 16 bytes.
    #[error("no BAR {index} of {size:#x} bytes can be")]
    Bar {
        /// Number asked for.
        index: u8,
        /// Size asked for.
        size: u32,
    },
    /// The space is full.
    #[error("no room for a capability of {0} bytes")]
    CapabilityRoom(usize),
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; LEN]>,
    /// Bits that a guest may change.
    writable: Box<[u8; LEN]>,
    bar_sizes: [u32; BARS as usize],
    /// Where the link to the next capability is to be written.
    last_link: usize,
    next_free: u8,
}

impl ConfigSpace {
    /// A type 0 header with no BAR and no capability.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: Box::new([0; LEN]),
            writable: Box::new([0; LEN]),
            bar_sizes: [0; BARS as usize],
            last_link: CAPABILITIES,
            next_free: FIRST_CAPABILITY,
        };
        let [programming, subclass, class, _] = identity.class.to_le_bytes();
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &[identity.revision, programming, subclass, class]);
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        space.set_writable(COMMAND, &COMMAND_BITS.to_le_bytes());
        space.set_writable(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a 32-bit memory BAR, not prefetchable, of `size` bytes at address 0.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Bar`].
    pub fn add_bar(&mut self, index: u8, size: u32) -> Result<(), SpaceError> {
        let known = self.bar_sizes.get_mut(usize::from(index));
        match (bar_register(index), known) {
            (Some(register), Some(known))
                if *known == 0 && size.is_power_of_two() && size > BAR_FLAGS =>
            {
                *known = size;
                // The bits from `size` up.
                self.set_writable(register, &size.wrapping_neg().to_le_bytes());
                Ok(())
            }
            _ => Err(SpaceError::Bar { index, size }),
        }
    }

    /// Appends a capability; `body` is what follows its id and link, and cannot be written unless
    /// [`ConfigSpace::set_writable`] says so. Gives the register at which it starts, a multiple of 4.
    ///
    /// # Errors
    ///
    /// [`SpaceError::CapabilityRoom`].
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Result<u8, SpaceError> {
        let full = SpaceError::CapabilityRoom(body.len());
        let at = self.next_free;
        let start = usize::from(at);
        let after = start
            .checked_add(2)
            .and_then(|end| end.checked_add(body.len()))
            .and_then(|end| end.checked_next_multiple_of(4))
            // The last dword stays free, so that `next_free` fits a byte.
            .and_then(|end| u8::try_from(end).ok())
            .ok_or(full)?;
        self.set(at, &[id, 0]);
        self.set(at.wrapping_add(2), body);
        if let Some(link) = self.bytes.get_mut(self.last_link) {
            *link = at;
        }
        if let Some(status) = self.bytes.get_mut(STATUS) {
            *status |= STATUS_CAPABILITIES;
        }
        self.last_link = start.wrapping_add(1);
        self.next_free = after;
        Ok(at)
    }

    /// Says which bits from `register` on a guest may change.
    pub fn set_writable(&mut self, register: u8, mask: &[u8]) {
        overwrite(self.writable.as_mut_slice(), register, mask);
    }

    /// Writes as the device itself, past the mask.
    pub fn set(&mut self, register: u8, data: &[u8]) {
        overwrite(self.bytes.as_mut_slice(), register, data);
    }

    /// Reads as the guest does; all ones past the end.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        let stored = self.bytes.iter().skip(usize::from(register));
        for (to, from) in data.iter_mut().zip(stored.chain(std::iter::repeat(&0xff))) {
            *to = *from;
        }
    }

    /// Writes as the guest does: only the bits that it may change.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        let stored = self.bytes.iter_mut().zip(self.writable.iter());
        for ((to, mask), from) in stored.skip(usize::from(register)).zip(data) {
            *to = (*to & !mask) | (from & mask);
        }
    }

    /// Two bytes as the guest would read them.
    #[must_use]
    pub fn u16_at(&self, register: u8) -> u16 {
        let mut data = [0; 2];
        self.read(u16::from(register), &mut data);
        u16::from_le_bytes(data)
    }

    /// Four bytes as the guest would read them.
    #[must_use]
    pub fn u32_at(&self, register: u8) -> u32 {
        let mut data = [0; 4];
        self.read(u16::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    /// Sizes of the BARs that there are, by number.
    pub fn bar_sizes(&self) -> impl Iterator<Item = (u8, u32)> {
        (0..).zip(self.bar_sizes).filter(|(_, size)| *size != 0)
    }

    /// The BARs that decode now: none unless the command register says so, and never one at 0.
    pub fn decoded_bars(&self) -> impl Iterator<Item = Bar> {
        let enabled = self.u16_at(COMMAND) & COMMAND_MEMORY != 0;
        self.bar_sizes()
            .filter(move |_| enabled)
            .filter_map(|(index, size)| {
                let base = self.u32_at(bar_register(index)?) & !BAR_FLAGS;
                (base != 0).then_some(Bar {
                    index,
                    base: base.into(),
                    size: size.into(),
                })
            })
    }

    /// Places a BAR as firmware would, and lets the function decode memory.
    pub fn place_bar(&mut self, index: u8, base: u32) {
        if let Some(register) = bar_register(index) {
            self.write(register.into(), &base.to_le_bytes());
            let command = self.u16_at(COMMAND) | COMMAND_MEMORY;
            self.set(COMMAND, &command.to_le_bytes());
        }
    }
}

fn bar_register(index: u8) -> Option<u8> {
    (index < BARS).then(|| BAR0.wrapping_add(index.wrapping_mul(4)))
}

/// Copies what fits.
fn overwrite(space: &mut [u8], register: u8, data: &[u8]) {
    for (to, from) in space.iter_mut().skip(register.into()).zip(data) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_80_00,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        space.add_bar(1, 0x1000).unwrap();
        space
    }

    #[test]
    fn header_tells_the_identity() {
        let space = space();
        assert_eq!(space.u32_at(0x00), 0x1042_1af4);
        assert_eq!(space.u32_at(0x08), 0x0180_0001);
        assert_eq!(space.u32_at(0x2c), 0x1100_1af4);
        assert_eq!(space.u32_at(0x0c), 0, "type 0, one function");
    }

    #[test]
    fn bar_written_all_ones_reads_back_its_size() {
        let mut space = space();
        for register in 4..10_u16 {
            space.write(register * 4, &[0xff; 4]);
        }
        assert_eq!(space.u32_at(0x14), 0xffff_f000);
        assert_eq!(space.u32_at(0x10), 0, "no such BAR");
        space.write(0x14, &0x8123_4567_u32.to_le_bytes());
        assert_eq!(space.u32_at(0x14), 0x8123_4000);
    }

    #[test]
    fn bar_decodes_only_when_enabled_and_placed() {
        let mut space = space();
        assert_eq!(space.decoded_bars().count(), 0);
        space.write(0x04, &[2, 0]);
        assert_eq!(space.decoded_bars().count(), 0);
        space.write(0x14, &0x8000_0000_u32.to_le_bytes());
        let bar = Bar {
            index: 1,
            base: 0x8000_0000,
            size: 0x1000,
        };
        assert_eq!(space.decoded_bars().collect::<Vec<_>>(), [bar]);
        space.write(0x04, &[0, 0]);
        assert_eq!(space.decoded_bars().count(), 0);
    }

    #[test]
    fn bar_that_cannot_be_is_refused() {
        let mut space = space();
        for (index, size) in [(6, 0x1000), (0, 0x1001), (0, 8), (0, 0), (1, 0x1000)] {
            let error = space.add_bar(index, size).unwrap_err();
            assert_eq!(error, SpaceError::Bar { index, size });
        }
    }

    #[test]
    fn capabilities_are_linked_aligned_and_read_only() {
        let mut space = space();
        assert_eq!(space.u16_at(0x06), 0);
        let first = space.add_capability(0x09, &[16; 14]).unwrap();
        let second = space.add_capability(0x11, &[0; 9]).unwrap();
        assert_eq!((first, second), (0x40, 0x50));
        assert_eq!(space.u16_at(0x06), 0x10);
        assert_eq!(space.u16_at(0x34), 0x40);
        assert_eq!(space.u16_at(0x40), 0x5009);
        assert_eq!(space.u16_at(0x50), 0x0011);
        space.write(0x40, &[0xff; 64]);
        assert_eq!(space.u16_at(0x42), 0x1010);
        assert_eq!(
            space.add_capability(0x09, &[0; 200]),
            Err(SpaceError::CapabilityRoom(200))
        );
        assert_eq!(space.u16_at(0x50), 0x0011, "the failed one left no trace");
    }

    #[test]
    fn space_beyond_256_bytes_reads_all_ones_and_ignores_writes() {
        let mut space = space();
        let mut data = [0; 4];
        for register in [0x100, 0xffc, 0xfff, u16::MAX] {
            space.write(register, &[0; 4]);
            space.read(register, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
        space.read(0xfe, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }
}
