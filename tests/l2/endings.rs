//! Every way in which a run ends: its exit code, and the line that says why.

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tdvmm_tests::native::needs::Need;

use crate::lab::{Case, Lab};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let reset = "the guest asked for a reset";
    let off = "the guest switched itself off";
    let by_register = [
        (
            "reset_control_write_ends_as_reset",
            "B",
            "0xcf9",
            "0x06",
            10,
            reset,
        ),
        (
            "i8042_reset_command_ends_as_reset",
            "B",
            "0x64",
            "0xfe",
            10,
            reset,
        ),
        (
            "port_92_reset_bit_ends_as_reset",
            "B",
            "0x92",
            "0x01",
            10,
            reset,
        ),
        (
            "sleep_control_write_ends_as_power_off",
            "B",
            "0x614",
            "0x34",
            0,
            off,
        ),
        (
            "pm1_control_sleep_write_ends_as_power_off",
            "W",
            "0x604",
            "0x2000",
            0,
            off,
        ),
    ];
    let mut cases: Vec<Case> = by_register
        .into_iter()
        .map(|(name, width, port, value, code, line)| {
            Case::guest(name, move |lab| {
                let defines = [("WIDTH", width), ("PORT", port), ("VALUE", value)];
                let defines = defines.map(|(name, value)| format!("{name}={value}"));
                let defines = defines.each_ref().map(String::as_str);
                let end = lab.machine("write", &defines)?.run()?;
                end.expect_serial("before\n")?;
                end.expect(code, line)
            })
        })
        .collect();
    cases.extend([
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
        Case::guest("unwritable_standard_error_keeps_the_exit_code", |lab| {
            let mut vm = lab.machine("write", &["WIDTH=B", "PORT=0xcf9", "VALUE=6"])?;
            let full = std::fs::File::options().write(true).open("/dev/full")?;
            vm.command.stderr(full);
            let status = vm.run()?.status;
            ensure!(status.code() == Some(10), "ended with {status}");
            Ok(())
        }),
    ]);
    for (name, signal) in [
        ("SIGTERM", Signal::TERM),
        ("SIGINT", Signal::INT),
        ("SIGHUP", Signal::HUP),
        ("SIGQUIT", Signal::QUIT),
    ] {
        for (guest, cpus) in [("idle", 1), ("busy", 1), ("idle", 4)] {
            cases.push(Case::guest(
                format!(
                    "{}_with_{cpus}_{guest}_vcpus_ends_as_signal",
                    name.to_lowercase()
                ),
                move |lab| signalled(lab, guest, cpus, (name, signal)),
            ));
        }
    }
    cases
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
