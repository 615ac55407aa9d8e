//! A firmware file planned as a TD: where it may lie, what its variables change, and what the launch logs.

use std::fs;

use tdvmm::config::{PayloadConfig, VmConfig, validate};
use tdvmm::payload::open_payload;
use tdvmm::plan::Plan;
use tdvmm::plan::td::TdPlan;
use tdvmm_arch::GpaRange;
use tdvmm_firmware::measure::{Measure, MeasurementLog, Order, Region};
use tdvmm_tdx::fake::{self, FakeTd, FakeVcpu};
use tdvmm_tdx::log;
use tdvmm_tdx::pages::PageBuffer;
use tdvmm_tdx::td::{Runnable, Td, VcpuCount, VmSetup};

use crate::image::{IN_RAM, LEN, image, image_after, variables};

/// The plan of a TD with this image, and with `vars` in the place of its variables.
fn planned(image: &[u8], vars: Option<&[u8]>) -> Result<TdPlan, String> {
    let folder = tempfile::tempdir().unwrap();
    let write = |name, bytes: &[u8]| {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        file
    };
    let mut config = VmConfig {
        payload: PayloadConfig {
            firmware: Some(write("image.fd", image)),
            firmware_vars: vars.map(|vars| write("vars.fd", vars)),
            ..PayloadConfig::default()
        },
        ..VmConfig::default()
    };
    config.platform.tdx = true;
    let machine = validate(&config).unwrap();
    let (facts, _) = open_payload(&machine.payload).map_err(|error| error.to_string())?;
    let plan = Plan::new(&machine, &facts).map_err(|error| error.to_string())?;
    Ok(plan.td.unwrap())
}

#[test]
fn image_as_large_as_the_room_for_firmware_is_planned_and_no_larger_one() {
    let largest = planned(&image_after((16 << 20) - LEN, IN_RAM), None).unwrap();
    assert_eq!(largest.firmware.start().0, 0xff00_0000);
    let refused = planned(&image_after((16 << 20) - LEN + 4096, IN_RAM), None).unwrap_err();
    assert!(refused.starts_with("--firmware "), "{refused}");
    assert!(refused.contains("larger than the 16 MiB"), "{refused}");
}

#[test]
fn section_beside_the_devices_is_planned_and_none_in_their_place() {
    for (temporary, is_free) in [
        (0xfc00_0000, false),
        (0xfebf_f000, false),
        (0xfec0_0000, false),
        (0xfee0_0000, false),
        (0xfee0_1000, true),
        (0xff00_0000, true),
    ] {
        let plan = planned(&image_after(0, temporary), None);
        match plan {
            Ok(plan) => assert!(is_free && plan.firmware.start().0 == temporary),
            Err(refused) => {
                assert!(!is_free, "{temporary:#x}: {refused}");
                assert!(refused.contains("image.fd: has a section"), "{refused}");
            }
        }
    }
}

#[test]
fn other_variables_change_what_is_loaded_as_variables_and_not_mrtd() {
    let own = planned(&image(), None).unwrap();
    let vars = variables(0x22);
    let other = planned(&image(), Some(&vars)).unwrap();
    assert_eq!(other.mrtd, own.mrtd);
    assert_eq!(other.regions.len(), own.regions.len());
    let changed: Vec<_> = other
        .regions
        .iter()
        .zip(&own.regions)
        .filter(|(other, own)| other.bytes != own.bytes)
        .collect();
    let [(other, own)] = changed[..] else {
        panic!("{} regions changed", changed.len())
    };
    // Firmware measures it into RTMR[0].
    assert_eq!(other.range.start().0, 0xffff_0000);
    assert_eq!(other.bytes, vars);
    assert_eq!(own.bytes, variables(0x11));
}

/// Launches what was planned, as `machine::launch_td` does, on a fake kernel.
fn launched(plan: &TdPlan, td: &FakeTd) -> Runnable<FakeTd, FakeVcpu> {
    let mut loading = Td::create(td.clone(), &VmSetup::default())
        .unwrap()
        .init(&fake::params())
        .unwrap()
        .create_vcpus(VcpuCount::new(1).unwrap(), plan.hob, fake::wanted_cpuid)
        .unwrap();
    for region in &plan.regions {
        let len = usize::try_from(region.range.len()).unwrap();
        let pages = PageBuffer::from_content(&region.bytes, len).unwrap();
        let measure = match region.measure {
            Measure::Yes => log::Measure::Yes,
            Measure::No => log::Measure::No,
        };
        loading = loading
            .add_region(pages.source(), region.range.start(), measure)
            .unwrap();
    }
    loading.finalize().unwrap()
}

/// The launch and the verifier keep a log each, as their crates do not know each other. They have to be the same, so that
/// what replays one explains the other.
#[test]
fn launch_logs_what_replays_to_the_mrtd_of_the_plan() {
    let plan = planned(&image(), None).unwrap();
    let td = FakeTd::default();
    let parts = launched(&plan, &td).into_parts();
    assert_eq!(td.kernel().mrtd().0, *plan.mrtd.as_bytes());

    let mut replayable = MeasurementLog::new();
    for region in &plan.regions {
        let region = Region {
            range: region.range,
            measure: region.measure,
            bytes: &region.bytes,
        };
        replayable.record(&region).unwrap();
    }
    let wanted = replayable.entries().iter();
    let wanted: Vec<(GpaRange, bool, [u8; 48])> = wanted
        .map(|e| (e.range, e.measured == Measure::Yes, *e.sha384.as_bytes()))
        .collect();
    assert_eq!(wanted.len(), 4);
    let kept = parts.log.regions().iter();
    let kept: Vec<_> = kept
        .map(|r| (r.range, r.measure == log::Measure::Yes, r.digest.0))
        .collect();
    assert_eq!(kept, wanted);
    // What `--transcript` writes is read back to the same.
    assert_eq!(parts.transcript.measurement_log().unwrap(), parts.log);

    let replayed = replayable.replay(Order::PerPage, |entry, _| {
        plan.regions.get(entry).map(|region| &*region.bytes)
    });
    assert_eq!(replayed.unwrap(), plan.mrtd);
}
