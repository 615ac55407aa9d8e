//! The modules that lift the lint against unsafe code. The reviewed list is in the repository, so a
//! new one shows up in a diff and asks for a second reviewer.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::workspace;

const REVIEWED: &str = "resources/unsafe-modules.txt";
const FOLDERS: [&str; 6] = ["arch", "firmware", "tdx", "devices", "vmm", "tests"];
/// Split, so that this file is not in the list.
const MARK: &str = concat!("expect(", "unsafe_code");

/// Prints the list; `write` makes it the reviewed one.
pub fn list(write: bool) -> Result<ExitCode> {
    let found = find()?;
    found.iter().for_each(|file| println!("{file}"));
    if write {
        fs::write(workspace().join(REVIEWED), found.join("\n") + "\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares with the reviewed list.
pub fn check() -> Result<ExitCode> {
    let found = find()?;
    let reviewed = fs::read_to_string(workspace().join(REVIEWED))
        .with_context(|| format!("cannot read {REVIEWED}"))?;
    let reviewed: Vec<&str> = reviewed.lines().collect();
    let fresh = found.iter().filter(|f| !reviewed.contains(&f.as_str()));
    let stale = reviewed.iter().filter(|f| !found.iter().any(|g| g == **f));
    let mut code = ExitCode::SUCCESS;
    for file in fresh {
        println!("{file} has unsafe code and is not in {REVIEWED}: it needs a second reviewer");
        code = ExitCode::FAILURE;
    }
    for file in stale {
        println!("{file} is in {REVIEWED} and has no unsafe code");
        code = ExitCode::FAILURE;
    }
    Ok(code)
}

fn find() -> Result<Vec<String>> {
    let top = workspace();
    let mut found = Vec::new();
    for folder in FOLDERS {
        visit(&top, &top.join(folder), &mut found)?;
    }
    found.sort();
    Ok(found)
}

fn visit(top: &Path, folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_rust = path.extension().is_some_and(|e| e == "rs");
        if path.is_dir() {
            if !path.ends_with("target") {
                visit(top, &path, found)?;
            }
        } else if is_rust && lifts_lint(&fs::read_to_string(&path)?) {
            found.push(path.strip_prefix(top)?.display().to_string());
        }
    }
    Ok(())
}

/// Whether a source text has the attribute, however it is broken into lines.
fn lifts_lint(source: &str) -> bool {
    source.split_whitespace().collect::<String>().contains(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_over_several_lines_is_found() {
        let attribute = format!("#![{}", MARK.replace('(', "(\n    "));
        assert!(lifts_lint(&format!(
            "//! x\n{attribute},\n    reason = \"y\"\n)]"
        )));
        assert!(!lifts_lint("fn f() {}"));
    }
}
