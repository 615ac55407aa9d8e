use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::pci::fake::Fake;
use crate::pci::{HostBridge, LpcBridge, SharedFunction};
use crate::power::recorder::Recorder;

const WINDOW: u64 = 0x8000_0000;

struct Machine {
    root: Arc<PciRoot>,
    ports: ConfigMechanism1,
    ecam: Ecam,
    window: MmioWindow,
    power: Arc<Recorder>,
    function: Arc<Mutex<Fake>>,
}

fn machine() -> Machine {
    let mut root = PciRoot::new();
    let host: SharedFunction = Arc::new(Mutex::new(HostBridge::new()));
    root.insert(HostBridge::SLOT, host).unwrap();
    let lpc: SharedFunction = Arc::new(Mutex::new(LpcBridge::new(0x600)));
    root.insert(LpcBridge::SLOT, lpc).unwrap();
    let function = Fake::new(0x1042, &[(1, 0x1000)]);
    root.insert(3, Arc::clone(&function) as SharedFunction)
        .unwrap();
    root.assign_bars(WINDOW, 0x10_0000).unwrap();
    let root = Arc::new(root);
    let power = Arc::new(Recorder::default());
    let reset = ResetControl::new(Arc::clone(&power) as _);
    Machine {
        ports: ConfigMechanism1::new(Arc::clone(&root), reset),
        ecam: Ecam::new(Arc::clone(&root)),
        window: MmioWindow::new(Arc::clone(&root), WINDOW),
        root,
        power,
        function,
    }
}

fn read<const N: usize>(device: &mut impl BusDevice, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    device.read(offset, &mut data).unwrap();
    data
}

fn select(machine: &mut Machine, address: u32) {
    machine.ports.write(0, &address.to_le_bytes()).unwrap();
}

#[test]
fn ports_reach_registers_byte_by_byte() {
    let mut machine = machine();
    select(&mut machine, 0x8000_0000);
    assert_eq!(read(&mut machine.ports, 6), 0x29c0_u16.to_le_bytes());
    select(&mut machine, 0x8000_f800);
    assert_eq!(read(&mut machine.ports, 4), 0x2918_8086_u32.to_le_bytes());
    select(&mut machine, 0x8000_1800 | 0x3c);
    machine.ports.write(4, &[0x0a]).unwrap();
    assert_eq!(read(&mut machine.ports, 4), [0x0a]);
    assert_eq!(read(&mut machine.ports, 7), [0]);
    assert_eq!(read(&mut machine.ports, 0), 0x8000_183c_u32.to_le_bytes());
}

#[test]
fn ports_read_all_ones_when_disabled_or_where_nothing_is() {
    let mut machine = machine();
    // Disabled, an empty slot, function 1, bus 1.
    for address in [0, 0x8000_0800, 0x8000_0100, 0x8001_0000] {
        select(&mut machine, address);
        machine.ports.write(4, &[0; 4]).unwrap();
        assert_eq!(read(&mut machine.ports, 4), [0xff; 4], "{address:#x}");
    }
}

#[test]
fn byte_at_0xcf9_is_reset_control_and_a_dword_is_not() {
    let mut machine = machine();
    select(&mut machine, 0x8000_0600);
    assert!(machine.power.take().is_empty());
    machine.ports.write(1, &[0x02]).unwrap();
    assert_eq!(read(&mut machine.ports, 1), [0x02]);
    assert_eq!(read(&mut machine.ports, 0), 0x8000_0600_u32.to_le_bytes());
    machine.ports.write(1, &[0x06]).unwrap();
    assert_eq!(machine.power.take().len(), 1);
}

#[test]
fn ecam_reaches_the_same_registers() {
    let mut machine = machine();
    assert_eq!(read(&mut machine.ecam, 0), 0x29c0_8086_u32.to_le_bytes());
    assert_eq!(read(&mut machine.ecam, 0x1f << 15), [0x86]);
    machine.ecam.write(3 << 15 | 0x3c, &[0x0b]).unwrap();
    select(&mut machine, 0x8000_1800 | 0x3c);
    assert_eq!(read(&mut machine.ports, 4), [0x0b]);
    // Extended space, function 1, an empty slot, bus 1, bus 255.
    let nothing = [0x100, 0x1000, 1 << 15, 1 << 20, 0xfff_f000, !7];
    for offset in nothing {
        assert_eq!(read(&mut machine.ecam, offset), [0xff; 4], "{offset:#x}");
        machine.ecam.write(offset, &[0; 4]).unwrap();
    }
}

#[test]
fn config_access_across_a_dword_is_refused() {
    let mut machine = machine();
    let (unaligned, size) = (AccessError::Unaligned(1), AccessError::Size(8));
    assert_eq!(machine.ecam.read(1, &mut [0; 2]), Err(unaligned));
    assert_eq!(machine.ecam.read(0, &mut [0; 8]), Err(size));
    assert_eq!(machine.ecam.write(0, &[0; 8]), Err(size));
    assert_eq!(machine.ports.write(5, &[0; 4]), Err(unaligned));
    assert_eq!(
        machine.ports.read(0, &mut [0; 2]),
        Err(AccessError::Size(2))
    );
}

#[test]
fn window_reaches_bars_and_nothing_else() {
    let mut machine = machine();
    machine.window.write(0x10, &[1, 2, 3, 4]).unwrap();
    let writes = machine.function.lock().unwrap().writes.clone();
    assert_eq!(writes, [(1, 0x10, vec![1, 2, 3, 4])]);
    assert_eq!(read(&mut machine.window, 0x20), [0x30, 0, 0, 0]);
    let none = AccessError::NoRegister(0x1000);
    assert_eq!(machine.window.read(0x1000, &mut [0]), Err(none));
    let none = AccessError::NoRegister(u64::MAX);
    assert_eq!(machine.window.write(u64::MAX, &[0]), Err(none));
    machine
        .root
        .config_write(3, 0x14, &0x8008_0000_u32.to_le_bytes());
    assert_eq!(read(&mut machine.window, 0x8_0020), [0x30]);
}

#[test]
fn sizing_by_ports_gives_the_size_and_moves_the_bar_meanwhile() {
    let mut machine = machine();
    select(&mut machine, 0x8000_1814);
    machine.ports.write(4, &[0xff; 4]).unwrap();
    assert_eq!(read(&mut machine.ports, 4), 0xffff_f000_u32.to_le_bytes());
    assert!(machine.window.read(0, &mut [0]).is_err());
    machine
        .ports
        .write(4, &0x8000_0000_u32.to_le_bytes())
        .unwrap();
    assert!(machine.window.read(0, &mut [0]).is_ok());
}

proptest! {
    /// Whatever a guest writes where, identity and fixed registers stay, and no write lands outside
    /// of a BAR.
    #[test]
    fn any_config_writes_leave_identities_and_pmbase(
        writes in proptest::collection::vec((0_u64..1 << 20, any::<u32>(), 0_usize..3), 0..200),
    ) {
        let mut machine = machine();
        for (offset, value, width) in writes {
            let _ = machine.ecam.write(offset & 0xf_80ff, &value.to_le_bytes()[..1 << width]);
            let mut data = [0; 8];
            let _ = machine.window.read(offset, &mut data);
            let _ = machine.window.write(offset, &data[..1 << width]);
        }
        prop_assert_eq!(read(&mut machine.ecam, 0), 0x29c0_8086_u32.to_le_bytes());
        prop_assert_eq!(read(&mut machine.ecam, 0x1f << 15 | 0x40), [0x01, 0x06, 0, 0]);
        prop_assert_eq!(read(&mut machine.ecam, 3 << 15), 0x1042_1af4_u32.to_le_bytes());
        let fake = machine.function.lock().unwrap();
        let inside = |(bar, offset, data): &(u8, u64, Vec<u8>)| {
            *bar == 1 && offset + data.len() as u64 <= 0x1000
        };
        prop_assert!(fake.writes.iter().all(inside));
    }
}
