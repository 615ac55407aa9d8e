//! What a guest that is a TD says about itself, beside what every guest says.
//!
//! The archive's `/modules` are loaded first (TSM reports, the TDX guest driver). On the command line, `tdvmm.quote`
//! asks for a quote through configfs and `tdvmm.selftest` for the kernel's own test of the driver.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::init_module;

/// Where modules are in a guest; `order` lists them.
pub const MODULES: &str = "/modules";
/// The kernel's own test for TD guests.
pub const SELFTEST: &str = "/bin/tdx_guest_test";

const MEASUREMENTS: &str = "/sys/devices/virtual/misc/tdx_guest/measurements";
const REPORTS: &str = "/sys/kernel/config/tsm/report";

/// What the kernel says where it runs in a TD.
pub const ANNOUNCEMENTS: [&str; 2] = [
    "tdx: Guest detected",
    "Memory Encryption Features active: Intel TDX",
];

/// The announcement in a record of the kernel log.
pub fn announcement(record: &str) -> Option<&'static str> {
    ANNOUNCEMENTS.into_iter().find(|text| record.contains(text))
}

/// Loads the modules of the archive, if it has any.
///
/// # Errors
/// A module that is listed cannot be loaded.
pub fn load_modules() -> io::Result<()> {
    let Ok(order) = fs::read_to_string(format!("{MODULES}/order")) else {
        return Ok(());
    };
    for name in order.lines() {
        let image = fs::read(format!("{MODULES}/{name}.ko"))?;
        match init_module(&image, c"") {
            // The driver finds no TD: the same archive boots ordinary VMs.
            Ok(()) | Err(Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Lines for the report: `td KEY VALUE`. Empty in an ordinary VM.
///
/// # Errors
/// What was asked for on the command line cannot be had.
pub fn report(command_line: &str) -> io::Result<Vec<String>> {
    if !Path::new(MEASUREMENTS).exists() {
        return Ok(Vec::new());
    }
    let mut lines = Vec::new();
    for entry in fs::read_dir(MEASUREMENTS)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // `mrtd:sha384`, `rtmr0:sha384`, `mrconfigid`, …
        let key = name.split(':').next().unwrap_or_default().to_owned();
        lines.push(format!("td {key} {}", hex(&fs::read(entry.path())?)));
    }
    lines.sort();
    let asked = |word: &str| command_line.split_whitespace().any(|w| w == word);
    if asked("tdvmm.quote") {
        lines.push(format!("td quote {}", quote()?));
    }
    if asked("tdvmm.selftest") {
        lines.extend(selftest()?);
    }
    Ok(lines)
}

/// Report data that starts with a text the service can recognise.
const REPORT_DATA: &[u8; 24] = b"report data of the test.";

/// Asks for a quote and gives its length and first bytes.
fn quote() -> io::Result<String> {
    mount(
        "configfs",
        "/sys/kernel/config",
        "configfs",
        MountFlags::empty(),
        None,
    )?;
    let report = format!("{REPORTS}/test");
    fs::create_dir(&report)?;
    let mut data = [0; 64];
    data[..REPORT_DATA.len()].copy_from_slice(REPORT_DATA);
    fs::write(format!("{report}/inblob"), data)?;
    let quote = fs::read(format!("{report}/outblob"))?;
    let provider = fs::read_to_string(format!("{report}/provider"))?;
    let start = quote.get(..16).unwrap_or(&quote);
    Ok(format!(
        "{} {} {}",
        provider.trim(),
        quote.len(),
        hex(start)
    ))
}

/// Runs the kernel's own test; its result lines, and how it ended.
fn selftest() -> io::Result<Vec<String>> {
    let output = Command::new(SELFTEST).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("ok ") || line.starts_with("not ok "))
        .map(|line| format!("td selftest {line}"))
        .collect();
    lines.push(format!("td selftest-end {}", output.status));
    Ok(lines)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
