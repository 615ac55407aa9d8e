//! A guest that touches everything, with every width and random values.
//!
//! All platform devices on their buses, as on a machine. Nothing may panic; the log and the memory of
//! the process stay bounded, and private memory stays what it was. One test in a process of its own,
//! since it counts the log lines and the memory of the process.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::tests_outside_test_module,
    reason = "a test crate, whose numbers are its own"
)]

mod machine;

use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};
use machine::{ECAM, IOAPIC, Machine, WINDOW};
use tdvmm_devices::bus::Bus;

/// Counts lines, and keeps none.
struct LineCount(AtomicU64);

impl Log for LineCount {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        assert!(text.len() < 4096, "a line of {} bytes", text.len());
        assert!(!text.contains(char::is_control), "{text:?}");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn flush(&self) {}
}

static LINES: LineCount = LineCount(AtomicU64::new(0));

/// SplitMix64: the same values on each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Values that registers care about more often than chance would have it.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(256),
            4 => WINDOW.start + (self.below(32) << 12),
            5 => self.below(machine::RAM),
            _ => self.next(),
        }
    }
}

fn touch(bus: &Bus, address: u64, random: &mut Random) {
    for width in [1, 2, 4, 8] {
        let mut data = [0x5a; 8];
        bus.read(address, &mut data[..width]);
        bus.write(address, &random.value().to_le_bytes()[..width]);
    }
}

fn sweep(bus: &Bus, addresses: Range<u64>, random: &mut Random) {
    for address in addresses {
        touch(bus, address, random);
    }
}

/// Every port, every register in memory, all of bus 0, and samples of what is too large.
fn sweep_all(machine: &Machine, random: &mut Random) {
    sweep(&machine.ports, 0..0x1_0000, random);
    sweep(&machine.memory, IOAPIC, random);
    for slot in 0..32 {
        let function = ECAM.start + (slot << 15);
        sweep(&machine.memory, function..function + 0x1000, random);
        // Where BARs were moved to is touched as well.
        for _ in 0..100 {
            let address = ECAM.start + random.below(ECAM.end - ECAM.start);
            touch(&machine.memory, address, random);
            let address = WINDOW.start + random.below(32 << 12);
            touch(&machine.memory, address, random);
            touch(&machine.memory, random.next(), random);
        }
    }
    sweep(&machine.memory, WINDOW.start..WINDOW.start + 0x4000, random);
}

/// Registers in which one access prepares the next: index and data, DMA addresses, tables.
fn hammer(machine: &Machine, random: &mut Random) {
    const PORTS: [(u64, u64); 6] = [
        (0x3f8, 8),
        (0x70, 2),
        (0x510, 12),
        (0xcf8, 8),
        (0x600, 0x20),
        (0x402, 1),
    ];
    for _ in 0..200_000 {
        let (base, len) = PORTS[usize::try_from(random.below(6)).unwrap()];
        touch(&machine.ports, base + random.below(len), random);
        if random.below(4) == 0 {
            touch(&machine.memory, IOAPIC.start + random.below(0x20), random);
        }
        if random.below(16) == 0 {
            machine.disturb();
        }
    }
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split_whitespace().nth(1).unwrap();
    pages.parse::<u64>().unwrap() * 4
}

#[test]
fn guest_that_touches_everything_neither_stops_nor_grows_nor_floods() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let machine = Machine::new();
    let mut random = Random(0x7d);
    // The first round brings buffers to their full size.
    sweep_all(&machine, &mut random);
    hammer(&machine, &mut random);

    let (start, resident_before) = (Instant::now(), resident());
    let lines_before = LINES.0.load(Ordering::Relaxed);
    for _ in 0..2 {
        sweep_all(&machine, &mut random);
        hammer(&machine, &mut random);
    }

    let grown = resident().saturating_sub(resident_before);
    assert!(grown <= 512, "{grown} KiB more than after the first round");
    // 100 lines a second of the debug port, one a second of each of at most 30 other places.
    let seconds = start.elapsed().as_secs() + 1;
    let lines = LINES.0.load(Ordering::Relaxed) - lines_before;
    assert!(
        lines <= (100 + 30) * 2 * seconds + 30 * 10 + 1000,
        "{lines} lines in {seconds} s"
    );
    assert!(machine.private_memory_is_untouched());
    assert!(machine.powered() > 0, "the registers for it were touched");
    assert!(machine.interrupts() > 0, "and those for interrupts");
}
