//! What a test program prints, counted. Pure.

/// Counts of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that were not run.
    pub ignored: u32,
    /// Names of those that failed.
    pub failures: Vec<String>,
    /// Those not run, with the reason that was given.
    pub reasons: Vec<String>,
    /// Lines that belong into the summary.
    pub notes: Vec<String>,
    /// The same of the testbed as a whole, of no case.
    pub testbed: Vec<String>,
    /// Name of the last test seen.
    pub last: String,
}

impl Counts {
    /// Whether no test ran, failed or was ignored.
    pub fn is_empty(&self) -> bool {
        self.passed + self.failed + self.ignored == 0
    }

    /// Takes in one line of the output of a test program.
    pub fn take(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += number_before(result, " passed");
            self.failed += number_before(result, " failed");
            self.ignored += number_before(result, " ignored");
        } else if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|l| l.rsplit_once(" ... "))
        {
            let name = name.trim();
            self.last = name.to_owned();
            if let Some(reason) = outcome.strip_prefix("ignored") {
                self.reasons
                    .push(ignored(name, reason.trim_start_matches([',', ' '])));
            } else if outcome.starts_with("FAILED") {
                self.failures.push(name.to_owned());
            }
        } else if let Some(note) = line.strip_prefix("    note: ") {
            // Printed by a case below its own line.
            self.notes.push(format!("{}: {note}", self.last));
        } else if let Some(note) = line.strip_prefix("testbed note: ") {
            self.testbed.push(note.to_owned());
        }
    }
}

/// `name: reason`. Some runners print the reason in brackets behind the name instead.
fn ignored(name: &str, reason: &str) -> String {
    match name.split_once(" (") {
        _ if !reason.is_empty() => format!("{name}: {reason}"),
        Some((name, inside)) if !inside.starts_with("line ") => {
            format!("{name}: {}", inside.trim_end_matches(')'))
        }
        _ => format!("{name}: no reason given"),
    }
}

fn number_before(text: &str, word: &str) -> u32 {
    let before = text.split(word).next().unwrap_or_default();
    let digits = before
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> Counts {
        let mut counts = Counts::default();
        text.lines().for_each(|line| counts.take(line));
        counts
    }

    #[test]
    fn results_of_several_programs_are_added() {
        let found = counts(
            "test a::b ... ok\ntest c ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
             test d ... ignored, needs /dev/kvm\n\
             test result: ok. 10 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out\n",
        );
        assert_eq!((found.passed, found.failed, found.ignored), (11, 1, 1));
        assert_eq!(found.failures, ["c"]);
        assert_eq!(found.reasons, ["d: needs /dev/kvm"]);
    }

    #[test]
    fn note_belongs_to_the_case_above() {
        let found = counts("test boot ... ok (9.1 s)\n    note: marker after 7 s\n");
        assert_eq!(found.notes, ["boot: marker after 7 s"]);
    }

    #[test]
    fn note_of_the_testbed_belongs_to_no_case() {
        let found = counts("test boot ... ok (9.1 s)\ntestbed note: qemu 1 is gone; using 2\n");
        assert_eq!(found.testbed, ["qemu 1 is gone; using 2"]);
        assert!(found.notes.is_empty());
    }

    #[test]
    fn reason_in_brackets_is_found() {
        let found = counts("test numbers (no headers: set X) ... ignored\n");
        assert_eq!(found.reasons, ["numbers: no headers: set X"]);
    }

    #[test]
    fn file_of_a_doc_test_stays_in_its_name() {
        let found = counts("test src/a.rs - f (line 3) ... ignored\n");
        assert_eq!(found.reasons, ["src/a.rs - f (line 3): no reason given"]);
    }
}
