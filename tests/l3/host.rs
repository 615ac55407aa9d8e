//! The session that lane L4 has on a host with TDX, tried where there is none.

use std::time::Duration;

use anyhow::{Result, ensure};
use tdvmm_tests::fixture::install::FIRMWARE;
use tdvmm_tests::harness::{Case, Context, Tier, Unmet};
use tdvmm_tests::l1::{Outcome, Program};
use tdvmm_tests::native::needs::Need;

use super::emtdx::{self, HOST};
use super::guests::{self, TDVMM};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "host-session".to_owned(),
        tier: Tier::Representative,
        machine: &HOST,
        prepare: guests::with_tdvmm,
        deadline: Duration::from_secs(60),
        run: Box::new(session),
    }]
}

/// Programs see the files at their paths and the host's own devices, get input and signals, and tell how they ended.
fn session(context: &mut Context<'_>) -> Result<()> {
    if let Some(reason) = Need::Namespaces.missing() {
        return Err(Unmet::new("namespaces", reason).into());
    }
    ensure!(context.l1.is_host(), "this is an L1");
    let script = format!("test -s {FIRMWARE} && test -e /dev/null && test -d /sys/class && exit 7");
    let (end, output) = context.l1.run(&Program::script(&script), context.left())?;
    ensure!(end.outcome == Outcome::Exited(7), "{end:?}: {output}");

    context.l1.write("/tmp/words", 0o644, b"good day")?;
    ensure!(
        context.l1.read("/tmp/words")? == b"good day",
        "the file came back changed"
    );

    let echo = context.l1.start(&Program::script(
        "read line; echo \"$line\"; exec sleep 100",
    ))?;
    context.l1.input(echo, b"hello\n")?;
    context.l1.wait_for(echo, "hello", context.left())?;
    context.l1.signal(echo, 15)?;
    let end = context.l1.wait_end(echo, context.left())?;
    ensure!(end.outcome == Outcome::Signalled(15), "{end:?}");

    let check = Program::new(TDVMM).args(["check"]);
    let (_, output) = context.l1.run(&check, context.left())?;
    // Of the kernel, or that this user may not open /dev/kvm.
    let told = ["kernel", "/dev/kvm"].iter().any(|of| output.contains(of));
    ensure!(told, "tdvmm check says: {output}");
    ensure!(
        emtdx::needs_emulation(context, "this").is_err(),
        "a host is taken for the emulation"
    );
    Ok(())
}
