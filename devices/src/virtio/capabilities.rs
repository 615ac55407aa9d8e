//! The layout of the BAR and the PCI capabilities that tell of it (virtio 1.3, 4.1.4).
//!
//! Each area starts on a page of its own, so that no kick shares a page with anything else.

use crate::pci::{ConfigSpace, Msix, MsixPlace, SpaceError};

/// The one BAR, and its size.
pub(super) const BAR: u8 = 0;
const BAR_LEN: u32 = 0x8000;
/// Bytes between the notify registers of two queues.
pub(super) const NOTIFY_STRIDE: u64 = 4;
/// What the notify area has registers for, and the table entries.
pub(super) const MAX_QUEUES: usize = 511;
pub(super) const MAX_VECTORS: u16 = 512;

/// A vendor-specific capability (PCI Local Bus 3.0, appendix H), and its `cfg_type` (virtio 1.3, 4.1.4).
const VENDOR_SPECIFIC: u8 = 0x09;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;
/// Bytes of a capability with its id and link.
const CAP_LEN: u8 = 16;

/// What there is in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pending,
}

impl Area {
    const ALL: [Area; 6] = [
        Area::Common,
        Area::Isr,
        Area::Device,
        Area::Notify,
        Area::Table,
        Area::Pending,
    ];

    pub fn offset(self) -> u64 {
        match self {
            Area::Common => 0,
            Area::Isr => 0x1000,
            Area::Device => 0x2000,
            Area::Notify => 0x3000,
            Area::Table => 0x4000,
            Area::Pending => 0x6000,
        }
    }

    fn len(self) -> u64 {
        match self {
            Area::Table => 0x2000,
            _ => 0x1000,
        }
    }

    /// Which area an access starts in, and where in it.
    pub fn find(bar: u8, offset: u64) -> Option<(Area, u64)> {
        let areas = Area::ALL.into_iter().filter(|_| bar == BAR);
        areas
            .map(|area| (area, offset.wrapping_sub(area.offset())))
            .find(|(area, inside)| *inside < area.len())
    }
}

/// Adds BAR and capabilities. Gives where the MSI-X capability starts, and the window.
pub(super) fn add(config: &mut ConfigSpace, msix: &Msix) -> Result<(u8, CfgWindow), SpaceError> {
    config.add_bar(BAR, BAR_LEN)?;
    let place = |area: Area| MsixPlace {
        bar: BAR,
        offset: u32::try_from(area.offset()).unwrap_or(u32::MAX),
    };
    let body = msix.capability(place(Area::Table), place(Area::Pending));
    let at = config.add_capability(Msix::CAPABILITY_ID, &body)?;
    config.set_writable(at.wrapping_add(2), &Msix::CONTROL_WRITABLE.to_le_bytes());
    for (kind, area) in [
        (TYPE_COMMON, Area::Common),
        (TYPE_ISR, Area::Isr),
        (TYPE_DEVICE, Area::Device),
    ] {
        config.add_capability(VENDOR_SPECIFIC, &body_of(CAP_LEN, kind, Some(area)))?;
    }
    let mut notify = [0; 18];
    let (start, stride) = notify.split_at_mut(14);
    start.copy_from_slice(&body_of(
        CAP_LEN.wrapping_add(4),
        TYPE_NOTIFY,
        Some(Area::Notify),
    ));
    stride.copy_from_slice(&[4, 0, 0, 0]);
    config.add_capability(VENDOR_SPECIFIC, &notify)?;
    let mut pci = [0; 18];
    let (start, _) = pci.split_at_mut(14);
    start.copy_from_slice(&body_of(CAP_LEN.wrapping_add(4), TYPE_PCI, None));
    let window = config.add_capability(VENDOR_SPECIFIC, &pci)?;
    // Bar, offset and length are the driver's.
    config.set_writable(window.wrapping_add(4), &[0xff]);
    config.set_writable(window.wrapping_add(8), &[0xff; 8]);
    Ok((at, CfgWindow(window)))
}

/// What follows id and link: length, type, BAR, then offset and length of the area.
fn body_of(len: u8, kind: u8, area: Option<Area>) -> [u8; 14] {
    let (offset, size) = area.map_or((0, 0), |area| (area.offset(), area.len()));
    let [o0, o1, o2, o3, ..] = offset.to_le_bytes();
    let [l0, l1, l2, l3, ..] = size.to_le_bytes();
    [len, kind, BAR, 0, 0, 0, o0, o1, o2, o3, l0, l1, l2, l3]
}

/// The capability through which the BAR is reached without decoding it (virtio 1.3, 4.1.4.9).
#[derive(Clone, Copy, Debug)]
pub(super) struct CfgWindow(u8);

impl CfgWindow {
    /// Where an access of `len` bytes to the register of the window goes, if it is one.
    pub fn target(self, config: &ConfigSpace, register: u16, len: usize) -> Option<(u8, u64)> {
        let data = u16::from(self.0).wrapping_add(16);
        if register != data {
            return None;
        }
        let [bar, ..] = config.u32_at(self.0.wrapping_add(4)).to_le_bytes();
        let offset = config.u32_at(self.0.wrapping_add(8));
        let wanted = config.u32_at(self.0.wrapping_add(12));
        let fits = matches!(len, 1 | 2 | 4) && usize::try_from(wanted) == Ok(len);
        fits.then_some((bar, u64::from(offset)))
    }
}
