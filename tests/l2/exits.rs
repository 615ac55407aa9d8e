//! Port and memory accesses, and the ways into a guest. The guests check what they read themselves.

use anyhow::Result;

use crate::lab::{Case, Lab};

const OFF: &str = "the guest switched itself off";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::guest("elf_without_note_is_entered_in_long_mode", |lab| {
            says(lab, "hello", "hello\n")
        }),
        Case::guest("elf_with_pvh_note_is_entered_in_protected_mode", |lab| {
            says(lab, "pvh", "pvh\n")
        }),
        Case::guest("port_access_of_every_width_reaches_its_device", |lab| {
            says(lab, "ports", "string\nports\n")
        }),
        Case::guest("memory_access_of_every_width_reaches_its_device", |lab| {
            says(lab, "mmio", "mmio\n")
        }),
    ]
}

fn says(lab: &Lab, guest: &str, text: &str) -> Result<()> {
    let end = lab.machine(guest, &[])?.run()?;
    end.expect_serial(text)?;
    end.expect(0, OFF)
}
