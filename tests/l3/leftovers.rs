//! What TDs leave behind in L1: memory, open files, key ids.

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::fixture::witness;
use tdvmm_tests::harness::Context;
use tdvmm_tests::l1::{Outcome, Program};

/// The function `left` of a script, which prints a line for [`Left`].
pub const LEFT: &str = "left() {
    echo 3 > /proc/sys/vm/drop_caches; $b sleep 3
    echo $1 $($b awk '/MemAvailable/ { print $2 }' /proc/meminfo) $($b cat /proc/sys/fs/file-nr)
}";

/// What L1 has left: MemAvailable, and open files.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    memory_kib: u64,
    files: u64,
}

impl Left {
    /// Runs a script with [`LEFT`] in it: what it prints as BEFORE and AFTER is the same, and no key id is in use.
    pub fn check(context: &mut Context<'_>, script: &str) -> Result<()> {
        let (end, output) = context.l1.run(&Program::script(script), context.left())?;
        ensure!(
            end.outcome == Outcome::Exited(0),
            "the script ended with {:?}: {output}",
            end.outcome
        );
        let before = Self::parse(&output, "BEFORE").context("no figures before")?;
        let after = Self::parse(&output, "AFTER").context("no figures after")?;
        context.note(format!("before {before:?}, after {after:?}"));
        if context.l1.is_host() {
            // Others work on it, too; key ids that leak would have run out.
            return Ok(());
        }
        let key_ids = witness::host_state(context.l1)?.key_ids_used;
        ensure!(key_ids == 0, "{key_ids} key ids are still in use");
        ensure!(
            after.files <= before.files,
            "{} files were open before, {} are now",
            before.files,
            after.files
        );
        ensure!(
            after.memory_kib + 4096 >= before.memory_kib,
            "MemAvailable fell from {} to {} KiB",
            before.memory_kib,
            after.memory_kib
        );
        Ok(())
    }

    fn parse(output: &str, label: &str) -> Option<Self> {
        let line = output.lines().find(|line| line.starts_with(label))?;
        let mut words = line.split_whitespace().skip(1);
        let mut number = || words.next()?.parse().ok();
        Some(Self {
            memory_kib: number()?,
            files: number()?,
        })
    }
}
