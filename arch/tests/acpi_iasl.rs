//! The golden ACPI tables as the reference compiler reads them. Needs `iasl` (Debian: acpica-tools).
//!
//! Where it is missing the cases are reported as ignored, which the usual harness cannot do at run time: hence a
//! `main` of its own with the same output. `TDVMM_REQUIRE=iasl` turns the missing program into a failure.

#![expect(
    clippy::print_stdout,
    reason = "a test harness reports on standard output"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

type Case = (&'static str, fn(&Path) -> Result<(), String>);

const CASES: &[Case] = &[
    (
        "every_table_disassembles_without_remark",
        every_table_disassembles,
    ),
    (
        "dsdt_disassembles_to_its_golden_text",
        dsdt_disassembles_to_golden,
    ),
    (
        "dsdt_text_compiles_to_its_golden_bytes",
        dsdt_compiles_to_golden,
    ),
];

const TABLES: &[&str] = &["dsdt", "facp", "apic-2", "apic-300", "mcfg", "xsdt"];

/// Bytes of a table's header; the compiler writes its own name and version into the last eight.
const HEADER: usize = 36;

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).collect();
    if filters.iter().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = filters.iter().filter(|f| !f.starts_with('-')).collect();
    let chosen = CASES.iter().filter(|(name, _)| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    });

    let present = Command::new("iasl").arg("-v").output().is_ok();
    let required = std::env::var("TDVMM_REQUIRE")
        .is_ok_and(|needs| needs.split(',').any(|need| need.trim() == "iasl"));
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    println!("\nrunning {} tests", chosen.clone().count());
    for (name, case) in chosen {
        if !present && !required {
            println!("test {name} ... ignored, iasl is not installed (package acpica-tools)");
            ignored += 1;
            continue;
        }
        match in_scratch(name, *case) {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(why) => {
                println!("test {name} ... FAILED\n{why}");
                failed += 1;
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; \
         0 measured; 0 filtered out; finished in 0.00s\n"
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs `case` in an empty folder of its own, with copies of the golden files.
fn in_scratch(name: &str, case: fn(&Path) -> Result<(), String>) -> Result<(), String> {
    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let prepare = || -> std::io::Result<()> {
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch)?;
        }
        std::fs::create_dir_all(&scratch)?;
        for table in TABLES {
            let file = format!("{table}.bin");
            std::fs::copy(golden(&file), scratch.join(&file))?;
        }
        Ok(())
    };
    prepare().map_err(|error| format!("{}: {error}", scratch.display()))?;
    case(&scratch)
}

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Runs iasl and refuses anything but plain success.
fn iasl(scratch: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(scratch)
        .output()
        .map_err(|error| format!("iasl: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // A compilation ends with counts, of which zeroes are fine.
    let complaint = text.lines().find(|line| {
        let counts = line.starts_with("Compilation successful. 0 Errors, 0 Warnings, 0 Remarks");
        let line = line.to_ascii_lowercase();
        !counts
            && ["error", "warning", "remark", "invalid", "unknown"]
                .iter()
                .any(|w| line.contains(w))
    });
    match complaint {
        None if output.status.success() => Ok(()),
        _ => Err(format!("iasl {arguments:?}: {}\n{text}", output.status)),
    }
}

fn every_table_disassembles(scratch: &Path) -> Result<(), String> {
    for table in TABLES {
        iasl(scratch, &["-d", &format!("{table}.bin")])?;
        let text = read(&scratch.join(format!("{table}.dsl")))?;
        let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
        if let Some(word) = ["invalid", "incorrect", "unknown", "error", "warning"]
            .into_iter()
            .find(|word| text.contains(word))
        {
            return Err(format!("{table}.dsl has the word {word}:\n{text}"));
        }
    }
    Ok(())
}

fn dsdt_disassembles_to_golden(scratch: &Path) -> Result<(), String> {
    iasl(scratch, &["-d", "dsdt.bin"])?;
    let made = code(&read(&scratch.join("dsdt.dsl"))?);
    let golden = code(&read(&golden("dsdt.dsl"))?);
    if made == golden {
        Ok(())
    } else {
        Err(format!("now it is {made}\nnot {golden}"))
    }
}

fn dsdt_compiles_to_golden(scratch: &Path) -> Result<(), String> {
    std::fs::copy(golden("dsdt.dsl"), scratch.join("source.dsl"))
        .map_err(|error| format!("dsdt.dsl: {error}"))?;
    iasl(scratch, &["-p", "compiled", "source.dsl"])?;
    let made = read(&scratch.join("compiled.aml"))?;
    let golden = read(&scratch.join("dsdt.bin"))?;
    if made.get(HEADER..) == golden.get(HEADER..) && made.get(10..28) == golden.get(10..28) {
        Ok(())
    } else {
        Err(format!("made {made:02x?}\nnot {golden:02x?}"))
    }
}

/// Source text without comments and white space, in which versions of the disassembler differ.
fn code(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut rest = text.as_ref();
    let mut code = String::new();
    while let Some(start) = rest.find("/*") {
        code.push_str(&rest[..start]);
        rest = rest[start..]
            .find("*/")
            .map_or("", |end| &rest[start + end + 2..]);
        code.push('\n');
    }
    code.push_str(rest);
    code.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect()
}
