//! A disk on real files behind the whole transport, with io_uring and without.
#![cfg(test)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of the test")]

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tdvmm_devices::virtio::block::{
    Block, BlockOptions, DiskOptions, Engine, ImageFormat, OpenError, Rate,
};

mod driver;
use driver::pci::Card;
use driver::{Driver, ram};

const DISK: usize = 1 << 20;
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x1_8000;
const DATA: u64 = 0x2_0000;

fn disk_options(path: &Path) -> DiskOptions {
    DiskOptions {
        path: path.to_owned(),
        read_only: false,
        direct: false,
        format: ImageFormat::Unsaid,
        backing_files: false,
    }
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    file.as_file().set_len(DISK as u64).unwrap();
    file
}

/// A guest with one disk of one queue.
struct Guest {
    card: Card,
    ring: Driver,
}

impl Guest {
    fn new(disk: &DiskOptions, options: &BlockOptions) -> Self {
        let block = Block::open(disk, options).unwrap();
        Self::with(block, u64::MAX)
    }

    fn with(block: Block, features: u64) -> Self {
        let ram = ram(&[(0, 0x20_0000), (0x20_0000, 0x20_0000)]);
        let ring = Driver::new(ram, 0x1000, 128);
        let mut card = Card::new(Box::new(block), ring.view());
        card.start(features, &[&ring]);
        Guest { card, ring }
    }

    /// Puts request `n` of a batch into the ring; the data are the given parts, (address, length).
    fn put(&mut self, n: u16, kind: u32, sector: u64, data: &[(u64, u32)]) {
        let (header, status) = (HEADERS + 16 * u64::from(n), STATUSES + u64::from(n));
        self.ring.write(header, &kind.to_le_bytes());
        self.ring.write(header + 8, &sector.to_le_bytes());
        self.ring.write(status, &[0xee]);
        let mut parts = vec![(header, 16, false)];
        parts.extend(
            data.iter()
                .map(|(at, len)| (*at, *len, matches!(kind, 0 | 8))),
        );
        parts.push((status, 1, true));
        let first = n * 4 % self.ring.size;
        self.ring.chain(first, &parts);
        self.ring.offer(first);
    }

    /// Kicks and waits for `count` answers; gives the statuses in the order of `put`.
    fn run(&mut self, count: u16) -> Vec<u8> {
        self.card.kick(0);
        self.card.collect(&mut self.ring, usize::from(count));
        self.ring.read(STATUSES, usize::from(count))
    }

    fn one(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> u8 {
        self.put(0, kind, sector, data);
        self.run(1)[0]
    }
}

fn engines() -> [BlockOptions; 2] {
    [Engine::Uring, Engine::Blocking].map(|engine| BlockOptions {
        engine,
        serial: "a serial".into(),
        ..BlockOptions::default()
    })
}

#[test]
fn what_is_written_is_read_back_and_on_the_file() {
    for options in engines() {
        for direct in [false, true] {
            let image = image();
            let disk = DiskOptions {
                direct,
                ..disk_options(image.path())
            };
            let mut guest = Guest::new(&disk, &options);
            let bytes: Vec<u8> = (0..8192u32).map(|i| (i * 7 / 3) as u8).collect();
            guest.ring.write(DATA, &bytes);
            assert_eq!(guest.one(1, 9, &[(DATA, 8192)]), 0);
            assert_eq!(guest.one(4, 0, &[]), 0);
            let mut back = vec![0; 8192];
            image.as_file().read_exact_at(&mut back, 9 * 512).unwrap();
            assert_eq!(back, bytes, "{options:?} {direct}");
            // In two parts, of which one crosses from one memory region to the next.
            assert_eq!(
                guest.one(0, 9, &[(0x1f_fe00, 4096), (DATA + 0x8000, 4096)]),
                0
            );
            back = guest.ring.read(0x1f_fe00, 4096);
            back.extend(guest.ring.read(DATA + 0x8000, 4096));
            assert_eq!(back, bytes, "{options:?} {direct}");
        }
    }
}

#[test]
fn request_that_takes_several_calls_is_done_whole() {
    const PART: usize = 3 << 19;
    const AT: u64 = 0x4_0000;
    for options in engines() {
        for direct in [false, true] {
            let image = image();
            image.as_file().set_len(16 << 20).unwrap();
            let disk = DiskOptions {
                direct,
                ..disk_options(image.path())
            };
            let mut guest = Guest::new(&disk, &options);
            let bytes: Vec<u8> = (0..PART).map(|i| (i * 7 / 3) as u8).collect();
            guest.ring.write(AT, &bytes);
            // 9 MiB, more than there is memory: each part is the same.
            let parts = [(AT, PART as u32); 6];
            assert_eq!(guest.one(1, 8, &parts), 0);
            let mut back = vec![0; 6 * PART];
            image.as_file().read_exact_at(&mut back, 8 * 512).unwrap();
            assert!(
                back.chunks(PART).all(|part| part == bytes),
                "{options:?} {direct}"
            );
            guest.ring.write(AT, &vec![0; PART]);
            assert_eq!(guest.one(0, 8, &parts), 0);
            assert!(guest.ring.read(AT, PART) == bytes, "{options:?} {direct}");
        }
    }
}

#[test]
fn direct_request_that_is_not_aligned_in_memory_is_served() {
    for options in engines() {
        let image = image();
        image.as_file().write_all_at(&[0x5a; 4096], 0).unwrap();
        image.as_file().sync_all().unwrap();
        let disk = DiskOptions {
            direct: true,
            ..disk_options(image.path())
        };
        let mut guest = Guest::new(&disk, &options);
        assert_eq!(guest.one(0, 0, &[(DATA + 3, 1024)]), 0);
        assert_eq!(guest.ring.read(DATA, 4), [0, 0, 0, 0x5a]);
        assert_eq!(guest.one(1, 100, &[(DATA + 3, 1024)]), 0);
        assert_eq!(guest.one(0, 100, &[(DATA + 0x1000, 1024)]), 0);
        assert_eq!(guest.ring.read(DATA + 0x1000, 1024), [0x5a; 1024]);
    }
}

#[test]
fn id_is_the_serial_padded_with_zeros() {
    let image = image();
    let [options, _] = engines();
    let mut guest = Guest::new(&disk_options(image.path()), &options);
    guest.ring.write(DATA, &[0xff; 24]);
    assert_eq!(guest.one(8, 0, &[(DATA, 20)]), 0);
    let id = guest.ring.read(DATA, 24);
    assert_eq!(&id, b"a serial\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff");
    assert_eq!(guest.one(8, 0, &[(DATA, 4)]), 0);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    for options in engines() {
        for kind in [11, 13] {
            let image = image();
            image.as_file().write_all_at(&[0x77; 65536], 0).unwrap();
            let mut guest = Guest::new(&disk_options(image.path()), &options);
            guest.ring.write(DATA, &8u64.to_le_bytes());
            guest.ring.write(DATA + 8, &16u32.to_le_bytes());
            guest.ring.write(DATA + 12, &[0; 4]);
            assert_eq!(guest.one(kind, 0, &[(DATA, 16)]), 0);
            let mut back = vec![0; 32 * 512];
            image.as_file().read_exact_at(&mut back, 0).unwrap();
            assert!(back[..8 * 512].iter().all(|b| *b == 0x77));
            assert!(back[8 * 512..24 * 512].iter().all(|b| *b == 0));
            assert!(back[24 * 512..].iter().all(|b| *b == 0x77));
            assert_eq!(image.as_file().metadata().unwrap().len(), DISK as u64);
        }
    }
}

#[test]
fn bad_requests_get_their_status_and_broken_chains_a_fault() {
    let image = image();
    let mut guest = Guest::new(&disk_options(image.path()), &BlockOptions::default());
    assert_eq!(guest.one(0, 2048, &[(DATA, 512)]), 1);
    assert_eq!(guest.one(1, u64::MAX, &[(DATA, 512)]), 1);
    assert_eq!(guest.one(0, 0, &[(DATA, 511)]), 1);
    assert_eq!(guest.one(0, 0, &[]), 1);
    assert_eq!(guest.one(99, 0, &[]), 2);
    assert_eq!(guest.one(0, 0, &[(DATA, 512)]), 0);
    assert_eq!(guest.card.status(), 15);
    // A header of 15 bytes.
    guest
        .ring
        .chain(0, &[(HEADERS, 15, false), (STATUSES, 1, true)]);
    guest.ring.offer(0);
    guest.card.kick(0);
    guest.card.vectors.wait_for(0, 1);
    assert_eq!(guest.card.status(), 15 | 64);
}

#[test]
fn file_that_was_cut_gives_errors_and_not_zeros() {
    for options in engines() {
        let image = image();
        let mut guest = Guest::new(&disk_options(image.path()), &options);
        image.as_file().set_len(4096).unwrap();
        assert_eq!(guest.one(0, 16, &[(DATA, 512)]), 1);
        assert_eq!(guest.one(0, 0, &[(DATA, 512)]), 0);
    }
}

#[test]
fn many_requests_in_flight_all_end_right() {
    for options in engines() {
        for direct in [false, true] {
            let image = image();
            let disk = DiskOptions {
                direct,
                ..disk_options(image.path())
            };
            let block = Block::open(&disk, &options).unwrap();
            let counters = block.counters();
            let mut guest = Guest::with(block, u64::MAX);
            for n in 0..32 {
                let at = DATA + 4096 * u64::from(n);
                guest.ring.write(at, &[n as u8 + 1; 4096]);
                guest.put(n, 1, u64::from(n) * 8, &[(at, 4096)]);
            }
            assert_eq!(guest.run(32), [0; 32]);
            guest.put(0, 4, 0, &[]);
            assert_eq!(guest.run(1), [0]);
            drop_cache(image.path());
            for n in 0..32 {
                let at = DATA + 0x2_0000 + 4096 * u64::from(n);
                guest.put(n, 0, u64::from(31 - n) * 8, &[(at, 4096)]);
            }
            assert_eq!(guest.run(32), [0; 32]);
            for n in 0..32u64 {
                let back = guest.ring.read(DATA + 0x2_0000 + 4096 * n, 4096);
                assert!(back.iter().all(|b| u64::from(*b) == 32 - n));
            }
            // The flush and the reads at least, if the engine is io_uring.
            let submitted = counters.submitted.load(Ordering::Relaxed);
            match options.engine {
                Engine::Uring if direct => assert_eq!(submitted, 65),
                Engine::Uring => assert!(submitted > 1, "{submitted}"),
                Engine::Blocking => assert_eq!(submitted, 0),
            }
        }
    }
}

/// So that reads have to wait for the disk: dd gives the kernel the advice to forget the file's pages.
fn drop_cache(path: &Path) {
    let status = std::process::Command::new("dd")
        .args(["of=/dev/null", "iflag=nocache", "count=0", "status=none"])
        .arg(format!("if={}", path.display()))
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn reset_under_io_leaves_nothing_running() {
    let image = image();
    let disk = DiskOptions {
        direct: true,
        ..disk_options(image.path())
    };
    let mut guest = Guest::new(&disk, &BlockOptions::default());
    for round in 0..30u16 {
        for n in 0..32 {
            let at = DATA + 4096 * u64::from(n);
            guest.put(n, u32::from(n % 2), u64::from(n) * 8, &[(at, 4096)]);
        }
        guest.card.kick(0);
        if round % 3 == 0 {
            std::thread::yield_now();
        }
        guest.card.set_status(0);
        assert_eq!(guest.card.status(), 0);
        // No I/O writes into memory that the driver has taken back.
        guest.ring.write(DATA, &vec![0x11; 32 * 4096]);
        let ram = Arc::clone(&guest.ring.ram);
        guest.ring = Driver::new(ram, 0x1000, 128);
        guest.ring.write(0x1000, &[0; 0x1000]);
        // Late I/O would have had a moment.
        assert!(guest.ring.read(DATA, 32 * 4096).iter().all(|b| *b == 0x11));
        guest.card.start(u64::MAX, &[&guest.ring]);
    }
}

#[test]
fn requests_keep_to_the_limit() {
    let image = image();
    let options = BlockOptions {
        operations: Some(Rate {
            size: 20,
            refill: Duration::from_millis(200),
        }),
        ..BlockOptions::default()
    };
    let mut guest = Guest::new(&disk_options(image.path()), &options);
    let start = Instant::now();
    for _ in 0..3 {
        for n in 0..20 {
            guest.put(n, 0, 0, &[(DATA, 512)]);
        }
        assert_eq!(guest.run(20), [0; 20]);
    }
    // 60 requests, of which 20 are free and 40 take 10 ms each.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(380), "{took:?}");
}

#[test]
fn page_cache_hits_are_answered_at_once() {
    let image = image();
    image.as_file().write_all_at(&[1; 65536], 0).unwrap();
    let block = Block::open(&disk_options(image.path()), &BlockOptions::default()).unwrap();
    let counters = block.counters();
    let mut guest = Guest::with(block, u64::MAX);
    for n in 0..16 {
        guest.put(n, 0, u64::from(n), &[(DATA, 512)]);
    }
    assert_eq!(guest.run(16), [0; 16]);
    assert_eq!(counters.inline.load(Ordering::Relaxed), 16);
    assert_eq!(counters.submitted.load(Ordering::Relaxed), 0);
    assert_eq!(counters.done.load(Ordering::Relaxed), 16);
}

#[test]
fn image_in_use_is_refused_unless_all_only_read() {
    let image = image();
    let reading = DiskOptions {
        read_only: true,
        ..disk_options(image.path())
    };
    let options = BlockOptions::default();
    let first = Block::open(&reading, &options).unwrap();
    let second = Block::open(&reading, &options).unwrap();
    let error = Block::open(&disk_options(image.path()), &options).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)));
    drop((first, second));
    let writer = Block::open(&disk_options(image.path()), &options).unwrap();
    assert!(matches!(
        Block::open(&reading, &options),
        Err(OpenError::InUse(_))
    ));
    drop(writer);
    Block::open(&reading, &options).unwrap();
}

#[test]
fn image_of_another_format_is_refused_with_the_way_out() {
    let mut image = image();
    image.write_all(b"KDMV\x01\0\0\0").unwrap();
    let mut disk = disk_options(image.path());
    let error = Block::open(&disk, &BlockOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Format { .. }));
    let text = error.to_string();
    assert!(
        text.contains("vmdk") && text.contains("qemu-img convert -O raw"),
        "{text}"
    );
    disk.format = ImageFormat::Raw;
    Block::open(&disk, &BlockOptions::default()).unwrap();
    let error = Block::open(&disk_options(Path::new("/")), &BlockOptions::default());
    assert!(error.is_err());
}

#[test]
fn what_cannot_be_a_disk_is_refused_at_once() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let fifo = folder.path().join("fifo");
    // Its other end is never opened: an open that waited would wait for ever.
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    for path in [&fifo, Path::new("/dev/zero"), folder.path()] {
        let disk = DiskOptions {
            read_only: true,
            ..disk_options(path)
        };
        let refused = Block::open(&disk, &BlockOptions::default());
        assert!(matches!(refused, Err(OpenError::Kind(_))), "{path:?}");
    }
}

#[derive(Clone, Debug)]
struct Step {
    write: bool,
    sector: u64,
    /// Lengths of the data's parts; together whole sectors.
    parts: Vec<u32>,
    seed: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let cuts = prop::collection::vec(1u32..4096, 0..3);
    (any::<bool>(), 0u64..100, 1u32..16, cuts, any::<u8>()).prop_map(
        |(write, sector, sectors, cuts, seed)| {
            let mut left = sectors * 512;
            let mut parts = Vec::new();
            for cut in cuts {
                if cut < left {
                    parts.push(cut);
                    left -= cut;
                }
            }
            parts.push(left);
            parts.truncate(2);
            let total: u32 = parts.iter().sum();
            if let Some(last) = parts.last_mut() {
                *last += (512 - total % 512) % 512;
            }
            Step {
                write,
                sector,
                parts,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn disk_behaves_like_an_array(
        steps in prop::collection::vec(step(), 1..40),
        blocking: bool,
        direct: bool,
    ) {
        let image = image();
        let engine = if blocking { Engine::Blocking } else { Engine::Uring };
        let options = BlockOptions { engine, ..BlockOptions::default() };
        let disk = DiskOptions { direct, ..disk_options(image.path()) };
        let mut guest = Guest::new(&disk, &options);
        let mut model = vec![0u8; DISK];
        for Step { write, sector, parts, seed } in steps {
            let mut at = DATA;
            let data: Vec<_> = parts.iter().map(|len| {
                let part = (at, *len);
                at += u64::from(*len) + u64::from(seed % 5) * 256;
                part
            }).collect();
            let mut place = sector as usize * 512;
            for (at, len) in &data {
                let bytes: Vec<u8> = (0..*len).map(|i| seed.wrapping_add(i as u8)).collect();
                guest.ring.write(*at, &bytes);
                if write {
                    model[place..place + bytes.len()].copy_from_slice(&bytes);
                }
                place += bytes.len();
            }
            prop_assert_eq!(guest.one(u32::from(write), sector, &data), 0);
            let mut place = sector as usize * 512;
            for (at, len) in &data {
                let bytes = guest.ring.read(*at, *len as usize);
                prop_assert_eq!(&bytes, &model[place..place + bytes.len()]);
                place += bytes.len();
            }
        }
    }
}

/// Run as `TDVMM_TEST_BLOCK_DEVICE=/dev/loop0 cargo test -p tdvmm-devices --test virtio_block -- --ignored`.
#[test]
#[ignore = "needs a block device whose content may be lost: TDVMM_TEST_BLOCK_DEVICE"]
fn block_device_is_written_read_zeroed_and_discarded() {
    let path = std::env::var_os("TDVMM_TEST_BLOCK_DEVICE").expect("the variable is set");
    for options in engines() {
        for direct in [false, true] {
            let disk = DiskOptions {
                direct,
                ..disk_options(Path::new(&path))
            };
            let block = Block::open(&disk, &options).unwrap();
            assert!(block.geometry().size > 0);
            let mut guest = Guest::with(block, u64::MAX);
            for (kind, flags) in [(11, 0u32), (13, 0), (13, 1)] {
                guest.ring.write(DATA, &[0x3c; 8192]);
                assert_eq!(guest.one(1, 8, &[(DATA, 8192)]), 0);
                assert_eq!(guest.one(4, 0, &[]), 0);
                guest.ring.write(DATA, &8u64.to_le_bytes());
                guest.ring.write(DATA + 8, &8u32.to_le_bytes());
                guest.ring.write(DATA + 12, &flags.to_le_bytes());
                assert_eq!(guest.one(kind, 0, &[(DATA, 16)]), 0);
                assert_eq!(guest.one(0, 8, &[(DATA, 8192)]), 0);
                let back = guest.ring.read(DATA, 8192);
                assert!(back[4096..].iter().all(|b| *b == 0x3c));
                let zeros = back[..4096].iter().all(|b| *b == 0);
                // What a discarded sector reads as is the device's affair.
                assert!(zeros || kind == 11, "{kind} {flags}");
            }
        }
    }
}
