//! What a random 4 KiB read of a page-cache file costs the I/O thread, and with O_DIRECT.
//!
//! A driver on this thread keeps `depth` requests in flight against a real disk on a real I/O thread, by
//! polling as a ring-3 guest would; kicks are eventfd writes, as KVM's are. Printed are CPU time of the
//! I/O thread and wall time per request, beside a plain `pread` loop over the same offsets.
//!
//! `cargo bench -p tdvmm-devices --bench block [-- FILE]`; without FILE a file of 256 MiB is made in
//! /var/tmp.
#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tdvmm_devices::virtio::block::{Block, BlockOptions, DiskOptions, Engine, ImageFormat};

#[path = "../tests/driver/mod.rs"]
mod driver;
use driver::pci::Card;
use driver::{Driver, ram};

const REQUESTS: u64 = 200_000;
const SIZE: u16 = 256;
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x1_f000;
const DATA: u64 = 0x10_0000;

struct Random(u64);

impl Random {
    /// A page of the file.
    fn page(&mut self, pages: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % pages
    }
}

/// Nanoseconds that the thread of this name has run, of this process.
fn cpu_of(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc is mounted");
    tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let comm = std::fs::read_to_string(path.join("comm")).ok()?;
            let stat = std::fs::read_to_string(path.join("schedstat")).ok()?;
            let ran: u64 = stat.split(' ').next()?.parse().ok()?;
            (comm.trim() == name).then_some(ran)
        })
        .sum()
}

/// CPU and wall nanoseconds per request.
fn measure(path: &Path, direct: bool, engine: Engine, depth: u16) -> (f64, f64, u64) {
    let disk = DiskOptions {
        path: path.to_owned(),
        read_only: true,
        direct,
        format: ImageFormat::Raw,
        backing_files: false,
    };
    let options = BlockOptions {
        engine,
        queue_size: SIZE,
        ..BlockOptions::default()
    };
    let block = Block::open(&disk, &options).expect("the file can be opened");
    let pages = block.geometry().size / 4096;
    let ram = ram(&[(0, 0x40_0000)]);
    let mut ring = Driver::new(Arc::clone(&ram), 0x1000, SIZE);
    let mut card = Card::new(Box::new(block), ring.view());
    card.start(u64::MAX, &[&ring]);
    let mut random = Random(88_172_645_463_325_252);
    for n in 0..depth {
        let header = HEADERS + 16 * u64::from(n);
        ring.write(header, &[0; 16]);
        let data = DATA + 4096 * u64::from(n);
        let status = STATUSES + u64::from(n);
        ring.chain(
            n * 3 % 252,
            &[(header, 16, false), (data, 4096, true), (status, 1, true)],
        );
    }
    let mut put = |ring: &mut Driver, n: u16| {
        let sector = random.page(pages) * 8;
        ring.write(HEADERS + 16 * u64::from(n) + 8, &sector.to_le_bytes());
        ring.offer(n * 3);
    };
    let kicks = |ring: &Driver, before: u16| {
        // Whether the available index passed avail_event (virtio 1.3, 2.7.10.1).
        let (new, event) = (ring.avail, ring.avail_event());
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(before)
    };
    let requests = if direct { REQUESTS / 8 } else { REQUESTS };
    let (cpu, start) = (cpu_of("tdvmm-io"), Instant::now());
    let mut kicked = 0;
    let before = ring.avail;
    for n in 0..depth {
        put(&mut ring, n);
    }
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    if kicks(&ring, before) {
        card.kick(0);
    }
    let mut done = 0;
    while done < requests {
        // Never asks for an interrupt: used_event stays behind.
        ring.set_used_event(ring.seen.wrapping_sub(2));
        let before = ring.avail;
        while let Some((head, _)) = ring.collect() {
            done += 1;
            put(&mut ring, u16::try_from(head / 3).unwrap_or(0));
        }
        if before == ring.avail {
            std::hint::spin_loop();
            continue;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if kicks(&ring, before) {
            kicked += 1;
            card.kick(0);
        }
    }
    let per = |total: f64| total / f64::from(u32::try_from(done).unwrap_or(u32::MAX));
    let wall = start.elapsed().as_secs_f64() * 1e9;
    let cpu = u32::try_from((cpu_of("tdvmm-io") - cpu) / 1000).unwrap_or(u32::MAX);
    let status = ring.read(STATUSES, 1);
    assert_eq!(status, [0], "requests succeed");
    (per(f64::from(cpu) * 1000.0), per(wall), kicked)
}

/// A loop of `pread` over the same offsets.
fn plain(path: &Path) -> f64 {
    let file = File::open(path).expect("the file can be opened");
    // A block device has no length in its metadata.
    let pages = (&file).seek(SeekFrom::End(0)).expect("it is open") / 4096;
    let mut random = Random(88_172_645_463_325_252);
    let mut page = [0; 4096];
    let start = Instant::now();
    for _ in 0..REQUESTS {
        let at = random.page(pages) * 4096;
        file.read_exact_at(&mut page, at).expect("in the file");
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(u32::try_from(REQUESTS).unwrap_or(1))
}

fn image() -> (PathBuf, Option<tempfile::NamedTempFile>) {
    if let Some(path) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        return (path.into(), None);
    }
    let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("/var/tmp is writable");
    let piece = vec![0x5a; 1 << 20];
    for _ in 0..256 {
        file.as_file().write_all(&piece).expect("there is room");
    }
    file.as_file().sync_all().expect("there is room");
    (file.path().to_owned(), Some(file))
}

fn main() {
    let (path, _file) = image();
    plain(&path);
    let loop_ns = plain(&path);
    println!("random 4 KiB reads                cpu us   wall us   kicks   cpu / pread loop");
    println!(
        "pread loop                     {:9.2} {:9.2}",
        loop_ns / 1e3,
        loop_ns / 1e3
    );
    for (name, direct, engine, depths) in [
        (
            "page cache, inline",
            false,
            Engine::Uring,
            [1, 32].as_slice(),
        ),
        (
            "O_DIRECT, io_uring",
            true,
            Engine::Uring,
            [1, 32, 128].as_slice(),
        ),
        ("O_DIRECT, blocking", true, Engine::Blocking, [1].as_slice()),
    ] {
        for depth in depths {
            let runs = (0..3).map(|_| measure(&path, direct, engine, (*depth).min(84)));
            let best = runs.min_by(|a, b| a.0.total_cmp(&b.0)).expect("three runs");
            let (cpu, wall, kicks) = best;
            let times = cpu / loop_ns;
            println!(
                "{name}, depth {depth:<4} {:9.2} {:9.2} {kicks:8} {times:8.2}",
                cpu / 1e3,
                wall / 1e3
            );
        }
    }
}
