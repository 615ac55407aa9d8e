//! The virtio console under Linux's own driver.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::guest::{self, SCRIPT_END};
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, Tier};
use tdvmm_tests::l1::{Machine, Outcome, Program};

use super::guests::{PLAIN, TDVMM, with_tdvmm};

const INITRAMFS: &str = "/guest/console-initramfs";
/// When this is there, the terminal gets another size.
const GO: &str = "/tmp/resize";

/// The console has the terminal's size at the start, and follows it.
const SIZE: &str = r#"
size() { stty size < /dev/hvc0; }
test -c /dev/hvc0
echo TDVMM-GUEST size $(size)
until test "$(size)" = "40 100"; do :; done
echo TDVMM-GUEST size $(size)
"#;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "console-follows-the-terminal".to_owned(),
        tier: Tier::Full,
        machine: &PLAIN,
        prepare: with_console,
        deadline: Duration::from_secs(180),
        run: Box::new(resize),
    }]
}

fn with_console(machine: &mut Machine<'_>) -> Result<()> {
    with_tdvmm(machine)?;
    let modules = ["virtio_pci", "virtio_console"];
    let scripts = [("size", SIZE)];
    let packages = machine.packages();
    let initramfs = guest::initramfs_with_scripts(packages, L1_KERNEL, &modules, &scripts)?;
    machine.archive().file(INITRAMFS, 0o644, initramfs);
    Ok(())
}

fn resize(context: &mut Context<'_>) -> Result<()> {
    let serial = "/tmp/console-serial.log";
    let tdvmm = Program::new(TDVMM)
        .args(["--kernel", "/guest/7.2", "--initramfs", INITRAMFS])
        .args(["--cmdline", &guest::script_command_line("size")])
        .args(["--memory", "size=512M", "--console", "tty"])
        .args(["--serial", &format!("file={serial}")]);
    // The size changes behind the program's back, as it does when a window is resized.
    // The shell gives what runs in the background another standard input.
    let script = format!(
        "stty rows 30 cols 90; terminal=$(tty); \
         (until test -e {GO}; do sleep 0.1; done; stty -F $terminal rows 40 cols 100) & exec \"$@\""
    );
    let shell = Program::new("/bin/busybox").args(["sh", "-c", &script, "sh"]);
    let run = context.l1.start(&shell.args(tdvmm.words()).on_terminal())?;
    wait_for(context, serial, "size 30 90")?;
    context.l1.write(GO, 0o644, b"")?;
    wait_for(context, serial, "size 40 100")?;
    wait_for(context, serial, &format!("{SCRIPT_END} 0"))?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(end.outcome == Outcome::Exited(0), "{:?}", end.outcome);
    Ok(())
}

/// Waits until the file in L1 has `text` in it.
fn wait_for(context: &mut Context<'_>, file: &str, text: &str) -> Result<()> {
    let script = format!("until grep -q '{text}' {file} 2>/dev/null; do sleep 0.1; done");
    let left = context.left();
    let (end, _) = context.l1.run(&Program::script(&script), left)?;
    ensure!(end.outcome == Outcome::Exited(0), "{:?}", end.outcome);
    Ok(())
}
