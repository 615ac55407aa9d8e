//! The common configuration structure (virtio 1.3, 4.1.4.3) as values: what the driver reads, and what
//! a write asks the transport to do. Pure but for the vectors, which live in the interrupt.
//!
//! Reads of any size at any offset see the bytes of the structure. A write counts only if it is one
//! whole field, or one half of a 64-bit field; any other is dropped.

use super::ring::RingAddresses;

/// Bytes of the structure up to and with `queue_device`.
pub(super) const LEN: usize = 0x38;

/// Fields by offset.
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// A queue as the driver sets it up.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    pub max_size: u16,
    pub size: u16,
    pub enabled: bool,
    pub addresses: RingAddresses,
}

/// What the driver has written. The status is the transport's.
#[derive(Debug)]
pub(super) struct CommonRegisters {
    offered: u64,
    pub accepted: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    pub queues: Box<[QueueRegisters]>,
}

/// What is not kept here but shown among the registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub status: u8,
    pub generation: u8,
    pub config_vector: u16,
    pub queue_vector: u16,
}

/// How far set-up has come; it decides what may still be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before FEATURES_OK.
    Features,
    /// Between FEATURES_OK and DRIVER_OK.
    Queues,
    /// From DRIVER_OK on.
    Running,
}

/// What a write asks for beyond being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Nothing,
    Status(u8),
    ConfigVector(u16),
    /// Of this queue.
    QueueVector(u16, u16),
}

impl CommonRegisters {
    pub fn new(offered: u64, max_sizes: &[u16]) -> Self {
        let queues = max_sizes.iter().map(|size| QueueRegisters {
            max_size: *size,
            size: *size,
            enabled: false,
            addresses: RingAddresses::default(),
        });
        CommonRegisters {
            offered,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues: queues.collect(),
        }
    }

    pub fn offered(&self) -> u64 {
        self.offered
    }

    pub fn queue_select(&self) -> u16 {
        self.queue_select
    }

    pub fn reset(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes);
    }

    fn selected(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The structure as bytes.
    pub fn bytes(&self, shown: Shown) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: u64, field: &[u8]| {
            let start = usize::try_from(at).unwrap_or(LEN);
            for (to, from) in bytes.iter_mut().skip(start).zip(field) {
                *to = *from;
            }
        };
        put(DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(
            DRIVER_FEATURE,
            &half(self.accepted, self.driver_select).to_le_bytes(),
        );
        put(CONFIG_VECTOR, &shown.config_vector.to_le_bytes());
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(0x12, &count.to_le_bytes());
        put(DEVICE_STATUS, &[shown.status, shown.generation]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (virtio 1.3, 4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            put(QUEUE_VECTOR, &shown.queue_vector.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(QUEUE_DESC, &queue.addresses.desc.to_le_bytes());
            put(QUEUE_DRIVER, &queue.addresses.avail.to_le_bytes());
            put(QUEUE_DEVICE, &queue.addresses.used.to_le_bytes());
        }
        bytes
    }

    /// Takes a write of the driver.
    pub fn write(&mut self, offset: u64, data: &[u8], phase: Phase) -> Ask {
        match *data {
            [value] if offset == DEVICE_STATUS => return Ask::Status(value),
            [a, b] => return self.write_word(offset, u16::from_le_bytes([a, b]), phase),
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([a, b, c, d]), phase),
            [a, b, c, d, e, f, g, h] => {
                let (low, high) = ([a, b, c, d], [e, f, g, h]);
                if matches!(offset, QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE) {
                    self.write_dword(offset, u32::from_le_bytes(low), phase);
                    self.write_dword(offset.wrapping_add(4), u32::from_le_bytes(high), phase);
                }
            }
            _ => {}
        }
        Ask::Nothing
    }

    fn write_word(&mut self, offset: u64, value: u16, phase: Phase) -> Ask {
        let index = self.queue_select;
        match offset {
            CONFIG_VECTOR => return Ask::ConfigVector(value),
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_VECTOR if self.selected().is_some() => return Ask::QueueVector(index, value),
            QUEUE_SIZE | QUEUE_ENABLE if phase == Phase::Queues => {
                let Some(queue) = self.selected().filter(|queue| !queue.enabled) else {
                    return Ask::Nothing;
                };
                // Only 1 enables; nothing but a reset disables (virtio 1.3, 4.1.4.3.2).
                if offset == QUEUE_ENABLE {
                    queue.enabled = value == 1;
                } else if value.is_power_of_two() && value <= queue.max_size {
                    queue.size = value;
                }
            }
            _ => {}
        }
        Ask::Nothing
    }

    fn write_dword(&mut self, offset: u64, value: u32, phase: Phase) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_select = value,
            DRIVER_FEATURE_SELECT => self.driver_select = value,
            DRIVER_FEATURE if phase == Phase::Features => match self.driver_select {
                0 => set_low(&mut self.accepted, value),
                1 => set_high(&mut self.accepted, value),
                _ => {}
            },
            QUEUE_DESC..LEN_END if phase == Phase::Queues => {
                let Some(queue) = self.selected().filter(|queue| !queue.enabled) else {
                    return;
                };
                let at = &mut queue.addresses;
                match offset.wrapping_sub(QUEUE_DESC) {
                    0x00 => set_low(&mut at.desc, value),
                    0x04 => set_high(&mut at.desc, value),
                    0x08 => set_low(&mut at.avail, value),
                    0x0c => set_high(&mut at.avail, value),
                    0x10 => set_low(&mut at.used, value),
                    0x14 => set_high(&mut at.used, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

const LEN_END: u64 = 0x38;

/// The 32 bits of a feature set that `select` chooses.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_low(field: &mut u64, value: u32) {
    *field = *field & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = *field & u64::from(u32::MAX) | u64::from(value) << 32;
}
