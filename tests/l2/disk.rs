//! A disk, seen by a driver of a few lines: configuration space, kick, transfer and interrupt.

use std::fs;
use std::path::Path;

use anyhow::Result;
use tdvmm_tests::native::needs::Need;

use crate::lab::{Case, Lab};

const OFF: &str = "the guest switched itself off";
const BAD_CONFIG: i32 = 152;
const TEXT: &[u8; 16] = b"on sector two...";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::guest("disk_sector_is_read_with_an_interrupt", |lab| read(lab, "")),
        Case::guest("disk_that_is_read_only_is_read_too", |lab| {
            read(lab, ",readonly=on")
        }),
        Case::guest("disk_of_another_format_is_refused", |lab| {
            let vm = lab.machine("blk", &[])?;
            let image = vm.folder().join("image");
            fs::write(&image, b"QFI\xfb\0\0\0\x03")?;
            let end = vm.args(["--disk", &option(&image, "")]).run()?;
            end.expect(BAD_CONFIG, "--disk path=")
        }),
    ];
    let wrong = [
        (
            "queue_size_of_no_power",
            "path=a,queue_size=100",
            "--disk queue_size=100: ",
        ),
        (
            "key_that_is_unknown",
            "path=a,frobs=1",
            "--disk path=a,frobs=1: unknown key",
        ),
    ];
    cases.extend(wrong.into_iter().map(|(name, value, line)| {
        Case::needing(format!("disk_{name}_is_refused"), &[Need::Cc], move |lab| {
            let end = lab.machine("blk", &[])?.args(["--disk", value]).run()?;
            end.expect(BAD_CONFIG, line)
        })
    }));
    cases
}

fn option(image: &Path, more: &str) -> String {
    format!("path={}{more}", image.display())
}

fn read(lab: &Lab, more: &str) -> Result<()> {
    let vm = lab.machine("blk", &[])?;
    let image = vm.folder().join("image");
    let mut bytes = vec![0; 4096];
    bytes[1024..1040].copy_from_slice(TEXT);
    fs::write(&image, bytes)?;
    let end = vm.args(["--disk", &option(&image, more)]).run()?;
    end.expect_serial("on sector two...\n")?;
    end.expect(0, OFF)
}
