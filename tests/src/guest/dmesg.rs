//! Kernel log lines of a guest that are no fault of the VMM. Everything else fails the case.

/// A part of a line, and why it may appear.
const ALLOWED: &[(&str, &str)] = &[
    (
        "amd_pstate: the _CPC object is not present",
        "6.12 wants ACPI performance objects on every AMD processor; a virtual one has none",
    ),
    (
        "hrtimer: interrupt took",
        "the emulated machine did not run for a while, which is how busy the real one is",
    ),
    (
        "Long readout interval, skipping watchdog check",
        "the same, seen between two readings of two clocks; a clock that is wrong is told in other words",
    ),
];

/// The lines that nothing in the list allows.
pub fn unexpected(warnings: &[String]) -> Vec<&str> {
    let allowed = |line: &str| ALLOWED.iter().any(|(part, _)| line.contains(part));
    warnings
        .iter()
        .map(String::as_str)
        .filter(|line| !allowed(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_that_is_not_allowed_is_kept() {
        let warnings =
            ["4 hrtimer: interrupt took 9 ns", "4 ACPI: table is broken"].map(str::to_owned);
        assert_eq!(unexpected(&warnings), ["4 ACPI: table is broken"]);
        assert!(
            ALLOWED
                .iter()
                .all(|(part, reason)| !part.is_empty() && !reason.is_empty())
        );
    }
}
