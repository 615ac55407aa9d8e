//! Kernel log lines of a guest that are no fault of the VMM. Everything else fails the case.

/// A part of a line, and why it may appear.
const ALLOWED: &[(&str, &str)] = &[];

/// The lines that nothing in the list allows.
pub fn unexpected(warnings: &[String]) -> Vec<&str> {
    let allowed = |line: &str| ALLOWED.iter().any(|(part, _)| line.contains(part));
    warnings
        .iter()
        .map(String::as_str)
        .filter(|line| !allowed(line))
        .collect()
}
