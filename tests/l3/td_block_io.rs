//! A TD that turns memory private under the I/O of a virtio disk (`tests/guests/td/block_io.c`, which checks the part
//! that a driver sees): whatever the disk was doing, the TD's memory stays as it is, and the host holds it once.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tdvmm_tests::harness::{Case, Context, Tier};
use tdvmm_tests::l1::{Machine, Program, RunId};
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;

use super::emtdx::{self, TDX};
use super::guests::{self, TDVMM};
use super::td_cases::said_by_tdvmm;
use super::td_memory::{Guest, NOISE_KIB, charged_kib, expect};

/// The image of the guest in L1.
const IMAGE: &str = "/tdx/block_io.fd";
/// The disks, and how they are served: at once from the page cache, and by io_uring. L1 has both in memory, so no
/// device of the host writes to the guest's pages by itself.
const DISKS: [(&str, &str); 2] = [
    ("/tmp/block-io-0.img", "direct=off"),
    ("/tmp/block-io-1.img", "direct=on"),
];
/// What the guest converts to and fro: its memory in use.
const REGION_KIB: u64 = 32 << 10;
/// By how much the memory of `tdvmm` itself, where the shared side is, may grow.
const OWN_KIB: u64 = 64;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        case("td-conversions-under-block-io", Tier::Representative, 1),
        case("td-conversions-under-block-io-2k", Tier::Full, 16),
    ]
}

/// `orders` to the guest for each disk, of 64 rounds each.
fn case(name: &str, tier: Tier, orders: u64) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine: &TDX,
        prepare: with_guest,
        deadline: Duration::from_secs(120 + orders * 60),
        run: Box::new(move |context| {
            emtdx::hold(context)?;
            let mut guest = start(context)?;
            for (number, (_, how)) in DISKS.iter().enumerate() {
                expect(
                    &guest.ask(context, &format!("d{number}"))?,
                    "READY-TO-CONVERT",
                )?;
                conversions(context, &mut guest, how, orders)?;
            }
            let run = guest.run;
            guest.end(context)?;
            check_lines(context, run)
        }),
    }
}

fn with_guest(machine: &mut Machine<'_>) -> Result<()> {
    guests::with_tdvmm(machine)?;
    let folder = Folder::create()?;
    let image = guest::build_td_image("block_io", folder.path())?;
    machine.archive().copy(IMAGE, 0o644, &image)?;
    Ok(())
}

/// The guest with all of its region private and written.
fn start(context: &mut Context<'_>) -> Result<Guest> {
    let mut program = Program::new(TDVMM)
        .args(["--firmware", IMAGE, "--platform", "tdx=on"])
        .args(["--memory", "size=128M", "--serial", "tty"]);
    for (path, how) in DISKS {
        let script = format!("/bin/busybox dd if=/dev/zero of={path} bs=1M count=8 2>/dev/null");
        let (end, text) = context.l1.run(&Program::script(&script), context.left())?;
        ensure!(end.outcome.code() == Some(0), "{script}: {text}");
        program = program.args(["--disk", &format!("path={path},{how}")]);
    }
    let mut guest = Guest::start_as(context, &program)?;
    expect(&guest.ask(context, "a")?, "ACCEPTED")?;
    Ok(guest)
}

fn conversions(context: &mut Context<'_>, guest: &mut Guest, how: &str, orders: u64) -> Result<()> {
    let before = charged_kib(context)?.cast_signed();
    let own = own_kib(context)?;
    let begin = Instant::now();
    let mut seen = Vec::new();
    let mut line = String::new();
    for _ in 0..orders {
        context.l1.input(guest.run, b"r")?;
        // Once amid the rounds, once when all I/O is over.
        seen.push(charged_kib(context)?.cast_signed() - before);
        line = guest.answer(context, "r")?;
        seen.push(charged_kib(context)?.cast_signed() - before);
    }
    let took = begin.elapsed();
    let own = own_kib(context)?.saturating_sub(own);
    let counts = Counts::parse(&line)?;
    context.note(format!(
        "{how}: {counts}, in {took:.1?}; the host held more than before, in KiB, amid and after the rounds: {seen:?}, tdvmm itself {own}"
    ));
    let most = (REGION_KIB / 50 + NOISE_KIB).cast_signed();
    ensure!(
        seen.iter().all(|more| *more <= most),
        "the host holds more than before, in KiB, of which {most} are allowed: {seen:?}"
    );
    ensure!(
        own <= OWN_KIB,
        "tdvmm holds {own} KiB more than before, though all memory is private again"
    );
    counts.check(orders)
}

/// Memory of the running `tdvmm` that is no file's.
fn own_kib(context: &mut Context<'_>) -> Result<u64> {
    let script = "b=/bin/busybox; $b grep RssAnon /proc/$($b pidof tdvmm)/status";
    let (_, text) = context.l1.run(&Program::script(script), context.left())?;
    let number = text.split_whitespace().nth(1);
    Ok(number.with_context(|| text.clone())?.parse()?)
}

/// What a guest can provoke is said ten times at once, then once a second.
fn check_lines(context: &mut Context<'_>, run: RunId) -> Result<()> {
    let seconds = usize::try_from(context.l1.wait_end(run, context.left())?.after.as_secs())?;
    let said = context.l1.output(run);
    let lines = said_by_tdvmm(&said);
    let other = lines
        .iter()
        .find(|line| !line.contains("WARN  virtio-blk: the driver broke the rules of a queue: "));
    ensure!(
        other.is_none_or(|line| line.ends_with("the guest switched itself off")),
        "tdvmm says {other:?}"
    );
    let most = 10 + seconds + 2;
    ensure!(
        (2..=most).contains(&lines.len()),
        "{} lines in {seconds} s",
        lines.len()
    );
    Ok(())
}

/// What happened in the rounds; see `counts` in the guest.
#[derive(Clone, Copy)]
struct Counts {
    rounds: u64,
    faulted: u64,
    in_time: u64,
    ended: u64,
    reset: u64,
    ring: u64,
    pages: u64,
}

impl Counts {
    fn parse(line: &str) -> Result<Self> {
        let words = line.trim_end().strip_prefix("ROUNDS ");
        let numbers = words.with_context(|| line.to_owned())?.split(' ');
        let numbers = numbers.map(|word| u64::from_str_radix(word, 16));
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        let [rounds, faulted, in_time, ended, reset, ring, pages] = numbers[..] else {
            anyhow::bail!("{line}");
        };
        Ok(Self {
            rounds,
            faulted,
            in_time,
            ended,
            reset,
            ring,
            pages,
        })
    }

    fn check(self, orders: u64) -> Result<()> {
        ensure!(self.rounds == orders * 64, "not all rounds were run");
        // Else there was nothing to be seen.
        ensure!(
            self.faulted >= self.rounds / 16,
            "too few conversions met requests under way"
        );
        Ok(())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds, {} pages converted under requests: the queue faulted in {}, the requests had ended before in {} \
             and ended all the same in {}; reset at once in {}, ring converted in {}",
            self.rounds, self.pages, self.faulted, self.in_time, self.ended, self.reset, self.ring
        )
    }
}
