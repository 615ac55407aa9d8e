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
    pub(super) list: bool,
    pub(super) keep_logs: bool,
    pub(super) count: Option<u32>,
}

impl Options {
    /// Whether lane L4 is meant.
    pub fn on_host(&self) -> bool {
        self.on_host
    }

    /// Reads `[FILTER…] [--exact] [--full] [--on-host] [--list] [--keep-logs] [--count N]`.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => options.exact = true,
                "--full" => options.full = true,
                "--on-host" => options.on_host = true,
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

    /// Whether a case is to run: one whose whole name is given in any tier, otherwise by tier.
    pub(super) fn selects(&self, case: &Case) -> bool {
        let in_tier = self.full || case.tier == Tier::Representative;
        if self.filters.is_empty() {
            return in_tier;
        }
        let named = self.filters.contains(&case.name);
        let matched = self.filters.iter().any(|f| case.name.contains(f.as_str()));
        named || (!self.exact && in_tier && matched)
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

    #[test]
    fn full_case_runs_only_when_asked_for() {
        let (quick, full) = (
            case("boot", Tier::Representative),
            case("boot-big", Tier::Full),
        );
        assert!(options(&[]).selects(&quick) && !options(&[]).selects(&full));
        assert!(options(&["--full"]).selects(&full));
        assert!(options(&["boot-big"]).selects(&full) && !options(&["big"]).selects(&full));
        assert!(options(&["big", "--full"]).selects(&full) && options(&["oo"]).selects(&quick));
        let exact = options(&["boot", "--exact"]);
        assert!(exact.selects(&quick) && !exact.selects(&full));
    }

    #[test]
    fn unknown_option_is_refused() {
        assert!(Options::parse(["--fast".to_owned()]).is_err());
        assert!(Options::parse(["--count", "0"].map(str::to_owned)).is_err());
    }
}
