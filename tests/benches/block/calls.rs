//! What the requests of a disk do not cost: a wait for another thread, or an exit to user space.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use tdvmm_tests::native::calls::{Call, trace};
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;
use tdvmm_tests::native::load::{self, Kind, Load};
use tdvmm_tests::programs;

/// System calls while the guest made its requests.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    /// Of `futex`, by any thread.
    futexes: u32,
    /// Of `KVM_RUN`; one brings the guest back from its first byte.
    entries: u32,
    /// Of all threads but the vCPU's.
    others: u32,
}

/// What is wrong, for a guest that polls and one that waits for interrupts.
pub fn check() -> Result<Vec<String>> {
    super::needs()?;
    let tdvmm = programs::build(programs::TDVMM)?;
    let mut wrong = Vec::new();
    for irq in [false, true] {
        let calls = count(&tdvmm, irq)?;
        println!("interrupts {irq}: {calls:?}");
        if calls.futexes > 0 || calls.entries != 1 || calls.others == 0 {
            wrong.push(format!(
                "interrupts {irq}: {calls:?}, where there should be no futex, one entry and some others"
            ));
        }
    }
    Ok(wrong)
}

/// Counts between the guest's two bytes on the serial port, between which it makes requests only.
fn count(tdvmm: &Path, irq: bool) -> Result<Calls> {
    let folder = Folder::create()?;
    let load = Load {
        depth: 32,
        irq,
        kind: Kind::Read,
        requests: 2000,
        pages: 1024,
        ends: true,
    };
    let defines = load.defines();
    let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
    let kernel = guest::assemble("blk_load", &defines, folder.path())?;
    let image = folder.join("image");
    fs::write(&image, load::image(load.pages))?;
    let mut command = Command::new(tdvmm);
    command.arg("--kernel").arg(&kernel);
    command.args(["--memory", "size=64M", "--serial"]);
    command.arg(format!("file={}", folder.join("serial").display()));
    command.arg("--disk");
    command.arg(format!("path={}", image.display()));
    let (mut vcpu, mut bytes, mut calls) = (None, 0, Calls::default());
    trace(command, |call| {
        if call.is_kvm_run() {
            vcpu = Some(call.thread);
        }
        if vcpu == Some(call.thread) && is_serial_byte(&call) {
            bytes += 1;
            return (bytes == 2).then_some(calls);
        }
        if bytes == 1 {
            calls.entries += u32::from(call.is_kvm_run());
            calls.futexes += u32::from(call.number == libc::SYS_futex);
            calls.others += u32::from(vcpu != Some(call.thread));
        }
        None
    })
}

/// What goes to an event descriptor has eight bytes.
fn is_serial_byte(call: &Call) -> bool {
    call.number == libc::SYS_write && call.third == 1
}
