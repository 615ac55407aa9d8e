//! Where a private page can be seen, how much memory conversions hold, and memory provided in advance.
//!
//! The guest is `tests/guests/td/memory.c`, which does what it is told on its serial port.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::fixture::install::PROBE;
use tdvmm_tests::fixture::witness;
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Machine, Outcome, Program, RunId};
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;

use super::emtdx::{self, TDX};
use super::guests::{self, TDVMM};

/// The image of `tests/guests/td/memory.c` in L1.
const IMAGE: &str = "/tdx/memory.fd";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        private_page(),
        // 128 MiB each way.
        memory_held_once("td-memory-held-once", Tier::Representative, 8, 1),
        // 1 GiB each way.
        memory_held_once("td-memory-held-once-1g", Tier::Full, 16, 4),
        provided_in_advance(),
    ]
}

// ---- the small guest -----------------------------------------------------------------------------------------

fn with_memory_guest(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    let folder = Folder::create()?;
    let image = guest::build_td_image("memory", folder.path())?;
    machine.archive().copy(IMAGE, 0o644, &image)?;
    Ok(())
}

fn small_td(
    name: &str,
    tier: Tier,
    seconds: u64,
    run: impl Fn(&mut Context<'_>) -> Result<()> + 'static,
) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine: &TDX,
        prepare: with_memory_guest,
        deadline: Duration::from_secs(seconds),
        run: Box::new(run),
    }
}

/// The running guest, and how much of its output has been read.
pub struct Guest {
    pub run: RunId,
    read: usize,
}

impl Guest {
    /// Starts it; `cpus` and `memory` are values of the options.
    fn start(context: &mut Context<'_>, cpus: &str, memory: &str) -> Result<Self> {
        emtdx::hold(context)?;
        witness::take_ended(context.l1)?;
        Self::start_as(context, &program(cpus, memory))
    }

    /// Starts a program whose guest says READY and then does what it is told.
    pub fn start_as(context: &mut Context<'_>, program: &Program) -> Result<Self> {
        let run = context.l1.start(program)?;
        context.l1.wait_for(run, "READY\n", context.left())?;
        let read = context.l1.output(run).len();
        Ok(Self { run, read })
    }

    /// Gives a command and takes the line that answers it.
    pub fn ask(&mut self, context: &mut Context<'_>, command: &str) -> Result<String> {
        context.l1.input(self.run, command.as_bytes())?;
        self.answer(context, command)
    }

    /// Takes the next line of the guest's own.
    pub fn answer(&mut self, context: &mut Context<'_>, command: &str) -> Result<String> {
        loop {
            let output = context.l1.output(self.run);
            let news = output.get(self.read..).unwrap_or_default();
            if let Some((line, _)) = news.split_once('\n') {
                self.read += line.len() + 1;
                if line.starts_with("tdvmm") {
                    continue;
                }
                ensure!(!line.starts_with("FAIL"), "the guest: {line}");
                return Ok(line.to_owned());
            }
            ensure!(
                !context.l1.has_ended(self.run) && !context.left().is_zero(),
                "no answer to {command}: {news}"
            );
            context.l1.poll(Duration::from_millis(100))?;
        }
    }

    /// Has it switch itself off.
    pub fn end(self, context: &mut Context<'_>) -> Result<()> {
        context.l1.input(self.run, b"q")?;
        let end = context.l1.wait_end(self.run, context.left())?;
        ensure!(end.outcome == Outcome::Exited(0), "{:?}", end.outcome);
        Ok(())
    }
}

fn program(cpus: &str, memory: &str) -> Program {
    Program::new(TDVMM)
        .args(["--firmware", IMAGE, "--platform", "tdx=on"])
        .args(["--cpus", cpus, "--memory", memory, "--serial", "tty"])
}

// ---- privacy -------------------------------------------------------------------------------------------------

/// What the guest writes to a private page is nowhere in what `tdvmm` can see of memory; what it writes to the same page
/// when that is shared is.
fn private_page() -> Case {
    small_td(
        "td-private-page-is-seen-nowhere",
        Tier::Representative,
        180,
        |context| {
            let mut guest = Guest::start(context, "boot=1", "size=64M")?;
            // First where it must be found: the scanner works.
            let seed = seed(&guest.ask(context, "s")?, "SHARED ")?;
            let shared = scan(context, &seed)?;
            ensure!(
                shared.contains("FOUND"),
                "not seen in a shared page: {shared}"
            );

            let seed = self::seed(&guest.ask(context, "p")?, "PRIVATE ")?;
            let private = scan(context, &seed)?;
            ensure!(
                !private.contains("FOUND"),
                "a private page is seen: {private}"
            );
            ensure!(
                private.contains(" 0 of 2 guest_memfds"),
                "guest_memfds: {private}"
            );

            let seed = self::seed(&guest.ask(context, "s")?, "SHARED ")?;
            let again = scan(context, &seed)?;
            ensure!(
                again.contains("FOUND"),
                "not seen when shared again: {again}"
            );
            context.note(private.trim().to_owned());
            guest.end(context)
        },
    )
}

fn seed(line: &str, how: &str) -> Result<String> {
    let seed = line.trim_end().strip_prefix(how);
    Ok(seed.with_context(|| line.to_owned())?.to_owned())
}

/// Has the prober look for the token of `seed` in the memory of `tdvmm`.
fn scan(context: &mut Context<'_>, seed: &str) -> Result<String> {
    let program = Program::new(PROBE).args(["scan", "tdvmm", seed]);
    let (end, output) = context.l1.run(&program, context.left())?;
    ensure!(
        end.outcome == Outcome::Exited(0),
        "the scan failed: {output}"
    );
    Ok(output)
}

// ---- memory held once ------------------------------------------------------------------------------------------

/// What L1 has charged moves by so much without a cause.
pub const NOISE_KIB: u64 = 1024;

/// The guest converts memory to shared and back, writing all of it each time: the host holds it once throughout.
/// `units` of 16 MiB, `rounds` times in each direction.
fn memory_held_once(name: &str, tier: Tier, units: u8, rounds: u32) -> Case {
    let seconds = 120 + u64::from(units) * u64::from(rounds) * 8;
    small_td(name, tier, seconds, move |context| {
        let mut guest = Guest::start(context, "boot=1", "size=512M")?;
        let order = format!("a{}", char::from(b'0' + units));
        expect(&guest.ask(context, &order)?, "ACCEPTED")?;
        let in_use = u64::from(units) << 14;
        let before = charged_kib(context)?;
        let mut seen = Vec::new();
        for _ in 0..rounds {
            for (order, answer) in [("x", "ALL-SHARED"), ("y", "ALL-PRIVATE")] {
                expect(&guest.ask(context, order)?, answer)?;
                seen.push(charged_kib(context)?.cast_signed() - before.cast_signed());
            }
        }
        context.note(format!(
            "{in_use} KiB in use; held more than before, in KiB, after each conversion: {seen:?}"
        ));
        let most = (in_use / 50 + NOISE_KIB).cast_signed();
        ensure!(
            seen.iter().all(|more| *more <= most),
            "the host holds more than before, in KiB, of which {most} are allowed: {seen:?}"
        );
        // Not too little either, or the memory is not what was measured.
        ensure!(
            seen.iter().all(|more| *more >= -most),
            "the host holds less than before, in KiB: {seen:?}"
        );
        guest.end(context)?;
        let ended = witness::take_ended(context.l1)?;
        let converted = ended.first().context("no TD ended")?.pages.converted;
        let asked = (in_use / 4) * u64::from(rounds);
        ensure!(
            converted >= asked,
            "{converted} pages converted, not {asked}"
        );
        Ok(())
    })
}

pub fn expect(line: &str, wanted: &str) -> Result<()> {
    ensure!(
        line.trim_end() == wanted,
        "the guest says {line}, not {wanted}"
    );
    Ok(())
}

/// Memory that L1's kernel has charged to somebody: of processes, of files (guest_memfd is one), slabs and page tables.
/// What is free says less: its CPUs hold back free pages, tens of MiB at times, that it counts nowhere.
pub fn charged_kib(context: &mut Context<'_>) -> Result<u64> {
    const FIELDS: [&str; 5] = ["AnonPages", "Cached", "Slab", "PageTables", "SecPageTables"];
    let script = "echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/stat_refresh
        /bin/busybox cat /proc/meminfo";
    let (_, text) = context.l1.run(&Program::script(script), context.left())?;
    let mut sum = 0;
    for field in FIELDS {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        sum += number.context(field)?.parse::<u64>()?;
    }
    Ok(sum)
}

// ---- memory in advance, and bound vCPUs ------------------------------------------------------------------------

/// All private memory is mapped before the guest accepts any of it, and the vCPU runs where it was bound to. A CPU that is
/// not there is refused.
fn provided_in_advance() -> Case {
    small_td(
        "td-prefault-and-affinity",
        Tier::Representative,
        180,
        |context| {
            const MIB: u64 = 128;
            let refused = program("boot=1,affinity=0@999", "size=64M");
            let (end, output) = context.l1.run(&refused, context.left())?;
            ensure!(end.outcome == Outcome::Exited(152), "{:?}", end.outcome);
            ensure!(
                output.contains("--cpus affinity=0@999: the host has no CPU 999"),
                "{output}"
            );

            let before = charged_kib(context)?;
            let memory = format!("size={MIB}M,prefault=on");
            let mut guest = Guest::start(context, "boot=1,affinity=0@2", &memory)?;
            let held = charged_kib(context)?.saturating_sub(before);
            ensure!(held + NOISE_KIB >= MIB << 10, "only {held} KiB are held");
            let allowed = vcpu_cpus(context)?;
            ensure!(allowed == "2", "the vCPU may run on {allowed}");
            expect(&guest.ask(context, "a2")?, "ACCEPTED")?;
            guest.end(context)?;
            let ended = witness::take_ended(context.l1)?;
            let pages = ended.first().context("no TD ended")?.pages;
            // Two pages were added, the hand-off blocks.
            let ram = (MIB << 8) - 2;
            ensure!(pages.augmented == ram, "{pages:?}");
            context.note(format!("{held} KiB held before the guest ran; {pages:?}"));
            Ok(())
        },
    )
}

/// The CPUs on which vCPU 0 may run, as the kernel writes them.
fn vcpu_cpus(context: &mut Context<'_>) -> Result<String> {
    let script = "b=/bin/busybox
        for task in /proc/$($b pidof tdvmm)/task/*; do
            [ \"$($b cat $task/comm)\" = tdvmm-vcpu0 ] && $b grep Cpus_allowed_list $task/status
        done; true";
    let (_, output) = context.l1.run(&Program::script(script), context.left())?;
    let list = output.split_whitespace().nth(1);
    Ok(list.with_context(|| output.clone())?.to_owned())
}
