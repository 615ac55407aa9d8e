//! Licences, sources and advisories of all dependencies: by cargo-deny where it is installed, else
//! by a look of our own at licences and sources, with the same `deny.toml`.

use std::collections::BTreeSet;
use std::fs;
use std::process::{ExitCode, Stdio};

use anyhow::Result;

use crate::cargo::{cargo, list, metadata, run, text, workspace};

/// Runs the check.
pub fn deny() -> Result<ExitCode> {
    let mut probe = cargo(["deny", "--version"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|s| s.success()) {
        return run(cargo(["deny", "check"]));
    }
    println!("cargo-deny is not installed: licences and sources are checked, advisories are NOT");
    let config = fs::read_to_string(workspace().join("deny.toml"))?;
    let allowed = allowed_licences(&config);
    let mut faults = Vec::new();
    for package in list(&metadata(true)?, "packages") {
        let name = format!("{} {}", text(package, "name"), text(package, "version"));
        let licence = text(package, "license");
        if !is_allowed(licence, &allowed) {
            faults.push(format!("{name}: licence `{licence}` is not in deny.toml"));
        }
        // Null for our own packages.
        if let Some(source) = package["source"].as_str()
            && !source.starts_with("registry+")
        {
            faults.push(format!("{name}: comes from {source}, not from a registry"));
        }
    }
    faults.iter().for_each(|fault| println!("{fault}"));
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The quoted words of `allow = [...]` in the section `[licenses]`.
fn allowed_licences(config: &str) -> BTreeSet<String> {
    let section = config.split("[licenses]").nth(1).unwrap_or_default();
    let list = section.split("allow = [").nth(1).unwrap_or_default();
    let list = list.split(']').next().unwrap_or_default();
    list.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Whether an SPDX expression can be fulfilled with allowed licences. `AND` binds more than `OR`;
/// an old slash means `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ");
    if let Some((before, rest)) = expression.split_once('(') {
        // Groups are few and small: replace the first by its value and look again.
        let (group, after) = rest.split_once(')').unwrap_or((rest, ""));
        let value = if is_allowed(group, allowed) {
            TRUE
        } else {
            FALSE
        };
        return is_allowed(&format!("{before}{value}{after}"), allowed);
    }
    let word = |w: &str| w == TRUE || allowed.contains(w);
    expression
        .split(" OR ")
        .any(|all| all.split(" AND ").all(|w| word(w.trim())))
}

const TRUE: &str = "true";
const FALSE: &str = "false";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged() {
        let allowed =
            allowed_licences("[licenses]\nallow = [\n \"MIT\", # x\n \"Apache-2.0\"\n]\n");
        assert_eq!(allowed.len(), 2);
        assert!(is_allowed("MIT OR GPL-3.0", &allowed));
        assert!(is_allowed("GPL-3.0/MIT", &allowed));
        assert!(!is_allowed("MIT AND GPL-3.0", &allowed));
        assert!(is_allowed("(MIT OR GPL-3.0) AND Apache-2.0", &allowed));
        assert!(!is_allowed("(MIT OR Apache-2.0) AND GPL-3.0", &allowed));
        assert!(!is_allowed("", &allowed));
    }
}
