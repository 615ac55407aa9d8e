//! `tdvmm inspect` as it is run: what goes to standard output, what to standard error, and the exit code.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use tdvmm_firmware::image::{Contents, Image};
use tdvmm_firmware::measure::{Order, mrtd};
use tempfile::TempDir;

use crate::image::{IN_RAM, LEN, VARS, image, image_after};

const BAD_CONFIG: i32 = 152;

/// Runs it with 1 GiB of address space and for a minute at the most: a file without an end must harm nobody.
fn inspect(file: &Path, more: &[&str]) -> Output {
    let script = "ulimit -v 1048576 && exec timeout 60 \"$0\" inspect \"$@\"";
    let program = [script, env!("CARGO_BIN_EXE_tdvmm")].map(OsStr::new);
    let mut sh = Command::new("sh");
    sh.arg("-c").args(program).arg(file).args(more);
    sh.output().unwrap()
}

/// One line that names the file and holds `why`, nothing else, and the code of what cannot be.
fn assert_refused(file: &Path, why: &str) {
    for more in [&[][..], &["--json"]] {
        let output = inspect(file, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(BAD_CONFIG), "{said}");
        assert!(output.stdout.is_empty(), "{:?}", output.stdout);
        let line = said.strip_suffix('\n').unwrap();
        assert!(!line.contains('\n'), "{said}");
        let start = format!("tdvmm: inspect {}: ", file.display());
        let told = line.strip_prefix(&start);
        assert!(told.is_some_and(|told| told.contains(why)), "{said}");
    }
}

fn written(folder: &TempDir, bytes: &[u8]) -> PathBuf {
    let file = folder.path().join("image.fd");
    fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn image_is_told_as_json_and_as_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image();
    let file = written(&folder, &bytes);
    let parsed = Image::parse(&bytes).unwrap();
    let regions = parsed.regions(&Contents::default()).unwrap();
    let measured = |order| mrtd(order, &regions).unwrap().to_string();
    let (upstream, two_pass) = (measured(Order::PerPage), measured(Order::TwoPass));
    assert_ne!(upstream, two_pass);

    let output = inspect(&file, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["mrtd"], *upstream);
    assert_eq!(told["mrtd_two_pass"], *two_pass);
    assert_eq!(told["sections"].as_array().map(Vec::len), Some(4));

    let output = inspect(&file, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    for line in [
        format!("MRTD           {upstream}"),
        format!("MRTD two-pass  {two_pass}"),
    ] {
        assert!(told.lines().any(|l| l == line), "{told}");
    }
}

#[test]
fn image_that_this_program_does_not_launch_is_told_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let note = |front, temporary| {
        let file = written(&folder, &image_after(front, temporary));
        let output = inspect(&file, &["--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(told["mrtd"].is_string(), "{told}");
        told["notes"].to_string()
    };
    assert_eq!(note(0, IN_RAM), "[]");
    assert_eq!(note((16 << 20) - LEN, IN_RAM), "[]");
    let too_large = "does not launch it: it is larger than the 16 MiB";
    assert!(note((64 << 20) - LEN, IN_RAM).contains(too_large));
    let section = "does not launch it: it has a section between 0xfc000000";
    assert!(note(0, 0xfc00_0000).contains(section));
    assert_eq!(note(0, 0xff00_0000), "[]");
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    for file in [folder.path(), &fifo, Path::new("/dev/zero")] {
        assert_refused(file, "is no regular file");
    }
    assert_refused(&folder.path().join("none"), "cannot be read: No such file");
}

#[test]
fn file_that_is_no_whole_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image();
    let whole_pages = "not a whole number of pages";
    let code = format!("file of {:#x} bytes holds CODE only", LEN - VARS);
    let cases: [(&[u8], &str); 6] = [
        (&[], whole_pages),
        (&bytes[1..], whole_pages),
        (&bytes[VARS..], &code),
        (&bytes[..VARS], "variable store (VARS) without code"),
        (&bytes[..LEN - 0x1000], "no TDX metadata"),
        (&[0; 0x1000], "no TDX metadata"),
    ];
    for (bytes, why) in cases {
        assert_refused(&written(&folder, bytes), why);
    }
}

#[test]
fn section_that_cannot_be_is_named_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = image();
    // The type of the third section.
    let at = LEN - 0x1000 + 16 + 2 * 32 + 24;
    bytes[at] = 99;
    let file = written(&folder, &bytes);
    assert_refused(&file, "section 2 (type 99): type 99 is not known");
}

#[test]
fn file_larger_than_any_firmware_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk.raw");
    File::create(&file).unwrap().set_len(1 << 40).unwrap();
    assert_refused(&file, "is larger than 64 MiB");
}
