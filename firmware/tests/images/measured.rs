//! MRTD of synthetic images against a second computation that starts from the section table.

use tdvmm_firmware::image::{Contents, Image};
use tdvmm_firmware::measure::{Measure, MeasurementLog, Order, Region, ReplayError, mrtd};

use crate::second_mrtd::{TWO_PASS, UPSTREAM, expected};
use crate::synthetic::{self, Lead, Row};

const SHIM_LEN: usize = 16 << 20;

fn assert_mrtd(len: usize, rows: &[Row], payload: &[u8]) {
    let file = synthetic::image(len, Lead::Both, rows);
    let image = Image::parse(&file).expect("the image is legal");
    let contents = Contents {
        payload: (!payload.is_empty()).then_some(payload),
        ..Contents::default()
    };
    let regions = image.regions(&contents).expect("the payload fits");
    let of = |order| mrtd(order, &regions).unwrap().to_string();
    for (order, two_pass) in [(Order::PerPage, UPSTREAM), (Order::TwoPass, TWO_PASS)] {
        let expected = expected(&file, rows, payload, two_pass);
        assert_eq!(of(order), expected, "{order:?}");
        assert_eq!(replayed(order, &regions), expected, "{order:?}");
    }
}

fn replayed(order: Order, regions: &[Region<'_>]) -> String {
    let mut log = MeasurementLog::new();
    for region in regions {
        log.record(region).unwrap();
    }
    let contents = |index: usize, _: &_| regions.get(index).map(|region| region.bytes);
    log.replay(order, contents).unwrap().to_string()
}

#[test]
fn mrtd_of_ovmf_sections_matches_second_computation() {
    assert_mrtd(4 << 20, &synthetic::ovmf(), &[]);
}

#[test]
fn mrtd_of_shim_that_boots_a_kernel_does_not_depend_on_the_kernel() {
    let rows = synthetic::shim_boot_kernel();
    assert_mrtd(SHIM_LEN, &rows, &[]);
    assert_mrtd(SHIM_LEN, &rows, &[0x5a; 0x1_2345]);
}

#[test]
fn mrtd_of_shim_with_elf_in_bfv_matches_second_computation() {
    assert_mrtd(SHIM_LEN, &synthetic::shim_elf_in_bfv(), &[]);
}

#[test]
fn mrtd_of_shim_with_payload_section_matches_second_computation() {
    assert_mrtd(SHIM_LEN, &synthetic::shim_payload_section(0), &[]);
    assert_mrtd(SHIM_LEN, &synthetic::shim_payload_section(1), &[]);
}

#[test]
fn mrtd_of_custom_shim_with_measured_after_unmeasured_matches_second_computation() {
    assert_mrtd(SHIM_LEN, &synthetic::shim_custom(), &[]);
}

#[test]
fn mrtd_with_measured_section_after_unmeasured_one_matches_second_computation() {
    let mut rows = synthetic::ovmf();
    rows.rotate_left(1);
    assert_mrtd(4 << 20, &rows, &[]);
}

#[test]
fn mrtd_of_measured_payload_from_the_vmm_depends_on_it() {
    let mut rows = synthetic::shim_boot_kernel();
    rows[6].attributes = 1;
    rows[6].memory_size = 0x4_0000;
    assert_mrtd(SHIM_LEN, &rows, &[0xa5; 0x1_2345]);
}

#[test]
fn mrtd_of_nothing_is_the_digest_of_nothing() {
    let empty = "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da\
                 274edebfe76f65fbd51ad2f14898b95b";
    assert_eq!(mrtd(Order::PerPage, []).unwrap().to_string(), empty);
}

#[test]
fn replay_with_other_contents_is_refused() {
    let range = tdvmm_arch::GpaRange::constant(0x1000, 0x2000);
    let region = Region {
        range,
        measure: Measure::Yes,
        bytes: &[1, 2, 3, 0],
    };
    let mut log = MeasurementLog::new();
    log.record(&region).unwrap();
    let with = |bytes: Option<&'static [u8]>| log.replay(Order::PerPage, |_, _| bytes);

    let whole = mrtd(Order::PerPage, [&region]).unwrap();
    assert_eq!(with(Some(&[1, 2, 3])), Ok(whole));
    assert!(matches!(
        with(Some(&[1, 2, 4])),
        Err(ReplayError::Differs { entry: 0, .. })
    ));
    assert_eq!(with(None), Err(ReplayError::Missing { entry: 0, range }));
}

#[test]
fn log_of_unmeasured_region_replays_without_its_contents() {
    let region = Region {
        range: tdvmm_arch::GpaRange::constant(0x1000, 0x2000),
        measure: Measure::No,
        bytes: &[9; 0x1800],
    };
    let mut log = MeasurementLog::new();
    log.record(&region).unwrap();
    assert_eq!(
        log.replay(Order::TwoPass, |_, _| None),
        Ok(mrtd(Order::TwoPass, [&region]).unwrap())
    );
}
