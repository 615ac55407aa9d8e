//! The first process of a guest.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::tcdrain;

use super::{INTERRUPTS, MARKER, PREFIX, REPORT_END, SCRIPT_END, Then, kexec, td};

/// Where scripts are.
pub const SCRIPTS: &str = "/scripts";

/// Records of this level (warning) and worse are reported.
const WARNING: u32 = 4;

/// Runs as the first process. Returns only on an error.
pub fn run() -> io::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target)?;
        mount(kind, target, kind, MountFlags::empty(), None)?;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "\n{MARKER}")?;
    td::load_modules()?;
    out.write_all(report()?.as_bytes())?;
    writeln!(out, "{REPORT_END}")?;
    drain(&mut out)?;
    act(&mut out, then(&fs::read_to_string("/proc/cmdline")?))
}

/// What the command line asks for; powering off if it asks for nothing.
fn then(command_line: &str) -> Then {
    command_line
        .split_whitespace()
        .find_map(|word| Then::named(word.strip_prefix("tdvmm.then=")?))
        .unwrap_or(Then::PowerOff)
}

fn act(out: &mut impl Write, then: Then) -> io::Result<()> {
    match then {
        Then::PowerOff => {}
        Then::Reboot => reboot(RebootCommand::Restart)?,
        Then::Panic => fs::write("/proc/sysrq-trigger", "c")?,
        Then::Echo => {
            let mut line = String::new();
            BufReader::new(io::stdin()).read_line(&mut line)?;
            let word = line.trim_end();
            writeln!(out, "{PREFIX}echo {word}")?;
            drain(out)?;
            return act(out, Then::named(word).unwrap_or(Then::PowerOff));
        }
        Then::Shell => shell()?,
        Then::Script => {
            let code = script(&fs::read_to_string("/proc/cmdline")?)?;
            writeln!(out, "{SCRIPT_END} {code}")?;
            drain(out)?;
        }
        Then::Kexec => kexec(out)?,
        Then::Crash => crash(out)?,
    }
    reboot(RebootCommand::PowerOff)?;
    Ok(())
}

/// Starts the next kernel, unless this is the last.
fn kexec(out: &mut impl Write) -> io::Result<()> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let left = kexec::left(&line);
    writeln!(out, "{PREFIX}kernels left {left}")?;
    drain(out)?;
    if left > 0 {
        kexec::load_next(&line)?;
        reboot(RebootCommand::Kexec)?;
    }
    Ok(())
}

/// Crashes; in the kernel that was started for that, tells how much of the crashed one is left.
fn crash(out: &mut impl Write) -> io::Result<()> {
    if let Some(bytes) = kexec::crashed() {
        writeln!(out, "{PREFIX}crashed kernel's memory {bytes}")?;
        return drain(out);
    }
    kexec::load_for_crash(&fs::read_to_string("/proc/cmdline")?)?;
    writeln!(out, "{PREFIX}crashing")?;
    drain(out)?;
    fs::write("/proc/sysrq-trigger", "c")
}

/// Waits until the console has all of it: the kernel's own last words do not wait for ours.
fn drain(out: &mut impl Write) -> io::Result<()> {
    out.flush()?;
    Ok(tcdrain(io::stdout())?)
}

fn install_busybox() -> io::Result<()> {
    Command::new("/bin/busybox")
        .args(["--install", "-s", "/bin"])
        .status()
        .map(drop)
}

/// Runs the script that the command line names; its exit code, or -1 if it was killed.
fn script(command_line: &str) -> io::Result<i32> {
    let mut words = command_line.split_whitespace();
    let name = words
        .find_map(|word| word.strip_prefix("tdvmm.script="))
        .ok_or_else(|| io::Error::other("no tdvmm.script= on the command line"))?;
    install_busybox()?;
    let status = Command::new("/bin/busybox")
        .args(["sh", "-eu", &format!("{SCRIPTS}/{name}")])
        .env("PATH", "/bin")
        .status()?;
    Ok(status.code().unwrap_or(-1))
}

fn shell() -> io::Result<()> {
    install_busybox()?;
    // A session of its own with the console as its terminal, so that Ctrl-C works in the guest.
    let line = "exec setsid cttyhack sh";
    Command::new("/bin/busybox")
        .args(["sh", "-c", line])
        .env("PATH", "/bin")
        .status()?;
    Ok(())
}

fn report() -> io::Result<String> {
    let mut text = String::new();
    let mut say = |line: String| {
        text.push_str(PREFIX);
        text.push_str(&line);
        text.push('\n');
    };
    say(format!("release {}", read("/proc/sys/kernel/osrelease")));
    say(format!("online {}", read("/sys/devices/system/cpu/online")));
    for cpu in cpus()? {
        say(cpu);
    }
    let memory = fs::read_to_string("/proc/meminfo")?;
    say(format!(
        "memory {}",
        number(memory.lines().next().unwrap_or_default())
    ));
    say(format!("map {}", ram_in_map()?));
    for line in fs::read_to_string("/proc/interrupts")?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let label = words.first().and_then(|word| word.strip_suffix(':'));
        if label.is_some_and(|label| INTERRUPTS.contains(&label)) {
            say(format!("interrupt {}", words.join(" ")));
        }
    }
    for line in td::report(&fs::read_to_string("/proc/cmdline")?)? {
        say(line);
    }
    for record in records()? {
        if let Some(line) = warning(&record) {
            say(format!("dmesg {line}"));
        }
        if let Some(line) = td::announcement(&record) {
            say(format!("says {line}"));
        }
    }
    Ok(text)
}

/// A line `cpu N apicid A package P core C siblings S` for each processor.
fn cpus() -> io::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let mut lines = Vec::new();
    for stanza in text.split("\n\n").filter(|s| !s.trim().is_empty()) {
        let field = |key: &str| {
            let line = stanza
                .lines()
                .find(|l| l.split(':').next().map(str::trim) == Some(key));
            line.and_then(|l| l.split(": ").nth(1))
                .unwrap_or("?")
                .to_owned()
        };
        let number = field("processor");
        let topology = format!("/sys/devices/system/cpu/cpu{number}/topology");
        lines.push(format!(
            "cpu {number} apicid {} package {} core {} siblings {}",
            field("apicid"),
            read(&format!("{topology}/physical_package_id")),
            read(&format!("{topology}/core_id")),
            read(&format!("{topology}/thread_siblings_list")),
        ));
    }
    Ok(lines)
}

/// Bytes of RAM in the map that the kernel got from the VMM.
fn ram_in_map() -> io::Result<u64> {
    let mut total = 0;
    let folder = Path::new("/sys/firmware/memmap");
    for entry in fs::read_dir(folder)? {
        let entry = entry?.path();
        let value = |name: &str| {
            let text = fs::read_to_string(entry.join(name)).unwrap_or_default();
            u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or(0)
        };
        if fs::read_to_string(entry.join("type"))?.trim() == "System RAM" {
            total += value("end") - value("start") + 1;
        }
    }
    Ok(total)
}

/// All records of the kernel log.
fn records() -> io::Result<Vec<String>> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open("/dev/kmsg")?;
    let mut records = Vec::new();
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(n) => records.push(String::from_utf8_lossy(&record[..n]).into_owned()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(records),
            Err(e) => return Err(e),
        }
    }
}

/// `4 text` of `4,210,1000,-;text` if its level is a warning or worse.
fn warning(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let level = head.split(',').next()?.parse::<u32>().ok()? & 7;
    (level <= WARNING).then(|| format!("{level} {}", text.lines().next().unwrap_or_default()))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "?".to_owned(), |t| t.trim().to_owned())
}

fn number(line: &str) -> u64 {
    line.split_whitespace()
        .find_map(|w| w.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_below_warning_is_left_out() {
        assert_eq!(
            warning("4,1,2,-;careful\n KEY=x").as_deref(),
            Some("4 careful")
        );
        // The upper bits are the facility.
        assert_eq!(warning("12,1,2,-;careful").as_deref(), Some("4 careful"));
        assert_eq!(warning("6,1,2,-;fine"), None);
    }

    #[test]
    fn then_is_found_on_the_command_line() {
        assert_eq!(then("quiet tdvmm.then=panic x"), Then::Panic);
        assert_eq!(then("quiet"), Then::PowerOff);
    }
}
