//! A firmware file planned as a TD: where it may lie, what its variables change, and what the launch logs.

use std::fs;

use tdvmm::config::{PayloadConfig, VmConfig, validate};
use tdvmm::payload::open_payload;
use tdvmm::plan::Plan;
use tdvmm::plan::td::TdPlan;

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
