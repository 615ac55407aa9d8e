//! MCFG (PCI Firmware Specification 3.3, 4.1.2): the ECAM of segment 0, buses 0 to 255.

use super::sdt::Sdt;
use crate::map;

pub(super) fn table() -> Sdt {
    let mut mcfg = Sdt::new(*b"MCFG", 1);
    mcfg.u64(0);
    mcfg.u64(map::ECAM.start().0);
    mcfg.u16(0);
    mcfg.u8(0);
    mcfg.u8(0xff);
    mcfg.u32(0);
    mcfg
}
