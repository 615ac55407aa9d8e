//! The crate graph, and a reason for every direct dependency.
//!
//! The graph is a decision (ARCHITECTURE.md): an edge that is not in [`ALLOWED`] fails, of whatever
//! kind it is. `resources/dependencies.md` must have a line for each direct dependency that is not
//! ours, naming the crates that use it, and no line more; an entry of `[workspace.dependencies]`
//! that no crate uses fails as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{list, metadata, text, workspace};

/// Package, its name in the table of reasons, and the packages of ours it may use.
const ALLOWED: &[(&str, &str, &[&str])] = &[
    ("tdvmm-arch", "arch", &[]),
    ("tdvmm-devices", "devices", &[]),
    ("tdvmm-firmware", "firmware", &["tdvmm-arch"]),
    ("tdvmm-tdx", "tdx", &["tdvmm-arch"]),
    (
        "tdvmm",
        "vmm",
        &["tdvmm-arch", "tdvmm-devices", "tdvmm-firmware", "tdvmm-tdx"],
    ),
    (
        "tdvmm-tests",
        "tests",
        &[
            "tdvmm",
            "tdvmm-arch",
            "tdvmm-devices",
            "tdvmm-firmware",
            "tdvmm-tdx",
        ],
    ),
    ("xtask", "xtask", &[]),
];
const REASONS: &str = "resources/dependencies.md";

type Uses = BTreeMap<String, BTreeSet<String>>;

/// Checks all of it.
pub fn edges() -> Result<ExitCode> {
    let metadata = metadata(false)?;
    let read = |name: &str| {
        fs::read_to_string(workspace().join(name)).with_context(|| format!("cannot read {name}"))
    };
    let (mut faults, uses) = examine(&metadata);
    faults.extend(compare(&uses, &reasons(&read(REASONS)?)));
    faults.extend(unused(&read("Cargo.toml")?, &uses));
    faults.iter().for_each(|fault| println!("{fault}"));
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Edges that are not allowed, and who uses which dependency that is not ours.
fn examine(metadata: &Value) -> (Vec<String>, Uses) {
    let mut faults = Vec::new();
    let mut uses = Uses::new();
    for package in list(metadata, "packages") {
        let name = text(package, "name");
        let Some((_, short, allowed)) = ALLOWED.iter().find(|(n, ..)| *n == name) else {
            faults.push(format!("package {name} is not in the crate graph"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let dependency = text(dependency, "name");
            if !ALLOWED.iter().any(|(n, ..)| *n == dependency) {
                uses.entry(dependency.to_owned())
                    .or_default()
                    .insert((*short).to_owned());
            } else if !allowed.contains(&dependency) {
                faults.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    (faults, uses)
}

/// The table of reasons.
fn reasons(table: &str) -> Uses {
    let rows = table.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [name, users, reason, ..] = cells[..] else {
            return None;
        };
        let heading = name == "crate" || name.starts_with("---") || reason.is_empty();
        (!heading).then(|| (name.to_owned(), split_users(users)))
    });
    // A crate may have several lines: one reason for each user.
    let mut reasons = Uses::new();
    rows.for_each(|(name, users)| reasons.entry(name).or_default().extend(users));
    reasons
}

/// `devices` and `vmm` of `tdvmm-devices (tests, benches), vmm`.
fn split_users(text: &str) -> BTreeSet<String> {
    let mut users = BTreeSet::new();
    let (mut depth, mut name) = (0_u32, String::new());
    for c in text.chars().chain([',']) {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                let user = std::mem::take(&mut name);
                let user = user.trim();
                users.insert(user.strip_prefix("tdvmm-").unwrap_or(user).to_owned());
            }
            c if depth == 0 => name.push(c),
            _ => {}
        }
    }
    users.remove("");
    users
}

fn compare(uses: &Uses, reasons: &Uses) -> Vec<String> {
    let none = BTreeSet::new();
    let names: BTreeSet<&String> = uses.keys().chain(reasons.keys()).collect();
    let mut faults = Vec::new();
    for name in names {
        let used = uses.get(name).unwrap_or(&none);
        let told = reasons.get(name).unwrap_or(&none);
        let join = |set: BTreeSet<&String>| set.into_iter().cloned().collect::<Vec<_>>().join(", ");
        let missing = join(used.difference(told).collect());
        if !missing.is_empty() {
            faults.push(format!("{REASONS}: no reason why {missing} uses {name}"));
        }
        let stale = join(told.difference(used).collect());
        if !stale.is_empty() {
            faults.push(format!("{REASONS}: {stale} does not use {name}"));
        }
    }
    faults
}

/// Entries of `[workspace.dependencies]` that no crate uses.
fn unused(manifest: &str, uses: &Uses) -> Vec<String> {
    let section = manifest
        .split("[workspace.dependencies]")
        .nth(1)
        .unwrap_or_default();
    let lines = section.lines().skip(1).take_while(|l| !l.starts_with('['));
    let names = lines
        .filter_map(|l| l.split_once('='))
        .map(|(name, _)| name.trim());
    names
        .filter(|n| !uses.contains_key(*n) && !ALLOWED.iter().any(|(own, ..)| own == n))
        .map(|n| format!("Cargo.toml: no crate uses the workspace dependency {n}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn graph(package: &str, dependency: &str) -> Value {
        json!({"packages": [{"name": package, "dependencies": [{"name": dependency}]}]})
    }

    #[test]
    fn edge_against_the_graph_is_a_fault() {
        let (faults, _) = examine(&graph("tdvmm-devices", "tdvmm-arch"));
        assert_eq!(faults, ["tdvmm-devices must not depend on tdvmm-arch"]);
        assert!(examine(&graph("tdvmm-tdx", "tdvmm-arch")).0.is_empty());
        assert!(!examine(&graph("tdvmm-new", "libc")).0.is_empty());
    }

    #[test]
    fn dependency_needs_a_reason_and_a_reason_a_dependency() {
        let (_, uses) = examine(&graph("tdvmm-devices", "log"));
        let table =
            "| crate | used by | why |\n|---|---|---|\n| log | devices (tests, x), vmm | y |";
        let told = reasons(table);
        assert_eq!(
            compare(&uses, &told),
            [format!("{REASONS}: vmm does not use log")]
        );
        let lacking = compare(&uses, &Uses::new());
        assert_eq!(
            lacking,
            [format!("{REASONS}: no reason why devices uses log")]
        );
    }

    #[test]
    fn unused_workspace_dependency_is_found() {
        let (_, uses) = examine(&graph("tdvmm-devices", "log"));
        let manifest = "[workspace.dependencies]\nlog = \"1\"\nnix = \"1\"\ntdvmm = { path = \"v\" }\n[x]\na = 1";
        assert_eq!(unused(manifest, &uses).len(), 1);
    }
}
