//! What a chain of three descriptors costs: take, walk, translate, give back, publish.
//!
//! `cargo bench -p tdvmm-devices --bench queue` prints nanoseconds and, where valgrind is installed,
//! instructions per chain for this queue and for `virtio-queue`. Instructions are the difference of two
//! runs under callgrind, so set-up does not count and the figure repeats exactly. With `--check` it
//! fails if this queue needs more than a fifth of the instructions.
#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use tdvmm_devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, Queue};
use virtio_queue::{Queue as Oracle, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

#[path = "../tests/driver/mod.rs"]
mod driver;
use driver::{Desc, Driver, INDIRECT, NEXT, WRITE, ram};

const SIZE: u16 = 256;
const PARTS: [(u64, u32, u16); 3] = [
    (0x4_0000, 16, NEXT),
    (0x5_0000, 4096, NEXT | WRITE),
    (0x6_0000, 1, WRITE),
];

/// How many chains the driver adds before the device looks.
const DEPTHS: [u16; 2] = [1, 32];

#[derive(Clone, Copy)]
enum Shape {
    Direct,
    Indirect,
}

/// 64 chains in the ring, laid down once; the driver only raises its index.
fn prepare(shape: Shape) -> Driver {
    let driver = Driver::new(ram(&[(0, 0x10_0000), (1 << 32, 0x10_0000)]), 0x1000, SIZE);
    for chain in 0..64u16 {
        let table = 0x1_0000 + u64::from(chain) * 64;
        for (i, (addr, len, flags)) in (0u16..).zip(PARTS) {
            let (next, at) = match shape {
                Shape::Direct => (
                    chain * 3 + i + 1,
                    driver.at.desc + u64::from(chain * 3 + i) * 16,
                ),
                Shape::Indirect => (i + 1, table + u64::from(i) * 16),
            };
            let desc = Desc {
                addr,
                len,
                flags,
                next,
            };
            driver.write(at, &desc.bytes());
        }
        if matches!(shape, Shape::Indirect) {
            let entry = Desc {
                addr: table,
                len: 48,
                flags: INDIRECT,
                next: 0,
            };
            driver.desc(chain * 3, entry);
        }
    }
    for position in 0..SIZE {
        driver.entry(position, position % 64 * 3);
    }
    driver
}

fn ours(shape: Shape, batches: u32, depth: u16) {
    let mut driver = prepare(shape);
    let features = F_EVENT_IDX | F_INDIRECT_DESC;
    let mut queue = Queue::new(&driver.view(), &driver.resources(0), features).expect("good ring");
    let mut chain = queue.new_chain();
    for _ in 0..batches {
        driver.avail = driver.avail.wrapping_add(depth);
        raise(&driver);
        queue.begin_batch().expect("good index");
        while queue.take(&mut chain).expect("good chain") {
            // All segments are walked and translated by now; any of them might be used here.
            black_box(&mut chain);
            queue.add_used(chain.head(), 4097);
        }
        black_box(queue.publish());
        black_box(queue.enable_kicks());
    }
}

fn baseline(shape: Shape, batches: u32, depth: u16) {
    let mut driver = prepare(shape);
    let memory = &*driver.ram.clone();
    let mut queue = Oracle::new(SIZE).expect("good size");
    queue.set_size(SIZE);
    queue
        .try_set_desc_table_address(GuestAddress(driver.at.desc))
        .expect("good address");
    queue
        .try_set_avail_ring_address(GuestAddress(driver.at.avail))
        .expect("good address");
    queue
        .try_set_used_ring_address(GuestAddress(driver.at.used))
        .expect("good address");
    queue.set_event_idx(true);
    queue.set_ready(true);
    let mut done = Vec::with_capacity(64);
    for _ in 0..batches {
        driver.avail = driver.avail.wrapping_add(depth);
        raise(&driver);
        for chain in queue.iter(memory).expect("good index") {
            let head = chain.head_index();
            for desc in chain {
                let len = usize::try_from(desc.len()).expect("small");
                let slice = memory.get_slice(desc.addr(), len).expect("in memory");
                black_box((slice.ptr_guard_mut().as_ptr(), slice.len()));
            }
            done.push(head);
        }
        for head in done.drain(..) {
            queue.add_used(memory, head, 4097).expect("good ring");
        }
        black_box(queue.needs_notification(memory).expect("good ring"));
        black_box(queue.enable_notification(memory).expect("good ring"));
    }
}

/// One store, so that the driver's side does not count for much.
fn raise(driver: &Driver) {
    let at = GuestAddress(driver.at.avail + 2);
    driver
        .ram
        .store(driver.avail, at, std::sync::atomic::Ordering::Release)
        .expect("in memory");
}

/// The driver's side alone, to be taken off both.
fn nothing(shape: Shape, batches: u32, depth: u16) {
    let mut driver = prepare(shape);
    for _ in 0..batches {
        driver.avail = driver.avail.wrapping_add(depth);
        raise(&driver);
    }
}

type Run = fn(Shape, u32, u16);
const RUNS: [(&str, Run); 3] = [("none", nothing), ("ours", ours), ("base", baseline)];

/// Instructions of this program when it is run again as a child with these arguments.
fn count(run: &str, shape: Shape, batches: u32, depth: u16) -> Option<f64> {
    let shape = if matches!(shape, Shape::Direct) {
        "direct"
    } else {
        "indirect"
    };
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args([
            "--child",
            run,
            shape,
            &batches.to_string(),
            &depth.to_string(),
        ])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn per_chain(run: &str, shape: Shape, depth: u16) -> Option<f64> {
    let (few, many) = (200, 1200);
    let more = count(run, shape, many, depth)? - count(run, shape, few, depth)?;
    Some(more / f64::from(many - few) / f64::from(depth))
}

fn nanoseconds(run: Run, shape: Shape, depth: u16) -> f64 {
    let batches = 4_000_000 / u32::from(depth);
    let once = || {
        let start = Instant::now();
        run(shape, batches, depth);
        start.elapsed().as_secs_f64() * 1e9 / f64::from(batches) / f64::from(depth)
    };
    (0..5).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn child(args: &[String]) -> Option<()> {
    let [run, shape, batches, depth] = args else {
        return None;
    };
    let (_, run) = RUNS.iter().find(|(name, _)| name == run)?;
    let shape = if shape == "direct" {
        Shape::Direct
    } else {
        Shape::Indirect
    };
    run(shape, batches.parse().ok()?, depth.parse().ok()?);
    Some(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--child") {
        return child(args.get(1..).unwrap_or_default()).expect("arguments of our own");
    }
    let mut worst = 0f64;
    println!("shape     depth  instructions: ours  virtio-queue  ratio   ns: ours  virtio-queue");
    for (name, shape) in [("direct", Shape::Direct), ("indirect", Shape::Indirect)] {
        for depth in DEPTHS {
            let counted = || {
                let none = per_chain("none", shape, depth)?;
                let ours = per_chain("ours", shape, depth)? - none;
                Some((ours, per_chain("base", shape, depth)? - none))
            };
            let time = |run| nanoseconds(run, shape, depth) - nanoseconds(nothing, shape, depth);
            let (ns, base_ns) = (time(ours), time(baseline));
            let (count, base, ratio) = match counted() {
                Some((ours, base)) => {
                    worst = worst.max(ours / base);
                    (
                        format!("{ours:.1}"),
                        format!("{base:.1}"),
                        format!("{:.3}", ours / base),
                    )
                }
                None => ("-".into(), "-".into(), "-".into()),
            };
            println!(
                "{name:9} {depth:5} {count:>19} {base:>13} {ratio:>6} {ns:10.1} {base_ns:13.1}"
            );
        }
    }
    if args.iter().any(|arg| arg == "--check") && worst > 0.2 {
        println!("more than a fifth of the baseline's instructions");
        std::process::exit(1);
    }
}
