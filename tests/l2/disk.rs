//! A disk, seen by a driver of a few lines: configuration space, kick, transfer and interrupt; and under
//! load, with one and with many requests in flight, polled and by interrupts.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tdvmm_tests::native::load::{self, Kind, Load};
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
    for (irq, how) in [(false, "polling"), (true, "with_interrupts")] {
        for depth in [1, 32] {
            for (kind, what) in [(Kind::Read, "reads"), (Kind::Write, "writes")] {
                let load = Load {
                    depth,
                    irq,
                    kind,
                    ..LOAD
                };
                let name = format!("disk_at_depth_{depth}_{how}_{what}_every_page_right");
                cases.push(Case::guest(name, move |lab| under_load(lab, &load)));
            }
        }
    }
    cases.push(Case::guest(
        "disk_under_load_makes_no_futex_call_and_no_exit",
        |_| no_calls(),
    ));
    cases.push(Case::guest("disk_with_a_wrong_page_is_noticed", |lab| {
        let vm = lab.guest("blk_load", &LOAD.defines())?;
        let image = vm.folder().join("image");
        let mut bytes = load::image(LOAD.pages);
        bytes.chunks_mut(load::PAGE).for_each(|page| page[0] ^= 1);
        fs::write(&image, bytes)?;
        let end = vm.args(["--disk", &option(&image, "")]).run()?;
        end.expect(0, OFF)?;
        let said = String::from_utf8_lossy(&end.serial);
        ensure!(said.starts_with("sfailed at line"), "{said}");
        Ok(())
    }));
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

/// Several hundred turns of the ring.
const LOAD: Load = Load {
    depth: 32,
    irq: false,
    kind: Kind::Read,
    requests: 20_000,
    pages: 1024,
    ends: true,
};

fn under_load(lab: &Lab, load: &Load) -> Result<()> {
    let vm = lab.guest("blk_load", &load.defines())?;
    let image = vm.folder().join("image");
    let blank = vec![0; load::image(load.pages).len()];
    let expected = load::image(load.pages);
    match load.kind {
        Kind::Read => fs::write(&image, &expected)?,
        Kind::Write => fs::write(&image, &blank)?,
    }
    let file = image.clone();
    // Longer than usual: where a vCPU spins on each processor, a request may wait for the scheduler's next tick.
    let vm = vm
        .args(["--disk", &option(&image, "")])
        .patience(Duration::from_secs(300));
    // The folder goes with the run, so the image is looked at before.
    let mut running = vm.start()?;
    running.wait_for_serial("se")?;
    let bytes = fs::read(&file)?;
    let end = running.wait()?;
    end.expect_serial("se")?;
    end.expect(0, OFF)?;
    // All pages are hit by so many requests: the chance that one is not is below 10^-5.
    ensure!(
        bytes == expected,
        "the image is not what was read or written"
    );
    Ok(())
}

/// The bench counts, in a process of its own: it waits for any child.
fn no_calls() -> Result<()> {
    let bench = Command::new(env!("CARGO_BIN_EXE_block-bench"))
        .arg("--calls")
        .output()
        .context("cannot run the bench")?;
    ensure!(
        bench.status.success(),
        "{}{}",
        String::from_utf8_lossy(&bench.stdout),
        String::from_utf8_lossy(&bench.stderr)
    );
    Ok(())
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
