//! For the tests of the bus: a function with two BARs that remembers what reached it.

use std::sync::{Arc, Mutex};

use super::config::{ConfigSpace, Identity};
use super::root::PciDevice;

/// What a BAR was asked: number, offset, data.
pub(super) type Access = (u8, u64, Vec<u8>);

#[derive(Debug)]
pub(super) struct Fake {
    config: ConfigSpace,
    pub(super) writes: Vec<Access>,
    pub(super) moves: usize,
}

impl Fake {
    pub(super) fn new(device: u16, bars: &[(u8, u32)]) -> Arc<Mutex<Self>> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device,
            ..Identity::default()
        });
        for (index, size) in bars {
            config.add_bar(*index, *size).unwrap();
        }
        Arc::new(Mutex::new(Self {
            config,
            writes: Vec::new(),
            moves: 0,
        }))
    }
}

impl PciDevice for Fake {
    fn name(&self) -> &str {
        "fake"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bars_moved(&mut self) {
        self.moves += 1;
    }
    /// The low bytes of the offset, with the number of the BAR on top of the first.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(offset.to_le_bytes()) {
            *to = from;
        }
        data[0] |= bar << 4;
    }
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.writes.push((bar, offset, data.to_vec()));
    }
}
