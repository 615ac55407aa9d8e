use super::*;

fn write(device: &mut impl PciDevice, register: u16, value: u32) {
    device.config_write(register, &value.to_le_bytes());
}

fn read(device: &impl PciDevice, register: u8) -> u32 {
    device.config().u32_at(register)
}

#[test]
fn host_bridge_is_a_q35_and_keeps_the_ecam_base_of_ovmf() {
    let mut bridge = HostBridge::new();
    assert_eq!(read(&bridge, 0), 0x29c0_8086);
    assert_eq!(read(&bridge, 8) >> 8, 0x06_00_00);
    write(&mut bridge, 0x60, 0);
    write(&mut bridge, 0x64, 0);
    write(&mut bridge, 0x60, 0xe000_0001);
    assert_eq!(read(&bridge, 0x60), 0xe000_0001);
    assert_eq!(read(&bridge, 0x64), 0);
}

#[test]
fn lpc_bridge_has_its_power_management_base_fixed() {
    let mut bridge = LpcBridge::new(0x600);
    assert_eq!(read(&bridge, 0), 0x2918_8086);
    assert_eq!(read(&bridge, 8) >> 8, 0x06_01_00);
    for value in [0, 0xb001, 0xffff_ffff] {
        write(&mut bridge, 0x40, value);
        assert_eq!(read(&bridge, 0x40), 0x601);
    }
}

#[test]
fn lpc_bridge_keeps_what_ovmf_writes() {
    let mut bridge = LpcBridge::new(0x600);
    for (register, written, read_back) in [
        (0x44, 0x80, 0x80),
        (0x60, 0x0b0b_0a0a, 0x0b0b_0a0a),
        (0x68, 0x0b0b_0a0a, 0x0b0b_0a0a),
        (0xf0, 0xfed1_c001, 0xfed1_c001),
    ] {
        write(&mut bridge, u16::from(register), written);
        assert_eq!(read(&bridge, register), read_back);
    }
}

#[test]
fn bridges_have_neither_bars_nor_capabilities() {
    let (host, lpc) = (HostBridge::new(), LpcBridge::new(0x600));
    for bridge in [host.config(), lpc.config()] {
        assert_eq!(bridge.bar_sizes().count(), 0);
        assert_eq!(bridge.u16_at(0x06), 0);
        assert_eq!(bridge.u16_at(0x34), 0);
    }
}
