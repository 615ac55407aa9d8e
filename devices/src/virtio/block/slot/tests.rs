//! Where the calls of a long request end.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::dma::DmaView;
use crate::virtio::segment::GuestMap;

/// Start and length of parts of memory, those joined that go on where the one before ends.
fn joined(parts: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    for (start, len) in parts {
        match all.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += len,
            _ => all.push((start, len)),
        }
    }
    all
}

/// Lengths of the calls in which all of these parts, (address, length), is written, where each call does `share`
/// of what it was asked for.
fn calls(parts: &[(u64, u32)], share: impl Fn(usize) -> usize) -> Vec<usize> {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let view = DmaView::all_shared(Arc::new(ram));
    let map = GuestMap::new(&view);
    let segment = |at, len| map.region(0).segment(at, len).unwrap();
    let host = |at| segment(at, 1).host().addr();
    let header = [segment(0, 16)].into_iter();
    let segments: Vec<_> = header
        .chain(parts.iter().map(|(at, len)| segment(*at, *len)))
        .collect();
    let mut slot = Slot::new(Chain::new(&view));
    slot.left = parts.iter().map(|(_, len)| len).sum();
    fill(&mut slot.pieces, &segments, 16, slot.left);
    let (mut lens, mut done) = (Vec::new(), Vec::new());
    while slot.left > 0 {
        let asked = slot.open_pieces().iter().map(|piece| piece.len).sum();
        let mut more = share(asked);
        slot.open_pieces().iter().for_each(|piece| {
            done.push((piece.base, piece.len.min(more)));
            more -= piece.len.min(more);
        });
        slot.advance(share(asked));
        lens.push(asked);
    }
    let all = parts.iter().map(|(at, len)| (host(*at), *len as usize));
    let done = done.into_iter().filter(|(_, len)| *len > 0);
    assert_eq!(joined(done), joined(all));
    lens
}

const MIB: u32 = 1 << 20;
const STEP_LEN: usize = STEP as usize;

#[test]
fn call_takes_no_more_than_a_step_and_leaves_a_multiple_of_it() {
    let steps = [STEP_LEN / 2, STEP_LEN, STEP_LEN];
    assert_eq!(calls(&[(4096, 10 * MIB)], |all| all), steps);
    // The same page again and again, in parts that end anywhere.
    let mut parts: Vec<_> = (0..100).map(|n| (4096, 50_003 + 1000 * n)).collect();
    let len: u32 = parts.iter().map(|(_, len)| len).sum();
    parts.push((8192, 10 * MIB - len));
    assert_eq!(calls(&parts, |all| all), steps);
    for asked in calls(&parts, |all| all.div_ceil(2)) {
        assert!((1..=STEP_LEN).contains(&asked), "{asked}");
    }
}

#[test]
fn request_of_no_more_than_a_step_is_one_call() {
    assert_eq!(calls(&[(4096, 512)], |all| all), [512]);
    assert_eq!(calls(&[(0, MIB), (4096, 3 * MIB)], |all| all), [STEP_LEN]);
}

#[test]
fn slot_that_has_grown_is_not_kept() {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let view = DmaView::all_shared(Arc::new(ram));
    let map = GuestMap::new(&view);
    for (count, usual) in [(KEPT, true), (KEPT + 1, false)] {
        let segments: Vec<_> = (0..count)
            .map(|_| map.region(0).segment(0, 512).unwrap())
            .collect();
        let mut slot = Slot::new(Chain::new(&view));
        fill(&mut slot.pieces, &segments, 0, u32::MAX);
        assert_eq!(slot.is_usual(), usual, "{count}");
    }
}
