use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::dma::PageState;

const RAM: usize = 0x20_0000;
/// Pages from here on are private.
const PRIVATE: u64 = 0x1f_0000;
const DESCRIPTOR_AT: u64 = 0x1000;

#[derive(Debug)]
struct Pages;

impl PageState for Pages {
    fn is_shared(&self, range: Range<u64>) -> bool {
        range.end <= PRIVATE
    }
    fn generation(&self) -> u64 {
        0
    }
    fn discard_private(&self, _: Range<u64>) {}
}

struct Machine {
    device: FwCfg,
    memory: DmaView,
}

fn blob(bytes: &[u8]) -> Blob {
    Arc::new(bytes.to_vec())
}

fn machine() -> Machine {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let memory = DmaView::new(Arc::new(ram), Arc::new(Pages));
    let items = vec![(0x0e, blob(&[1, 0]))];
    let files = vec![
        ("etc/table-loader".to_owned(), blob(b"loader")),
        ("etc/acpi/rsdp".to_owned(), blob(b"rsdp bytes")),
    ];
    let device = FwCfg::build(items, files, memory.clone()).unwrap();
    Machine { device, memory }
}

impl Machine {
    fn select(&mut self, key: u16) {
        self.device.write(SELECTOR, &key.to_le_bytes()).unwrap();
    }

    fn data(&mut self, count: usize) -> Vec<u8> {
        let mut byte = [0];
        let mut next = || {
            self.device.read(DATA, &mut byte).unwrap();
            byte[0]
        };
        (0..count).map(|_| next()).collect()
    }

    /// Runs a transfer as OVMF does, and gives the control word back.
    fn dma(&mut self, control: u32, length: u32, address: u64) -> u32 {
        let mut descriptor = control.to_be_bytes().to_vec();
        descriptor.extend(length.to_be_bytes());
        descriptor.extend(address.to_be_bytes());
        let at = GuestAddress(DESCRIPTOR_AT);
        self.memory.write_slice(&descriptor, at).unwrap();
        self.start(DESCRIPTOR_AT);
        let mut result = [0; 4];
        self.memory.read_slice(&mut result, at).unwrap();
        u32::from_be_bytes(result)
    }

    fn start(&mut self, descriptor_at: u64) {
        let [high @ .., a, b, c, d] = descriptor_at.to_be_bytes();
        self.device.write(DMA_HIGH, &high).unwrap();
        self.device.write(DMA_LOW, &[a, b, c, d]).unwrap();
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }
}

#[test]
fn signature_and_features_are_read_byte_by_byte() {
    let mut machine = machine();
    machine.select(0);
    assert_eq!(machine.data(6), *b"QEMU\0\0");
    machine.select(1);
    assert_eq!(machine.data(4), [3, 0, 0, 0]);
    machine.select(0x0e);
    assert_eq!(machine.data(3), [1, 0, 0]);
    machine.select(0x7777);
    assert_eq!(machine.data(2), [0, 0]);
}

#[test]
fn directory_lists_files_by_name_with_their_keys() {
    let mut machine = machine();
    machine.select(0x19);
    let directory = machine.data(4 + 2 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..12], [0, 0, 0, 10, 0, 0x20, 0, 0]);
    assert_eq!(directory[12..26], *b"etc/acpi/rsdp\0");
    assert_eq!(directory[68..76], [0, 0, 0, 6, 0, 0x21, 0, 0]);
    assert_eq!(directory[76..92], *b"etc/table-loader");
    machine.select(0x20);
    assert_eq!(machine.data(10), *b"rsdp bytes");
    machine.select(0x21 | WRITE_CHANNEL);
    assert_eq!(machine.data(6), *b"loader");
}

#[test]
fn dma_signature_is_big_endian_text() {
    let mut machine = machine();
    let mut data = [0; 8];
    machine.device.read(DMA_HIGH, &mut data).unwrap();
    assert_eq!(data, *b"QEMU CFG");
    machine.device.read(DMA_LOW, &mut data[..4]).unwrap();
    assert_eq!(data[..4], *b" CFG");
}

#[test]
fn dma_selects_reads_in_parts_and_skips() {
    let mut machine = machine();
    let select = 0x20 << 16 | DMA_SELECT | DMA_READ;
    assert_eq!(machine.dma(select, 4, 0x2000), 0);
    assert_eq!(machine.bytes::<5>(0x2000), *b"rsdp\0");
    assert_eq!(machine.dma(DMA_SKIP, 1, 0), 0);
    assert_eq!(machine.dma(DMA_READ, 3, 0x3000), 0);
    assert_eq!(machine.bytes::<4>(0x3000), *b"byt\0");
    assert_eq!(machine.data(2), *b"es", "ports go on where DMA stopped");
}

#[test]
fn dma_past_the_end_gives_zeros_up_to_a_bound() {
    let mut machine = machine();
    machine
        .memory
        .write_slice(&[0xaa; 0x3000], GuestAddress(0x2000))
        .unwrap();
    let select = 0x21 << 16 | DMA_SELECT | DMA_READ;
    assert_eq!(machine.dma(select, 0x2001, 0x2000), 0);
    assert_eq!(machine.bytes::<8>(0x2000), *b"loader\0\0");
    assert_eq!(machine.bytes::<4>(0x3fff), [0, 0, 0xaa, 0xaa]);
    assert_eq!(machine.dma(select, (1 << 20) + 6, 0x2000), 0);
    assert_eq!(machine.dma(select, (1 << 20) + 7, 0x2000), DMA_ERROR);
    assert_eq!(machine.dma(select, u32::MAX, 0x2000), DMA_ERROR);
}

#[test]
fn dma_write_is_refused_and_changes_nothing() {
    let mut machine = machine();
    let control = 0x20 << 16 | DMA_SELECT | DMA_WRITE;
    assert_eq!(machine.dma(control, 4, 0x2000), DMA_ERROR);
    machine.select(0x20);
    assert_eq!(machine.data(4), *b"rsdp");
}

#[test]
fn dma_buffer_in_private_memory_is_refused_as_a_whole() {
    let mut machine = machine();
    let last_shared = PRIVATE - 4;
    let select = 0x20 << 16 | DMA_SELECT | DMA_READ;
    assert_eq!(machine.dma(select, 10, last_shared), DMA_ERROR);
    assert_eq!(machine.bytes::<4>(last_shared), [0; 4]);
    assert_eq!(machine.dma(select, 10, u64::MAX - 3), DMA_ERROR);
    // Only the zeros after the item would be private.
    assert_eq!(machine.dma(select, 11, PRIVATE - 10), DMA_ERROR);
    assert_eq!(machine.bytes::<10>(PRIVATE - 10), [0; 10]);
    assert_eq!(machine.dma(DMA_READ, 4, last_shared), 0, "position kept");
    assert_eq!(machine.bytes::<4>(last_shared), *b"rsdp");
}

#[test]
fn dma_descriptor_in_private_memory_starts_nothing() {
    let mut machine = machine();
    for at in [PRIVATE - 8, PRIVATE, RAM as u64, u64::MAX - 7] {
        machine.start(at);
    }
    assert_eq!(machine.bytes::<8>(PRIVATE - 8), [0; 8]);
    machine.select(0);
    assert_eq!(machine.data(4), *b"QEMU");
}

/// Something turns private between any two looks at the generation, if `restless`.
#[derive(Debug, Default)]
struct Turning {
    restless: bool,
    generation: AtomicU64,
    given_back: Mutex<Vec<Range<u64>>>,
}

impl PageState for Turning {
    fn is_shared(&self, _: Range<u64>) -> bool {
        true
    }
    fn generation(&self) -> u64 {
        let step = u64::from(self.restless);
        self.generation.fetch_add(step, Ordering::Relaxed)
    }
    fn discard_private(&self, range: Range<u64>) {
        self.given_back.lock().unwrap().push(range);
    }
}

#[test]
fn dma_gives_back_what_turned_private_of_buffer_and_descriptor() {
    let descriptor = DESCRIPTOR_AT..DESCRIPTOR_AT + 16;
    for (restless, expected) in [(true, vec![0x3000..0x3008, descriptor]), (false, vec![])] {
        let pages = Arc::new(Turning {
            restless,
            ..Turning::default()
        });
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let memory = DmaView::new(Arc::new(ram), Arc::<Turning>::clone(&pages));
        let device = FwCfg::build(Vec::new(), Vec::new(), memory.clone()).unwrap();
        let mut machine = Machine { device, memory };
        let control = u32::from(ID) << 16 | DMA_SELECT | DMA_READ;
        assert_eq!(machine.dma(control, 8, 0x3000), 0);
        assert_eq!(*pages.given_back.lock().unwrap(), expected);
    }
}

#[test]
fn dma_address_upper_half_counts_for_one_transfer() {
    let mut machine = machine();
    machine.device.write(DMA_HIGH, &[0, 0, 0, 1]).unwrap();
    machine.device.write(DMA_LOW, &[0, 0, 0x10, 0]).unwrap();
    let control = 0x20 << 16 | DMA_SELECT | DMA_READ;
    let mut descriptor = control.to_be_bytes().to_vec();
    descriptor.extend([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x20, 0]);
    machine
        .memory
        .write_slice(&descriptor, GuestAddress(0x1000))
        .unwrap();
    machine.device.write(DMA_LOW, &[0, 0, 0x10, 0]).unwrap();
    assert_eq!(machine.bytes::<4>(0x2000), *b"rsdp");
    machine
        .device
        .write(DMA_HIGH, &0x1000_u64.to_be_bytes())
        .unwrap();
    assert_eq!(machine.bytes::<4>(0x1000), [0; 4], "8 bytes at once do too");
}

#[test]
fn contents_that_cannot_be_offered_are_refused() {
    let memory = machine().memory;
    let build = |items: Vec<(u16, Blob)>, names: &[&str]| {
        let file = |name: &&str| ((*name).to_owned(), blob(b""));
        let files = names.iter().map(file).collect();
        FwCfg::build(items, files, memory.clone()).map(|_| ())
    };
    let long = "n".repeat(56);
    assert_eq!(build(vec![], &[&long[..55]]), Ok(()));
    assert_eq!(build(vec![], &[&long]), Err(FwCfgError::Name(long.clone())));
    assert_eq!(build(vec![], &[""]), Err(FwCfgError::Name(String::new())));
    let twice = FwCfgError::DuplicateFile("a".to_owned());
    assert_eq!(build(vec![], &["a", "b", "a"]), Err(twice));
    for key in [0, 1, 0x19, 0x20] {
        let error = build(vec![(key, blob(b""))], &["a"]).unwrap_err();
        assert_eq!(error, FwCfgError::DuplicateItem(key));
    }
    let many: Vec<_> = (0..0x4000 - 0x20 + 1).map(|n| n.to_string()).collect();
    let names: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(build(vec![], &names[1..]), Ok(()));
    assert_eq!(build(vec![], &names), Err(FwCfgError::Files(names.len())));
}

proptest! {
    #[test]
    fn descriptor_of_any_content_is_answered_and_never_reaches_private_memory(
        control: u32,
        key in 0_u16..0x30,
        length in prop_oneof![0_u32..0x100, any::<u32>()],
        address in prop_oneof![DESCRIPTOR_AT + 16..RAM as u64, any::<u64>()],
    ) {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let ram = Arc::new(ram);
        let private = GuestAddress(PRIVATE);
        let secret = vec![0x5a; 0x1_0000];
        ram.write_slice(&secret, private).unwrap();
        let mut machine = machine();
        machine.memory = DmaView::new(Arc::clone(&ram), Arc::new(Pages));
        machine.device.memory = machine.memory.clone();

        let result = machine.dma(control & 0xffff | u32::from(key) << 16, length, address);

        let reads = control & DMA_READ != 0 && length != 0;
        let over_descriptor = address < DESCRIPTOR_AT + 16;
        prop_assert!(result == 0 || result == DMA_ERROR || over_descriptor);
        if reads && address.saturating_add(length.into()) > PRIVATE {
            prop_assert_eq!(result, DMA_ERROR);
        }
        let mut after = vec![0; secret.len()];
        ram.read_slice(&mut after, private).unwrap();
        prop_assert!(after == secret);
    }
}
