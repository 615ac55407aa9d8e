//! MRTD of an image of OVMF's size against SHA-384 over the same stream of bytes.
//!
//! The stream is what the TDX module hashes for the image: 128 bytes for each page, and for each 256
//! measured bytes 128 more. The calculator never has it as a whole and may take 1.3 times as long.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest, Sha384};
use tdvmm_arch::GpaRange;
use tdvmm_firmware::measure::{Measure, Order, Region, mrtd};

const CODE: usize = 0x37_c000;

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
    for (name, order) in [("per page", Order::PerPage), ("two passes", Order::TwoPass)] {
        let regions = regions(&code);
        group.bench_function(name, |bencher| {
            bencher.iter(|| mrtd(order, black_box(&regions)));
        });
    }
    group.finish();
}

criterion_group!(benches, mrtd_and_sha384);
criterion_main!(benches);
