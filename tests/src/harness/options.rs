//! Which cases to run, and how: the command line of a lane's program.

use anyhow::{Result, anyhow, bail, ensure};

use super::{Case, Tier};

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(super) filters: Vec<String>,
    pub(super) exact: bool,
    pub(super) full: bool,
    on_host: bool,
    /// The name may be of a case of another lane: none here is no mistake.
    pub(super) allow_none: bool,
    pub(super) list: bool,
    pub(super) keep_logs: bool,
    pub(super) count: Option<u32>,
}

impl Options {
    /// Whether lane L4 is meant.
    pub fn on_host(&self) -> bool {
        self.on_host
    }

    /// Reads `[FILTER…] [--exact] [--full] [--on-host] [--allow-none] [--list] [--keep-logs] [--count N]`.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => options.exact = true,
                "--full" => options.full = true,
                "--on-host" => options.on_host = true,
                "--allow-none" => options.allow_none = true,
                "--list" => options.list = true,
                "--keep-logs" => options.keep_logs = true,
                "--count" => {
                    let count = arguments
                        .next()
                        .ok_or_else(|| anyhow!("--count wants a number"))?;
                    let count = count.parse()?;
                    ensure!(count > 0, "--count 0 would show nothing; give 1 or more");
                    options.count = Some(count);
                }
                // What `cargo test` passes to every test program.
                "--nocapture" | "--quiet" | "-q" | "--include-ignored" => {}
                other if other.starts_with('-') => bail!("unknown option {other}"),
                _ => options.filters.push(argument),
            }
        }
        Ok(options)
    }

    /// The cases that are to run: one whose whole name is given in any tier, otherwise by tier.
    ///
    /// # Errors
    /// Names are given, but no case has one of them.
    pub(super) fn select<'a>(&self, lane: &str, cases: &'a [Case]) -> Result<Vec<&'a Case>> {
        let selected = cases.iter().filter(|case| self.selects(case, cases));
        let selected: Vec<&Case> = selected.collect();
        let name = self.filters.join(", ");
        ensure!(
            !self.exact || !selected.is_empty(),
            "no case of {lane} is named {name}"
        );
        ensure!(
            self.filters.is_empty() || self.allow_none || !selected.is_empty(),
            "no case of {lane} in this tier has `{name}` in its name (--list shows all names)"
        );
        Ok(selected)
    }

    fn selects(&self, case: &Case, cases: &[Case]) -> bool {
        let in_tier = self.full || case.tier == Tier::Representative;
        if self.filters.is_empty() {
            return in_tier;
        }
        self.filters.iter().any(|filter| {
            // A whole name means this case alone, though the names of others may begin with it.
            let whole = self.exact || cases.iter().any(|other| other.name == *filter);
            let part = !whole && in_tier && case.name.contains(filter.as_str());
            case.name == *filter || part
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::MachineKind;
    use super::*;

    const KIND: MachineKind = MachineKind {
        name: "none",
        build: |_| bail!("no machine"),
    };

    fn case(name: &str, tier: Tier) -> Case {
        Case {
            name: name.to_owned(),
            tier,
            machine: &KIND,
            prepare: |_| Ok(()),
            deadline: Duration::ZERO,
            run: Box::new(|_| Ok(())),
        }
    }

    fn options(words: &[&str]) -> Options {
        Options::parse(words.iter().map(|w| (*w).to_owned())).unwrap()
    }

    /// Names of what is selected of `boot` and `boot-small`, representative, and `boot-big`, full.
    fn selected(words: &[&str]) -> Result<Vec<String>> {
        let cases = [
            case("boot", Tier::Representative),
            case("boot-small", Tier::Representative),
            case("boot-big", Tier::Full),
        ];
        let selected = options(words).select("the lane", &cases)?;
        Ok(selected.iter().map(|c| c.name.clone()).collect())
    }

    #[test]
    fn full_case_runs_only_when_asked_for() {
        let quick = ["boot", "boot-small"];
        assert_eq!(selected(&[]).unwrap(), quick);
        assert_eq!(selected(&["oo"]).unwrap(), quick);
        assert_eq!(selected(&["--full"]).unwrap().len(), 3);
        assert_eq!(selected(&["boot-big"]).unwrap(), ["boot-big"]);
        assert_eq!(selected(&["big", "--full"]).unwrap(), ["boot-big"]);
        assert_eq!(selected(&["boot", "--exact"]).unwrap(), ["boot"]);
    }

    #[test]
    fn whole_name_selects_no_case_that_begins_with_it() {
        assert_eq!(selected(&["boot"]).unwrap(), ["boot"]);
        assert_eq!(selected(&["boot", "--full"]).unwrap(), ["boot"]);
        assert_eq!(
            selected(&["boot-", "--full"]).unwrap(),
            ["boot-small", "boot-big"]
        );
    }

    #[test]
    fn name_of_no_case_is_an_error_unless_it_may_be_of_another_lane() {
        let error = selected(&["boto"]).unwrap_err().to_string();
        assert!(error.contains("`boto`"), "{error}");
        assert!(selected(&["big"]).is_err());
        assert!(selected(&["boto", "--allow-none"]).unwrap().is_empty());
        assert!(selected(&["boto", "--allow-none", "--exact"]).is_err());
    }

    #[test]
    fn limit_is_a_multiple_of_the_deadline_but_ends_a_hang() {
        let limit = |deadline| {
            let deadline = Duration::from_secs(deadline);
            Case {
                deadline,
                ..case("one", Tier::Full)
            }
            .limit()
            .as_secs()
        };
        assert_eq!(limit(60), 240);
        assert_eq!(limit(300), 900);
        assert_eq!(limit(480), 960);
    }

    #[test]
    fn unknown_option_is_refused() {
        assert!(Options::parse(["--fast".to_owned()]).is_err());
        assert!(Options::parse(["--count", "0"].map(str::to_owned)).is_err());
    }
}
