//! The functions of bus 0, and which of them a memory access belongs to.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::config::{Bar, ConfigSpace};

/// Slots of a bus.
const SLOTS: usize = 32;

/// A PCI function: its configuration space, and what its BARs do.
///
/// Called from any vCPU thread, one call at a time. Configuration accesses are 1, 2 or 4 bytes within
/// one dword; BAR accesses are 1 to 8 bytes within one BAR, at any offset.
pub trait PciDevice: Send {
    /// Short name for messages.
    fn name(&self) -> &str;
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;
    /// The configuration space, to place BARs in.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// A guest reads configuration registers.
    fn config_read(&mut self, register: u16, data: &mut [u8]) {
        self.config().read(register, data);
    }
    /// A guest writes configuration registers.
    fn config_write(&mut self, register: u16, data: &[u8]) {
        self.config_mut().write(register, data);
    }
    /// BARs decode elsewhere than before, or no longer, or now: `config().decoded_bars()` tells. For a
    /// function that has told others where its registers are (an ioeventfd).
    fn bars_moved(&mut self) {}
    /// A guest reads at `offset` into a BAR. `data` is all zeros.
    fn bar_read(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) {}
    /// A guest writes at `offset` into a BAR.
    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

/// A function, shared with whoever made it.
pub type SharedFunction = Arc<Mutex<dyn PciDevice>>;

/// A function cannot be in this slot: a mistake of the program, not of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SlotError {
    /// There are slots 0 to 31.
    #[error("PCI slot {0} does not exist")]
    Missing(u8),
    /// There is a function already.
    #[error("PCI slot {0} is taken")]
    Taken(u8),
    /// All slots hold a function.
    #[error("no PCI slot is free")]
    Full,
}

/// The BARs do not fit the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("BAR {bar} of PCI slot {slot} does not fit the PCI window")]
pub struct BarError {
    /// Slot of the function.
    pub slot: u8,
    /// Number of the BAR.
    pub bar: u8,
}

/// Where a BAR decodes, for looking up an access without a lock of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decoded {
    slot: u8,
    bar: Bar,
}

/// See the module's text.
#[derive(Default)]
pub struct PciRoot {
    functions: [Option<SharedFunction>; SLOTS],
    /// All BARs that decode, at most 6 a slot. Lock rank: below the functions' locks; nothing is
    /// called under it.
    decoded: Mutex<Vec<Decoded>>,
}

impl PciRoot {
    /// A bus with nothing on it, not even a host bridge.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `function` into `slot`.
    ///
    /// # Errors
    ///
    /// If there is no such slot, or it is taken.
    pub fn insert(&mut self, slot: u8, function: SharedFunction) -> Result<(), SlotError> {
        match self.functions.get_mut(usize::from(slot)) {
            None => Err(SlotError::Missing(slot)),
            Some(Some(_)) => Err(SlotError::Taken(slot)),
            Some(free) => {
                *free = Some(function);
                Ok(())
            }
        }
    }

    /// Puts `function` into the lowest free slot and tells which.
    ///
    /// # Errors
    ///
    /// [`SlotError::Full`].
    pub fn insert_next(&mut self, function: SharedFunction) -> Result<u8, SlotError> {
        let slot = (0..).zip(&self.functions).find(|(_, f)| f.is_none());
        let (slot, _) = slot.ok_or(SlotError::Full)?;
        self.insert(slot, function)?;
        Ok(slot)
    }

    /// Places every BAR in the window as firmware would, for a guest that starts without any. All
    /// functions decode memory from then on.
    ///
    /// # Errors
    ///
    /// If the window (guest-physical, below 4 GiB) is too small.
    pub fn assign_bars(&self, window_base: u64, window_len: u64) -> Result<(), BarError> {
        let mut free = window_base;
        let end = window_base.saturating_add(window_len);
        for (slot, function) in self.functions() {
            let mut function = lock(function);
            let bars: Vec<_> = function.config().bar_sizes().collect();
            for (bar, size) in bars {
                let error = BarError { slot, bar };
                let size = u64::from(size);
                let base = free.checked_next_multiple_of(size).ok_or(error)?;
                free = base.checked_add(size).filter(|f| *f <= end).ok_or(error)?;
                let base = u32::try_from(base).map_err(|_| error)?;
                function.config_mut().place_bar(bar, base);
            }
            self.update_decoded(slot, &mut *function);
        }
        Ok(())
    }

    /// Reads configuration registers; all ones where there is no function.
    pub fn config_read(&self, slot: u8, register: u16, data: &mut [u8]) {
        match self.function(slot) {
            Some(function) => lock(function).config_read(register, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration registers; a BAR that is moved decodes at its new place at once.
    pub fn config_write(&self, slot: u8, register: u16, data: &[u8]) {
        if let Some(function) = self.function(slot) {
            let mut function = lock(function);
            function.config_write(register, data);
            // BARs and their enable bit are in the header.
            if register < 0x40 {
                self.update_decoded(slot, &mut *function);
            }
        }
    }

    /// Reads from the BAR that holds all of the access; `false` if there is none.
    pub fn bar_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((function, bar, offset)) = self.find_bar(address, data.len()) else {
            return false;
        };
        data.fill(0);
        lock(function).bar_read(bar, offset, data);
        true
    }

    /// Writes to the BAR that holds all of the access; `false` if there is none.
    pub fn bar_write(&self, address: u64, data: &[u8]) -> bool {
        let Some((function, bar, offset)) = self.find_bar(address, data.len()) else {
            return false;
        };
        lock(function).bar_write(bar, offset, data);
        true
    }

    /// The functions that there are, with their slots.
    pub fn functions(&self) -> impl Iterator<Item = (u8, &SharedFunction)> {
        (0..)
            .zip(&self.functions)
            .filter_map(|(slot, function)| Some((slot, function.as_ref()?)))
    }

    fn function(&self, slot: u8) -> Option<&SharedFunction> {
        self.functions.get(usize::from(slot))?.as_ref()
    }

    /// Called with the function's lock held, so that the latest write wins.
    fn update_decoded(&self, slot: u8, function: &mut dyn PciDevice) {
        let now: Vec<_> = function
            .config()
            .decoded_bars()
            .map(|bar| Decoded { slot, bar })
            .collect();
        {
            let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
            if decoded.iter().filter(|known| known.slot == slot).eq(&now) {
                return;
            }
            decoded.retain(|known| known.slot != slot);
            decoded.extend(now);
            // Where a guest lets two BARs overlap, the lowest slot answers.
            decoded.sort_unstable_by_key(|known| (known.slot, known.bar.index));
        }
        function.bars_moved();
    }

    fn find_bar(&self, address: u64, len: usize) -> Option<(&SharedFunction, u8, u64)> {
        let len = u64::try_from(len).ok()?;
        let decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, bar, offset) = decoded.iter().find_map(|Decoded { slot, bar }| {
            let offset = address.checked_sub(bar.base)?;
            (offset.checked_add(len)? <= bar.size).then_some((*slot, bar.index, offset))
        })?;
        drop(decoded);
        Some((self.function(slot)?, bar, offset))
    }
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self
            .functions()
            .map(|(slot, function)| format!("{slot:02x}: {}", lock(function).name()));
        f.debug_list().entries(names).finish()
    }
}

/// A panic ends the process (`panic = "abort"`), so a poisoned lock is only seen in tests.
fn lock(function: &SharedFunction) -> MutexGuard<'_, dyn PciDevice + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
