use std::io;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Remembers what it was told; refuses pin 23.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<(u32, Option<Msi>)>>);

impl MsiRouter for Recorder {
    fn route(&self, pin: u32, to: Option<Msi>) -> io::Result<()> {
        self.0.lock().unwrap().push((pin, to));
        if pin == 23 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }
}

fn ioapic() -> (IoApic, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let router: Arc<dyn MsiRouter> = Arc::clone(&recorder) as _;
    (IoApic::new(router), recorder)
}

fn told(recorder: &Recorder) -> Vec<(u32, Option<Msi>)> {
    std::mem::take(&mut recorder.0.lock().unwrap())
}

fn write(ioapic: &mut IoApic, register: u8, value: u32) {
    let select = u32::from(register).to_le_bytes();
    ioapic.write(SELECT, &select).unwrap();
    ioapic.write(WINDOW, &value.to_le_bytes()).unwrap();
}

fn read(ioapic: &mut IoApic, register: u8) -> u32 {
    let select = u32::from(register).to_le_bytes();
    ioapic.write(SELECT, &select).unwrap();
    let mut data = [0; 4];
    ioapic.read(WINDOW, &mut data).unwrap();
    u32::from_le_bytes(data)
}

fn msi(address: u64, data: u32) -> Option<Msi> {
    Some(Msi { address, data })
}

#[test]
fn version_tells_24_entries_and_id_is_kept() {
    let (mut ioapic, _) = ioapic();
    assert_eq!(read(&mut ioapic, VERSION_REGISTER), 0x0017_0020);
    assert_eq!(read(&mut ioapic, ID), 0);
    write(&mut ioapic, ID, 0xff00_0000);
    assert_eq!(read(&mut ioapic, ID), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, ARBITRATION), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 0x40), 0, "behind the table");
    assert_eq!(read(&mut ioapic, 0xff), 0);
}

#[test]
fn pins_are_masked_and_unrouted_after_reset() {
    let (mut ioapic, recorder) = ioapic();
    for pin in 0..24 {
        assert_eq!(read(&mut ioapic, 0x10 + 2 * pin), 0x0001_0000);
        assert_eq!(read(&mut ioapic, 0x11 + 2 * pin), 0);
    }
    assert!(told(&recorder).is_empty());
}

#[test]
fn entry_set_as_linux_does_is_routed_once_when_unmasked_and_unrouted_when_masked() {
    let (mut ioapic, recorder) = ioapic();
    write(&mut ioapic, 0x19, 0x0300_0000);
    assert!(told(&recorder).is_empty(), "still masked");
    write(&mut ioapic, 0x18, 0x0000_0031);
    let to = msi(0xfee0_3000, 0x31);
    assert_eq!(told(&recorder), [(4, to)]);
    write(&mut ioapic, 0x18, 0x0000_0031);
    assert!(told(&recorder).is_empty(), "nothing new");
    write(&mut ioapic, 0x18, 0x0001_0031);
    assert_eq!(told(&recorder), [(4, None)]);
    assert_eq!(read(&mut ioapic, 0x18), 0x0001_0031);
    assert_eq!(read(&mut ioapic, 0x19), 0x0300_0000);
}

#[test]
fn message_carries_destination_mode_and_delivery_mode() {
    // Logical, lowest priority, to 0xff.
    let entry = 0xff00_0000_0000_0000 | 1 << 11 | 1 << 8 | 0x42;
    assert_eq!(message(entry), Ok(msi(0xfeef_f004, 0x142)));
    // NMI and INIT.
    assert_eq!(message(4 << 8), Ok(msi(0xfee0_0000, 0x400)));
    assert_eq!(message(5 << 8), Ok(msi(0xfee0_0000, 0x500)));
    // Active low is of no concern to an edge from an irqfd.
    assert_eq!(message(1 << 13 | 0x42), Ok(msi(0xfee0_0000, 0x42)));
}

#[test]
fn message_carries_the_extended_destination_in_address_bits_5_to_11() {
    // APIC id 0x7f12: 0x7f in bits 49 to 55, 0x12 above.
    let entry = 0x12 << 56 | 0x7f << 49 | 0x42;
    assert_eq!(message(entry), Ok(msi(0xfee1_2fe0, 0x42)));
    // Bit 48 is no part of it.
    assert_eq!(message(1 << 48 | 0x42), Ok(msi(0xfee0_0000, 0x42)));
}

#[test]
fn message_of_a_masked_or_extint_entry_goes_nowhere() {
    assert_eq!(message(MASKED | LEVEL | 2 << 8), Ok(None));
    assert_eq!(message(7 << 8), Ok(None));
}

#[test]
fn level_triggered_smi_and_reserved_entries_stay_masked() {
    let (mut ioapic, recorder) = ioapic();
    for low in [0x8031, 0x231, 0x331, 0x631] {
        write(&mut ioapic, 0x20, low);
        assert_eq!(read(&mut ioapic, 0x20), low | 0x1_0000);
    }
    assert!(told(&recorder).is_empty());
    // Level and masked is how Linux leaves a pin that it only looked at.
    write(&mut ioapic, 0x20, 0x0001_8031);
    assert_eq!(read(&mut ioapic, 0x20), 0x0001_8031);
}

#[test]
fn routed_pin_turned_level_is_unrouted() {
    let (mut ioapic, recorder) = ioapic();
    write(&mut ioapic, 0x20, 0x31);
    write(&mut ioapic, 0x20, 0x8031);
    assert_eq!(told(&recorder), [(8, msi(0xfee0_0000, 0x31)), (8, None)]);
}

#[test]
fn route_that_the_host_refused_is_tried_again() {
    let (mut ioapic, recorder) = ioapic();
    write(&mut ioapic, 0x3e, 0x31);
    write(&mut ioapic, 0x3e, 0x31);
    let to = (23, msi(0xfee0_0000, 0x31));
    assert_eq!(told(&recorder), [to, to]);
}

#[test]
fn status_bits_cannot_be_written() {
    let (mut ioapic, _) = ioapic();
    // Delivery status and remote IRR.
    write(&mut ioapic, 0x10, 0xffff_7fff & !0x600 | 0x1_0000);
    assert_eq!(read(&mut ioapic, 0x10) & (1 << 12 | 1 << 14), 0);
}

#[test]
fn access_that_is_no_dword_or_no_register_is_refused() {
    let (mut ioapic, _) = ioapic();
    assert_eq!(ioapic.read(0, &mut [0; 8]), Err(AccessError::Size(8)));
    assert_eq!(ioapic.write(0x10, &[0]), Err(AccessError::Size(1)));
    assert_eq!(ioapic.read(4, &mut [0; 4]), Err(AccessError::NoRegister(4)));
    assert_eq!(
        ioapic.write(0x20, &[0; 4]),
        Err(AccessError::NoRegister(0x20))
    );
    ioapic.write(EOI, &[0x31, 0, 0, 0]).unwrap();
}

proptest! {
    #[test]
    fn pin_is_routed_only_by_edge_entries_that_read_back_unmasked(
        writes in proptest::collection::vec((0x10_u8..0x40, any::<u32>()), 1..60),
    ) {
        let (mut ioapic, recorder) = ioapic();
        for (register, value) in writes {
            write(&mut ioapic, register, value);
        }
        let mut now = [None; 24];
        for (pin, to) in told(&recorder) {
            now[pin as usize] = to;
        }
        for (pin, to) in (0..23).zip(now) {
            let low = read(&mut ioapic, 0x10 + 2 * pin);
            if let Some(Msi { address, data }) = to {
                prop_assert_eq!(low & 0x1_8000, 0);
                prop_assert_eq!(address & !0xf_fff4, MSI_BASE & !0xf_fff4);
                prop_assert_eq!(data, low & 0x7ff);
            } else {
                prop_assert!(low & 0x1_0000 != 0 || low & 0x700 == 0x700);
            }
        }
    }
}
