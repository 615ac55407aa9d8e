//! Interrupt wires and routes: irqfds, and the one table of GSI routes that pins and MSIs share.
//!
//! GSIs 0 to 23 are the pins of the I/O APIC; those of message-signalled interrupts follow. KVM takes the
//! table only as a whole, so this object holds it and hands it over after every change.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use tdvmm_arch::map::gsi::IOAPIC_PINS;
use tdvmm_devices::irq::{IrqWire, Msi, MsiRouter};
use vmm_sys_util::eventfd::EventFd;

use super::KvmError;

/// The routes of one VM.
#[derive(Debug)]
pub struct IrqRoutes {
    vm: Arc<VmFd>,
    /// Leaf lock, held across `KVM_SET_GSI_ROUTING` so that tables reach KVM in order. That call waits
    /// for other vCPUs to leave a read-side section, never for the guest.
    table: Mutex<BTreeMap<u32, Msi>>,
}

impl IrqRoutes {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            table: Mutex::default(),
        }
    }

    /// A wire to pin `pin` of the I/O APIC.
    ///
    /// # Errors
    ///
    /// If the event file descriptor cannot be made or KVM refuses it.
    pub fn wire(&self, pin: u32) -> Result<Arc<dyn IrqWire>, KvmError> {
        debug_assert!(pin < IOAPIC_PINS, "a pin of the I/O APIC");
        Ok(Arc::new(self.irqfd(pin)?))
    }

    /// What sends the message of `gsi`.
    pub(super) fn irqfd(&self, gsi: u32) -> Result<IrqFd, KvmError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
            KvmError::Call {
                call: "eventfd",
                source,
            }
        })?;
        self.vm
            .register_irqfd(&event, gsi)
            .map_err(KvmError::call("KVM_IRQFD"))?;
        Ok(IrqFd(event))
    }

    /// From now on `gsi` sends `to`, or nothing.
    pub(super) fn set(&self, gsi: u32, to: Option<Msi>) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let before = table.get(&gsi).copied();
        if before == to {
            return Ok(());
        }
        put(&mut table, gsi, to);
        let entries: Vec<_> = table.iter().map(|(gsi, msi)| entry(*gsi, *msi)).collect();
        let applied = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENOSPC))
            .and_then(|all| self.vm.set_gsi_routing(&all).map_err(io::Error::from));
        if applied.is_err() {
            put(&mut table, gsi, before);
        }
        applied
    }
}

impl MsiRouter for IrqRoutes {
    fn route(&self, pin: u32, to: Option<Msi>) -> io::Result<()> {
        self.set(pin, to)
    }
}

fn put(table: &mut BTreeMap<u32, Msi>, gsi: u32, to: Option<Msi>) {
    match to {
        Some(msi) => table.insert(gsi, msi),
        None => table.remove(&gsi),
    };
}

/// The entry for one message.
///
/// A message names a destination of 8 bits, or of 15 where its address bits 11:5 hold bits 14:8 (the
/// extended destination of the KVM paravirtual interface). With `KVM_X2APIC_API_USE_32BIT_IDS` KVM takes
/// all bits above the low 8 from bits 31:8 of the upper half of the address.
fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    const EXTENDED: u32 = 0x7f << 5;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "destinations come from the lower half; a guest may set the upper one, for nothing"
    )]
    let low = msi.address as u32;
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_bindings::kvm_irq_routing_msi {
        address_lo: low & !EXTENDED,
        address_hi: ((low & EXTENDED) >> 5) << 8,
        data: msi.data,
        ..Default::default()
    };
    entry
}

/// A wire that ends in KVM.
#[derive(Debug)]
pub(super) struct IrqFd(EventFd);

impl IrqWire for IrqFd {
    fn pulse(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full: edges that the guest has not taken yet merge.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_destination_moves_to_the_upper_address() {
        // Destination 0x1234: low 8 bits in bits 19:12, bits 14:8 in bits 11:5.
        let msi = Msi {
            address: 0xfee0_0000 | (0x34 << 12) | (0x12 << 5),
            data: 0x4041,
        };
        let entry = entry(7, msi);
        assert_eq!(entry.gsi, 7);
        assert_eq!(kvm_msi(&entry), (0xfee3_4000, 0x1200, 0x4041));
    }

    #[expect(unsafe_code, reason = "the bindings have a union here")]
    fn kvm_msi(entry: &kvm_irq_routing_entry) -> (u32, u32, u32) {
        // SAFETY: `entry` filled this member, and every bit pattern of it is valid.
        let msi = unsafe { entry.u.msi };
        (msi.address_lo, msi.address_hi, msi.data)
    }
}
