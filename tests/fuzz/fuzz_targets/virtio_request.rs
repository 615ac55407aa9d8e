//! The parts of a disk request: whatever is taken lies on the disk and is allowed there.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tdvmm_devices::virtio::block::{Limits, Parts, Request, SECTOR, parse};

#[derive(arbitrary::Arbitrary, Debug)]
struct Recipe {
    kind: u8,
    sector: u64,
    near: bool,
    segment: [u8; 16],
    given: u32,
    wanted: u32,
    whole: bool,
    sectors: u32,
    read_only: bool,
}

fuzz_target!(|recipe: Recipe| {
    let near = |sector: u64| if recipe.near { sector % 0x2000 } else { sector };
    let whole = |len: u32| if recipe.whole { len & !0x1ff } else { len };
    let mut header = [0; 16];
    header[0] = recipe.kind % 16;
    header[8..].copy_from_slice(&near(recipe.sector).to_le_bytes());
    let mut segment = recipe.segment;
    if recipe.near {
        segment[2..8].fill(0);
        segment[10..12].fill(0);
    }
    let disk = Limits {
        size: u64::from(recipe.sectors % 0x2000) * SECTOR,
        read_only: recipe.read_only,
        discard: !recipe.read_only,
    };
    let parts = Parts {
        header,
        segment,
        given: if recipe.near && recipe.kind & 0xf > 8 {
            16
        } else {
            whole(recipe.given)
        },
        wanted: whole(recipe.wanted),
    };
    let Ok(request) = parse(&parts, &disk) else {
        return;
    };
    let (offset, len, writes) = match request {
        Request::Read { offset, len } => (offset, u64::from(len), false),
        Request::Write { offset, len } => (offset, u64::from(len), true),
        Request::Discard { offset, len } | Request::WriteZeroes { offset, len, .. } => {
            (offset, len, true)
        }
        Request::Flush | Request::GetId => return,
    };
    assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= disk.size));
    assert!(!(writes && disk.read_only));
});
