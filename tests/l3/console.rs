//! The virtio console under Linux's driver.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::guest::{self, SCRIPT_END};
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, Tier};
use tdvmm_tests::l1::{Machine, Outcome, Program};

use super::guests::{KERNEL, PLAIN, TDVMM, with_tdvmm};

const INITRAMFS: &str = "/guest/console-initramfs";
const SERIAL: &str = "/tmp/console-serial.log";

/// Says which size the console has, and again when it has another one. It stays open all the time: Linux drops what is
/// typed at the moment of the last close.
const SIZE: &str = r#"
exec 3<>/dev/hvc0
size() { stty size <&3; }
first=$(size)
echo TDVMM-GUEST size $first >&3
while test "$(size)" = "$first"; do :; done
echo TDVMM-GUEST size $(size) >&3
read typed <&3
echo TDVMM-GUEST typed $typed >&3
"#;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "console-follows-the-terminal".to_owned(),
        tier: Tier::Representative,
        machine: &PLAIN,
        prepare: with_console,
        deadline: Duration::from_secs(180),
        run: Box::new(follows_the_terminal),
    }]
}

/// Adds `tdvmm` and a guest with the driver.
fn with_console(machine: &mut Machine<'_>) -> Result<()> {
    with_tdvmm(machine)?;
    let modules = ["virtio_pci", "virtio_console"];
    let scripts = [("size", SIZE)];
    let initramfs =
        guest::initramfs_with_scripts(machine.packages(), L1_KERNEL, &modules, &scripts)?;
    machine.archive().file(INITRAMFS, 0o644, initramfs);
    Ok(())
}

/// The guest sees the size that the terminal has, the one that it is given later, and what is typed.
fn follows_the_terminal(context: &mut Context<'_>) -> Result<()> {
    let tdvmm = Program::new(TDVMM)
        .args(["--kernel", KERNEL, "--initramfs", INITRAMFS])
        .args(["--cmdline", &guest::script_command_line("size")])
        .args(["--memory", "size=512M", "--cpus", "boot=2"])
        .args(["--console", "tty"])
        .args(["--serial", &format!("file={SERIAL}")]);
    // A session of its own, because the kernel tells only the foreground of a controlling terminal of a new size.
    let script = r#"stty rows 40 cols 100; exec setsid -c "$@""#;
    let shell = Program::new("/bin/busybox").args(["sh", "-c", script, "sh"]);
    let run = context.l1.start(&shell.args(tdvmm.words()).on_terminal())?;
    context
        .l1
        .wait_for(run, "TDVMM-GUEST size 40 100", context.left())?;
    let resize = Program::script("stty -F /proc/$(pidof tdvmm)/fd/0 rows 50 cols 132");
    let left = context.left();
    let (end, output) = context.l1.run(&resize, left)?;
    ensure!(end.outcome.code() == Some(0), "stty: {output}");
    context
        .l1
        .wait_for(run, "TDVMM-GUEST size 50 132", context.left())?;
    context.l1.input(run, b"good day\r")?;
    context
        .l1
        .wait_for(run, "TDVMM-GUEST typed good day", context.left())?;
    let end = context.l1.wait_end(run, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(0),
        "tdvmm ended with {:?}",
        end.outcome
    );
    let serial = String::from_utf8(context.l1.read(SERIAL)?)?;
    ensure!(
        serial.contains(&format!("{SCRIPT_END} 0")),
        "the guest's script failed:\n{serial}"
    );
    Ok(())
}
