use super::*;
use crate::pci::fake::Fake;

const BASE: u64 = 0x8000_0000;

fn root(functions: &[(u8, Arc<Mutex<Fake>>)]) -> PciRoot {
    let mut root = PciRoot::new();
    for (slot, function) in functions {
        root.insert(*slot, Arc::clone(function) as SharedFunction)
            .unwrap();
    }
    root
}

fn bars(function: &Mutex<Fake>) -> Vec<(u8, u64)> {
    let function = function.lock().unwrap();
    let bars = function.config().decoded_bars();
    bars.map(|bar| (bar.index, bar.base)).collect()
}

/// First byte at an address, `None` if no BAR answers.
fn read(root: &PciRoot, address: u64) -> Option<u8> {
    let mut data = [0xee; 1];
    root.bar_read(address, &mut data).then_some(data[0])
}

#[test]
fn slot_that_is_taken_or_missing_is_refused() {
    let mut root = root(&[(0, Fake::new(1, &[])), (2, Fake::new(2, &[]))]);
    assert_eq!(root.insert(2, Fake::new(3, &[])), Err(SlotError::Taken(2)));
    let missing = root.insert(32, Fake::new(3, &[]));
    assert_eq!(missing, Err(SlotError::Missing(32)));
    let slots: Vec<_> = (0..30)
        .map(|_| root.insert_next(Fake::new(4, &[])).unwrap())
        .collect();
    assert_eq!(slots[..3], [1, 3, 4]);
    let full = root.insert_next(Fake::new(5, &[]));
    assert_eq!(full, Err(SlotError::Full));
}

#[test]
fn assigned_bars_are_aligned_apart_and_decode() {
    let functions = [
        (1, Fake::new(1, &[(0, 0x1000), (1, 0x4_0000)])),
        (2, Fake::new(2, &[(4, 0x4000)])),
    ];
    let root = root(&functions);
    root.assign_bars(BASE, 0x10_0000).unwrap();
    assert_eq!(bars(&functions[0].1), [(0, BASE), (1, BASE + 0x4_0000)]);
    assert_eq!(bars(&functions[1].1), [(4, BASE + 0x8_0000)]);
    assert_eq!(read(&root, BASE + 0xfff), Some(0xff));
    assert_eq!(read(&root, BASE + 0x1000), None);
    assert_eq!(read(&root, BASE + 0x4_0005), Some(0x15));
    assert_eq!(read(&root, BASE + 0x8_0003), Some(0x43));
}

#[test]
fn bars_that_do_not_fit_the_window_are_refused() {
    let root = root(&[(3, Fake::new(1, &[(0, 0x1000), (2, 0x1000)]))]);
    let error = BarError { slot: 3, bar: 2 };
    assert_eq!(root.assign_bars(BASE, 0x1fff), Err(error));
    assert_eq!(root.assign_bars(BASE, 0x2000), Ok(()));
    let error = BarError { slot: 3, bar: 0 };
    assert_eq!(root.assign_bars(1 << 32, 0x2000), Err(error));
    assert_eq!(root.assign_bars(u64::MAX - 5, 5), Err(error));
}

#[test]
fn bar_that_a_guest_moves_or_disables_does_so_at_once() {
    let root = root(&[(1, Fake::new(1, &[(0, 0x1000)]))]);
    root.assign_bars(BASE, 0x1000).unwrap();
    root.config_write(1, 0x10, &0x9000_0000_u32.to_le_bytes());
    assert_eq!(read(&root, BASE), None);
    assert_eq!(read(&root, 0x9000_0004), Some(4));
    root.config_write(1, 0x04, &[0, 0]);
    assert_eq!(read(&root, 0x9000_0004), None);
    root.config_write(1, 0x04, &[2]);
    assert_eq!(read(&root, 0x9000_0004), Some(4));
}

#[test]
fn function_is_told_of_moves_and_of_nothing_else() {
    let function = Fake::new(1, &[(0, 0x1000)]);
    let root = root(&[(1, Arc::clone(&function))]);
    let moves = || std::mem::take(&mut function.lock().unwrap().moves);
    root.config_write(1, 0x10, &0x9000_0000_u32.to_le_bytes());
    assert_eq!(moves(), 0, "decoding is off");
    root.config_write(1, 0x04, &[2]);
    root.config_write(1, 0x04, &[6]);
    root.config_write(1, 0x3c, &[11]);
    assert_eq!(moves(), 1);
    root.config_write(1, 0x10, &0x9000_1000_u32.to_le_bytes());
    root.config_write(1, 0x04, &[0]);
    assert_eq!(moves(), 2);
    root.assign_bars(BASE, 0x1000).unwrap();
    assert_eq!(moves(), 1);
}

#[test]
fn access_across_the_end_of_a_bar_is_nobodys() {
    let function = Fake::new(1, &[(0, 0x1000), (1, 0x1000)]);
    let root = root(&[(1, Arc::clone(&function))]);
    root.assign_bars(BASE, 0x2000).unwrap();
    assert!(!root.bar_write(BASE + 0xffc, &[0; 8]));
    assert!(!root.bar_write(BASE - 4, &[0; 8]));
    assert!(!root.bar_write(u64::MAX, &[0; 8]));
    assert!(root.bar_write(BASE + 0xff8, &[7; 8]));
    assert!(root.bar_write(BASE + 0x1000, &[8]));
    let writes = function.lock().unwrap().writes.clone();
    assert_eq!(writes, [(0, 0xff8, vec![7; 8]), (1, 0, vec![8])]);
}

#[test]
fn overlapping_bars_are_answered_by_the_lowest_slot() {
    let root = root(&[
        (2, Fake::new(2, &[(3, 0x1000)])),
        (1, Fake::new(1, &[(0, 0x1000)])),
    ]);
    for slot in [2, 1] {
        for register in [0x10, 0x1c] {
            root.config_write(slot, register, &0x9000_0000_u32.to_le_bytes());
        }
        root.config_write(slot, 0x04, &[2]);
    }
    assert_eq!(read(&root, 0x9000_0001), Some(0x01));
    root.config_write(1, 0x04, &[0]);
    assert_eq!(read(&root, 0x9000_0001), Some(0x31));
}

#[test]
fn empty_slot_reads_all_ones_and_ignores_writes() {
    let root = root(&[(1, Fake::new(1, &[]))]);
    for slot in [0, 2, 31, 32, 255] {
        let mut data = [0; 4];
        root.config_write(slot, 0, &[0; 4]);
        root.config_read(slot, 0, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
