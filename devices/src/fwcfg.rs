//! fw_cfg: named bytes for the firmware, by port and by DMA (QEMU's docs/specs/fw_cfg.rst).
//!
//! ```text
//! offset 0  selector (2 bytes, write)       4  DMA address, upper half (4 bytes, big endian)
//! offset 1  data (1 byte, read)             8  lower half: writing it starts the transfer
//! ```
//!
//! All contents are fixed when the device is built; there is nothing that a guest can write. Reading
//! past the end of an item, or an item that is not there, gives zeros. A DMA descriptor is copied from
//! guest memory once, and both it and the buffer must lie in shared pages.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::bus::{AccessError, BusDevice};
use crate::dma::DmaView;
use crate::guest_warn;

/// Contents of an item: a `Vec<u8>`, a static slice, or the mapping of a file.
pub type Blob = Arc<dyn AsRef<[u8]> + Send + Sync>;

// Offsets.
const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;

// Items that the device itself makes.
const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// Asks for an item to be written; ignored, as nothing can be.
const WRITE_CHANNEL: u16 = 0x4000;
/// Bytes of a name in the directory, with a NUL.
const NAME: usize = 56;

/// Ports work, and DMA works.
const FEATURES: [u8; 4] = [3, 0, 0, 0];
/// What the DMA address register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

// Bits of a DMA descriptor's control word; the upper half is the item.
const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;
/// Bytes of a DMA descriptor: control, length, address.
const DESCRIPTOR: usize = 16;
/// The most zeros that one transfer adds past the end of an item, so that it takes bounded time.
const ZEROS_MAX: usize = 1 << 20;

/// The contents cannot be offered like this.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FwCfgError {
    /// The directory has 55 bytes for a name.
    #[error("fw_cfg file name {0:?} is empty or longer than 55 bytes")]
    Name(String),
    /// Two files of one name.
    #[error("fw_cfg file {0:?} is there twice")]
    DuplicateFile(String),
    /// Two items of one key, or one that the device makes itself.
    #[error("fw_cfg item {0:#x} is there twice")]
    DuplicateItem(u16),
    /// The directory has 32 bits for a size.
    #[error("fw_cfg item {0:?} is larger than 4 GiB")]
    Size(String),
    /// Files take the keys 0x20 to 0x3fff.
    #[error("{0} fw_cfg files are too many")]
    Files(usize),
}

/// See the module's text. Goes on 12 ports.
pub struct FwCfg {
    items: BTreeMap<u16, Blob>,
    memory: DmaView,
    selected: u16,
    /// How much of the selected item has been read; may be past its end.
    position: usize,
    dma_high: u32,
}

impl FwCfg {
    /// Ports that it answers.
    pub const PORTS: u64 = 12;

    /// Offers `items` by their keys and `files` by their names, with the keys from 0x20 on in the
    /// order of the names. Signature, id and directory need not be among them.
    ///
    /// # Errors
    ///
    /// [`FwCfgError`].
    pub fn build(
        items: Vec<(u16, Blob)>,
        mut files: Vec<(String, Blob)>,
        memory: DmaView,
    ) -> Result<Self, FwCfgError> {
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        let directory = directory(&files)?;
        let own: [(u16, Blob); 3] = [
            (SIGNATURE, Arc::new(*b"QEMU")),
            (ID, Arc::new(FEATURES)),
            (DIRECTORY, Arc::new(directory)),
        ];
        let files = (FIRST_FILE..).zip(files.into_iter().map(|(_, blob)| blob));
        let mut all = BTreeMap::new();
        for (key, blob) in own.into_iter().chain(files).chain(items) {
            if all.insert(key, blob).is_some() {
                return Err(FwCfgError::DuplicateItem(key));
            }
        }
        Ok(Self {
            items: all,
            memory,
            selected: SIGNATURE,
            position: 0,
            dma_high: 0,
        })
    }

    fn select(&mut self, key: u16) {
        self.selected = key & !WRITE_CHANNEL;
        self.position = 0;
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.selected);
        let bytes = item.map_or(&[][..], |blob| blob.as_ref().as_ref());
        bytes.get(self.position..).unwrap_or_default()
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or_default();
        self.position = self.position.saturating_add(1);
        byte
    }

    /// One transfer: the descriptor is read once, and its control word is written when all is done.
    fn transfer(&mut self, descriptor_at: u64) {
        let at = GuestAddress(descriptor_at);
        let mut descriptor = [0; DESCRIPTOR];
        let before = self.memory.generation();
        if let Err(error) = self.memory.read_slice(&mut descriptor, at) {
            guest_warn!("fw_cfg: no DMA descriptor at {descriptor_at:#x}: {error}");
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = descriptor;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let address = u64::from_be_bytes(address);
        if control & DMA_SELECT != 0 {
            self.select(u16::from_be_bytes([c0, c1]));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let done = if control & DMA_READ != 0 {
            self.dma_read(address, length)
        } else if control & DMA_WRITE != 0 {
            Err("it cannot be written")
        } else {
            if control & DMA_SKIP != 0 {
                self.position = self.position.saturating_add(length);
            }
            Ok(())
        };
        let result = done.map_or_else(
            |why| {
                let item = self.selected;
                guest_warn!("fw_cfg: item {item:#x}, {length} bytes at {address:#x}: {why}");
                DMA_ERROR
            },
            |()| 0,
        );
        if let Err(error) = self.memory.write_slice(&result.to_be_bytes(), at) {
            guest_warn!("fw_cfg: no DMA descriptor any more at {descriptor_at:#x}: {error}");
        }
        self.give_back(before, descriptor_at, DESCRIPTOR);
    }

    /// Reads into guest memory.
    fn dma_read(&mut self, address: u64, length: usize) -> Result<(), &'static str> {
        let before = self.memory.generation();
        let done = self.copy_to(address, length);
        self.give_back(before, address, length);
        done
    }

    /// Gives back pages that the guest made private while they were being written, so that they are not held twice;
    /// `before` is the generation from before that.
    fn give_back(&self, before: u64, address: u64, length: usize) {
        let end = u64::try_from(length)
            .ok()
            .and_then(|length| address.checked_add(length));
        if let Some(end) = end.filter(|_| self.memory.generation() != before) {
            self.memory.discard_private(address..end);
        }
    }

    fn copy_to(&mut self, address: u64, length: usize) -> Result<(), &'static str> {
        static ZEROS: [u8; 4096] = [0; 4096];
        let rest = self.rest();
        let part = rest.get(..length).unwrap_or(rest);
        let zeros = length.saturating_sub(part.len());
        if zeros > ZEROS_MAX {
            return Err("too far past its end");
        }
        let at = GuestAddress(address);
        // Nothing is written unless all can be.
        if !self.memory.check_range(at, length, Permissions::Write) {
            return Err("no shared memory there");
        }
        let refused = |_| "no shared memory there any more";
        self.memory.write_slice(part, at).map_err(refused)?;
        let mut written = part.len();
        while let Some(left) = length.checked_sub(written).filter(|left| *left != 0) {
            let chunk = ZEROS.get(..left).unwrap_or(&ZEROS);
            let at = address.checked_add(u64::try_from(written).unwrap_or(u64::MAX));
            let at = at.ok_or("the address wraps")?;
            self.memory
                .write_slice(chunk, GuestAddress(at))
                .map_err(refused)?;
            written = written.saturating_add(chunk.len());
        }
        self.position = self.position.saturating_add(length);
        Ok(())
    }
}

impl BusDevice for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let len = data.len();
        match (offset, data) {
            (DATA, [value]) => *value = self.next_byte(),
            (DMA_HIGH, data @ ([_, _, _, _] | [_, _, _, _, _, _, _, _])) => {
                data.iter_mut()
                    .zip(DMA_SIGNATURE)
                    .for_each(|(to, from)| *to = from);
            }
            (DMA_LOW, data @ [_, _, _, _]) => {
                let low = DMA_SIGNATURE.into_iter().skip(4);
                data.iter_mut().zip(low).for_each(|(to, from)| *to = from);
            }
            (SELECTOR | DATA | DMA_HIGH | DMA_LOW, _) => return Err(AccessError::Size(len)),
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (SELECTOR, &[a, b]) => self.select(u16::from_le_bytes([a, b])),
            // Writing items went out of use before DMA came; ignored as QEMU does.
            (DATA, &[_]) => {}
            (DMA_HIGH, &[a, b, c, d]) => self.dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let low = u32::from_be_bytes([a, b, c, d]);
                let high = std::mem::take(&mut self.dma_high);
                self.transfer(u64::from(high) << 32 | u64::from(low));
            }
            (DMA_HIGH, &[a, b, c, d, e, f, g, h]) => {
                self.dma_high = 0;
                self.transfer(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
            }
            (SELECTOR | DATA | DMA_HIGH | DMA_LOW, _) => return Err(AccessError::Size(data.len())),
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }
}

impl fmt::Debug for FwCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = self.items.iter();
        let sizes = sizes.map(|(key, blob)| (key, blob.as_ref().as_ref().len()));
        f.debug_map().entries(sizes).finish()
    }
}

/// The directory item: a count, then size, key and name of each file, big endian.
fn directory(files: &[(String, Blob)]) -> Result<Vec<u8>, FwCfgError> {
    let too_many = FwCfgError::Files(files.len());
    let count = u16::try_from(files.len()).map_err(|_| too_many.clone())?;
    if count > WRITE_CHANNEL.saturating_sub(FIRST_FILE) {
        return Err(too_many);
    }
    let mut bytes = u32::from(count).to_be_bytes().to_vec();
    let mut previous = None;
    for (key, (name, blob)) in (FIRST_FILE..).zip(files) {
        if name.is_empty() || name.len() >= NAME {
            return Err(FwCfgError::Name(name.clone()));
        }
        if previous == Some(name) {
            return Err(FwCfgError::DuplicateFile(name.clone()));
        }
        previous = Some(name);
        let size = u32::try_from(blob.as_ref().as_ref().len());
        let size = size.map_err(|_| FwCfgError::Size(name.clone()))?;
        bytes.extend(size.to_be_bytes());
        bytes.extend(key.to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(name.bytes().chain(std::iter::repeat(0)).take(NAME));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
