//! MRTD of an image of OVMF's size against SHA-384 over the same stream of bytes.
//!
//! The stream is what the TDX module hashes for the image: 128 bytes for each page, and for each 256
//! measured bytes 128 more. The calculator never has it as a whole and may take 1.3 times as long:
//! with `--check` it is an error if it takes longer.

#![expect(clippy::print_stdout, reason = "a bench reports there")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use sha2::{Digest, Sha384};
use tdvmm_arch::GpaRange;
use tdvmm_firmware::measure::{Measure, Order, Region, mrtd};

const CODE: usize = 0x37_c000;
const ORDERS: [(&str, Order); 2] = [("per page", Order::PerPage), ("two passes", Order::TwoPass)];
/// The time that the calculator may take, SHA-384 over the stream being 1.
const LIMIT: f64 = 1.3;
/// How often each is timed for the check. The least counts: whatever else the machine does only adds to it.
const ROUNDS: u32 = 20;

fn image() -> Vec<u8> {
    (0..CODE).map(|byte| byte.to_le_bytes()[0]).collect()
}

fn regions(code: &[u8]) -> [Region<'_>; 2] {
    let region = |start, len, measure, bytes| Region {
        range: GpaRange::constant(start, len),
        measure,
        bytes,
    };
    [
        region(0xffc8_4000, CODE as u64, Measure::Yes, code),
        region(0x80_0000, 0x9_0000, Measure::No, &[]),
    ]
}

/// Bytes that are hashed for the two regions.
fn stream() -> Vec<u8> {
    let pages = CODE / 4096 + 0x90;
    let chunks = CODE / 256;
    vec![0x5a; pages * 128 + chunks * 384]
}

fn mrtd_and_sha384(criterion: &mut Criterion) {
    let (code, stream) = (image(), stream());
    let mut group = criterion.benchmark_group("mrtd");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("sha384 of the stream", |bencher| {
        bencher.iter(|| Sha384::digest(black_box(&stream)));
    });
    for (name, order) in ORDERS {
        let regions = regions(&code);
        group.bench_function(name, |bencher| {
            bencher.iter(|| mrtd(order, black_box(&regions)));
        });
    }
    group.finish();
}

fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let begin = Instant::now();
    black_box(work());
    begin.elapsed()
}

/// Times all by turns, since the machine's speed changes, and compares the least of each.
fn check() -> ExitCode {
    let (code, stream) = (image(), stream());
    let regions = regions(&code);
    let mut floor = Duration::MAX;
    let mut least = [Duration::MAX; ORDERS.len()];
    for _ in 0..ROUNDS {
        floor = floor.min(time(|| Sha384::digest(black_box(&stream))));
        for (least, (_, order)) in least.iter_mut().zip(ORDERS) {
            *least = time(|| mrtd(order, black_box(&regions))).min(*least);
        }
    }
    let mut exit = ExitCode::SUCCESS;
    println!("sha384 of the stream: {floor:.1?}");
    for ((name, _), least) in ORDERS.iter().zip(least) {
        let ratio = least.as_secs_f64() / floor.as_secs_f64();
        println!("mrtd, {name}: {least:.1?}, {ratio:.2} of it");
        if ratio > LIMIT {
            println!("more than {LIMIT}");
            exit = ExitCode::FAILURE;
        }
    }
    exit
}

criterion_group!(benches, mrtd_and_sha384);

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--check") {
        return check();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
    ExitCode::SUCCESS
}
