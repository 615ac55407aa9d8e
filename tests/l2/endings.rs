//! Every way in which a run ends: its exit code, and the line that says why.

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;
use tdvmm_tests::native::needs::Need;
use tdvmm_tests::native::vm::Vm;

use crate::lab::{Case, Lab};

const RESET: &str = "the guest asked for a reset";
const OFF: &str = "the guest switched itself off";

/// Registers whose write ends the machine: width, port, value; exit code and line.
const REGISTERS: [(&str, [&str; 3], i32, &str); 5] = [
    (
        "reset_control_write_ends_as_reset",
        ["B", "0xcf9", "0x06"],
        10,
        RESET,
    ),
    (
        "i8042_reset_command_ends_as_reset",
        ["B", "0x64", "0xfe"],
        10,
        RESET,
    ),
    (
        "port_92_reset_bit_ends_as_reset",
        ["B", "0x92", "0x01"],
        10,
        RESET,
    ),
    (
        "sleep_control_write_ends_as_power_off",
        ["B", "0x614", "0x34"],
        0,
        OFF,
    ),
    (
        "pm1_control_sleep_write_ends_as_power_off",
        ["W", "0x604", "0x2000"],
        0,
        OFF,
    ),
];

const SIGNALS: [(&str, Signal); 4] = [
    ("SIGTERM", Signal::TERM),
    ("SIGINT", Signal::INT),
    ("SIGHUP", Signal::HUP),
    ("SIGQUIT", Signal::QUIT),
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = by_guest();
    for (name, write, code, line) in REGISTERS {
        cases.push(Case::guest(name, move |lab| {
            let end = lab.machine("write", &defines(write).each_ref().map(String::as_str))?;
            let end = end.run()?;
            end.expect_serial("before\n")?;
            end.expect(code, line)
        }));
    }
    for signal in SIGNALS {
        for (guest, cpus) in [("idle", 1), ("busy", 1), ("idle", 4)] {
            let name = signal.0.to_lowercase();
            let name = format!("{name}_with_{cpus}_{guest}_vcpus_ends_as_signal");
            cases.push(Case::guest(name, move |lab| {
                signalled(lab, guest, cpus, signal)
            }));
        }
    }
    cases
}

fn by_guest() -> Vec<Case> {
    vec![
        Case::guest("triple_fault_ends_with_its_own_code", |lab| {
            let end = lab.machine("triple_fault", &[])?.run()?;
            end.expect_serial("before\n")?;
            end.expect(11, "triple fault on vCPU 0")
        }),
        Case::guest("fetch_where_no_memory_is_ends_with_rip", |lab| {
            let end = lab.machine("fetch_mmio", &[])?.run()?;
            end.expect_serial("before\n")?;
            end.expect(
                12,
                "KVM cannot go on with vCPU 0: suberror 1, RIP 0x80123000",
            )
        }),
        Case::needing(
            "instruction_that_kvm_cannot_emulate_ends_with_rip_and_bytes",
            &[Need::Kvm, Need::Cc, Need::EmulatedRing0],
            int3,
        ),
        Case::guest("signals_that_the_parent_blocked_hold_up_no_end", |lab| {
            let folder = Folder::create()?;
            let kernel = guest::assemble("idle", &[], folder.path())?;
            // It becomes the program, as the `env` before it does.
            let vm = Vm::new("env", folder)?.args(["--block-signal"]);
            let vm = vm.args([lab.tdvmm()?]).machine(&kernel);
            let mut running = vm.args(["--cpus", "boot=4"]).start()?;
            running.wait_for_serial("ready\n")?;
            running.signal(Signal::TERM)?;
            running.wait()?.expect(143, "ended by signal SIGTERM")
        }),
        Case::guest("unwritable_standard_error_keeps_the_exit_code", |lab| {
            let mut vm = lab.machine("write", &["WIDTH=B", "PORT=0xcf9", "VALUE=6"])?;
            let full = std::fs::File::options().write(true).open("/dev/full")?;
            vm.command.stderr(full);
            let status = vm.run()?.status;
            ensure!(status.code() == Some(10), "ended with {status}");
            Ok(())
        }),
    ]
}

fn defines([width, port, value]: [&str; 3]) -> [String; 3] {
    [
        format!("WIDTH={width}"),
        format!("PORT={port}"),
        format!("VALUE={value}"),
    ]
}

fn int3(lab: &Lab) -> Result<()> {
    let end = lab.machine("int3", &[])?.run()?;
    end.expect_serial("before\n")?;
    end.expect(12, "KVM cannot go on with vCPU 0: suberror 1, RIP 0x10")?;
    ensure!(
        end.stderr.contains("instruction bytes cc 48 8d 3d"),
        "no instruction bytes: {}",
        end.stderr
    );
    Ok(())
}

fn signalled(lab: &Lab, guest: &str, cpus: u32, (name, signal): (&str, Signal)) -> Result<()> {
    let vm = lab.machine(guest, &[])?;
    let mut running = vm.args(["--cpus", &format!("boot={cpus}")]).start()?;
    running.wait_for_serial("ready\n")?;
    running.signal(signal)?;
    let code = 128 + signal.as_raw();
    running
        .wait()?
        .expect(code, &format!("ended by signal {name}"))
}
