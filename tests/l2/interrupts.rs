//! Starting processors, and interrupts through the I/O APIC and irqfd.
//!
//! A pin of the I/O APIC is edge-triggered and becomes a message in KVM's routing table, so these cases are
//! those of message-signalled interrupts as well; a device with MSI-X of its own is for the cases of
//! virtio.

use anyhow::{Result, ensure};

use crate::lab::{Case, Lab};

const OFF: &str = "the guest switched itself off";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::guest("init_and_sipi_with_2_vcpus_start_the_other", |lab| {
            smp(lab, 2, "1smp\n")
        }),
        Case::guest("init_and_sipi_with_4_vcpus_start_the_others", |lab| {
            smp(lab, 4, "123smp\n")
        }),
        Case::guest("serial_interrupt_by_ioapic_pin_is_taken_once_each", |lab| {
            interrupts(lab, 0)
        }),
        Case::guest("serial_interrupt_for_other_vcpu_is_taken_there", |lab| {
            interrupts(lab, 1)
        }),
        Case::guest("ioapic_entry_with_level_trigger_stays_masked", level),
    ]
}

fn smp(lab: &Lab, cpus: u32, says: &str) -> Result<()> {
    let vm = lab.machine("smp", &[&format!("CPUS={cpus}")])?;
    let end = vm.args(["--cpus", &format!("boot={cpus}")]).run()?;
    end.expect_serial(says)?;
    end.expect(0, OFF)
}

/// The guest counts 50 interrupts for 50 bytes, none for one before and four after them, while the pin is masked.
fn interrupts(lab: &Lab, target: u32) -> Result<()> {
    let vm = lab.machine("irq", &[&format!("TARGET={target}")])?;
    let end = vm.args(["--cpus", &format!("boot={}", target + 1)]).run()?;
    end.expect_serial(&format!(".{}----\nirq\n", "*".repeat(50)))?;
    end.expect(0, OFF)
}

fn level(lab: &Lab) -> Result<()> {
    let end = lab.machine("level", &[])?.run()?;
    end.expect_serial("level\n")?;
    end.expect(0, OFF)?;
    ensure!(
        end.stderr.contains("I/O APIC pin 4: stays masked"),
        "no warning: {}",
        end.stderr
    );
    Ok(())
}
