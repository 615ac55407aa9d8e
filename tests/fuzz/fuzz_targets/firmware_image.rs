//! A nearly legal image goes through everything that is done with one before a launch.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use tdvmm_arch::{Gpa, GpaRange};
use tdvmm_firmware::hob::{self, Extensions};
use tdvmm_firmware::image::{Contents, Image};
use tdvmm_firmware::inspect;
use tdvmm_firmware::measure::{MeasurementLog, Order, mrtd};
use tdvmm_fuzz::firmware::image;

/// Measuring costs time in proportion to memory; more says nothing new.
const MEASURED_AT_MOST: u64 = 512 << 10;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = image::build(&mut Unstructured::new(bytes)) else {
        return;
    };
    let Ok(image) = Image::parse(&file) else {
        return;
    };
    let ram = GpaRange::constant(0, 0x8000_0000);
    if let Ok(hob) = hob::build(&image, &[ram], 4, &Extensions::default()) {
        let memory = hob.memory();
        assert!(
            memory
                .windows(2)
                .all(|p| p[0].range.end() == p[1].range.start())
        );
        assert_eq!(
            memory.last().map(|last| last.range.end()),
            Some(Gpa(0x8000_0000))
        );
    }
    let regions = image
        .regions(&Contents::default())
        .expect("no contents are given");
    let total: u64 = regions.iter().map(|region| region.range.len()).sum();
    if total > MEASURED_AT_MOST {
        return;
    }
    let mut log = MeasurementLog::new();
    for region in &regions {
        log.record(region).expect("regions of an image are legal");
    }
    for order in [Order::PerPage, Order::TwoPass] {
        let direct = mrtd(order, &regions).expect("regions of an image are legal");
        let replayed = log.replay(order, |at, _| regions.get(at).map(|region| region.bytes));
        assert_eq!(replayed, Ok(direct));
    }
    let report = inspect::report(&file).expect("the image is legal");
    assert_eq!(report.sections.len(), image.sections().len());
    assert!(!report.to_string().is_empty());
});
