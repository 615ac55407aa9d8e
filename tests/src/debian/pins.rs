//! `resources/testbed.toml` as values: which packages, of which version, from which suites.
//!
//! Pure: nothing here knows apt, the network or the cache.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// Suites by name.
    pub suite: BTreeMap<String, Suite>,
    /// The series of each role.
    pub role: Roles,
    /// Kernels by series, for instance `7.2`.
    pub kernel: BTreeMap<String, KernelPin>,
    /// Other packages by the name that the testbed gives them.
    pub package: BTreeMap<String, PackagePin>,
}

/// What a kernel is for. Code names roles; which series has a role is in the pins alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// L1's kernel and most guests'.
    Main,
    /// The oldest one that guests run.
    Old,
    /// The newest one there is.
    Newest,
}

/// The series of each role, for instance `7.2`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    main: String,
    old: String,
    newest: String,
}

impl Roles {
    /// The series of a role.
    pub fn series(&self, role: Role) -> &str {
        match role {
            Role::Main => &self.main,
            Role::Old => &self.old,
            Role::Newest => &self.newest,
        }
    }
}

/// As in the pins, and in paths.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Old => "old",
            Self::Newest => "newest",
        })
    }
}

/// A suite of the archive.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// The suite that completes a partial one.
    pub base: Option<String>,
}

/// A kernel: several packages that must agree.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelPin {
    /// Where to look, in this order.
    pub suites: Vec<String>,
    /// Debian version of every part.
    pub version: String,
    /// What `uname -r` says.
    pub release: String,
    /// Parts by name: `image`, `modules`, `headers`, `source` and so on.
    pub parts: BTreeMap<String, Part>,
}

/// One package of a kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Package name, with `{release}`, `{abi}` and `{series}` to be filled in.
    pub package: String,
    /// Lower-case hex sha256 of the package file of the pinned version.
    pub sha256: String,
}

/// A package that stands alone.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PackagePin {
    /// Name in the archive.
    pub package: String,
    /// Where to look, in this order.
    pub suites: Vec<String>,
    /// Start of the upstream version that a replacement must have.
    pub series: String,
    /// Pinned version.
    pub version: String,
    /// Lower-case hex sha256 of the package file of the pinned version.
    pub sha256: String,
    /// Whether everything it depends on is taken too.
    #[serde(default)]
    pub closure: bool,
    /// Another package that goes with this one: both are taken at one and the same version.
    pub with: Option<String>,
}

impl Pins {
    /// Parses the file and checks that every suite and series named in it is declared.
    pub fn parse(text: &str) -> Result<Self> {
        let pins: Self = toml::from_str(text).context("cannot read the pins of the testbed")?;
        let named = pins
            .kernel
            .values()
            .flat_map(|k| &k.suites)
            .chain(pins.package.values().flat_map(|p| &p.suites))
            .chain(pins.suite.values().filter_map(|s| s.base.as_ref()));
        for suite in named {
            ensure!(
                pins.suite.contains_key(suite),
                "suite `{suite}` has no [suite.{suite}] line"
            );
        }
        for role in [Role::Main, Role::Old, Role::Newest] {
            let series = pins.role.series(role);
            ensure!(
                pins.kernel.contains_key(series),
                "the {role} series `{series}` has no [kernel.\"{series}\"]"
            );
        }
        for (name, pin) in &pins.package {
            let Some(with) = &pin.with else { continue };
            let fits = pins.package.get(with).is_some_and(|other| {
                other.with.is_none()
                    && (&other.suites, &other.series, &other.version)
                        == (&pin.suites, &pin.series, &pin.version)
            });
            ensure!(
                fits,
                "package `{name}` goes with `{with}`: that needs the same suites, series and version, and no `with`"
            );
        }
        Ok(pins)
    }

    /// A package and those that are taken at the same version, by name.
    pub fn together(&self, name: &str) -> Result<Vec<(&str, &PackagePin)>> {
        let pin = self.package.get(name);
        let pin = pin.with_context(|| format!("no package `{name}` in the pins"))?;
        let head = pin.with.as_deref().unwrap_or(name);
        let group = self
            .package
            .iter()
            .filter(|(other, pin)| *other == head || pin.with.as_deref() == Some(head));
        Ok(group.map(|(name, pin)| (name.as_str(), pin)).collect())
    }
}

impl Part {
    /// The package's name for a kernel release.
    pub fn name(&self, series: &str, release: &str) -> String {
        self.package
            .replace("{release}", release)
            .replace("{abi}", abi(release))
            .replace("{series}", series)
    }

    /// The part of the package's name before the release, where it has one.
    pub fn prefix(&self) -> Option<&str> {
        self.package
            .split_once("{release}")
            .map(|(prefix, _)| prefix)
    }
}

/// `7.2.13+deb14` of `7.2.13+deb14-amd64`.
fn abi(release: &str) -> &str {
    release.split_once('-').map_or(release, |(abi, _)| abi)
}

/// Whether `release` is of the series and has the flavour of the release `like`.
pub fn is_sibling(release: &str, series: &str, like: &str) -> bool {
    let flavour = |r: &str| r.split_once('-').map(|(_, flavour)| flavour.to_owned());
    super::version::in_series(release, series) && flavour(release) == flavour(like)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_in_the_repository_are_read() {
        let pins = Pins::parse(super::super::store::PINS).unwrap();
        for (series, kernel) in &pins.kernel {
            assert!(kernel.parts.contains_key("image"), "{series}");
            for part in kernel.parts.values() {
                assert_eq!(part.sha256.len(), 64, "{series}");
            }
        }
    }

    #[test]
    fn pins_with_an_undeclared_suite_are_refused() {
        let text = "[suite.a]\nbase = \"b\"\n[role]\nmain = \"1.0\"\nold = \"1.0\"\nnewest = \"1.0\"\n\
                    [kernel]\n[package]\n";
        let error = Pins::parse(text).unwrap_err().to_string();
        assert!(error.contains("[suite.b]"), "{error}");
    }

    #[test]
    fn role_whose_series_has_no_kernel_is_refused() {
        let text = super::super::store::PINS;
        let moved = text.replace("old = \"", "old = \"0.");
        assert_ne!(text, moved);
        let error = Pins::parse(&moved).unwrap_err().to_string();
        assert!(error.contains("the old series `0."), "{error}");
    }

    #[test]
    fn packages_that_go_together_are_pinned_alike() {
        let text = super::super::store::PINS;
        let pins = Pins::parse(text).unwrap();
        for name in ["ovmf-generic", "ovmf-inteltdx"] {
            let group = pins.together(name).unwrap();
            let names: Vec<&str> = group.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["ovmf-generic", "ovmf-inteltdx"]);
        }
        assert_eq!(pins.together("qemu").unwrap().len(), 1);
        let version = &pins.package["ovmf-generic"].version;
        let moved = text.replacen(version.as_str(), "2026.09-1", 1);
        let error = Pins::parse(&moved).unwrap_err().to_string();
        assert!(error.contains("goes with"), "{error}");
    }

    #[test]
    fn part_name_is_filled_in() {
        let part = Part {
            package: "linux-headers-{abi}-common".into(),
            sha256: String::new(),
        };
        assert_eq!(
            part.name("7.2", "7.2.13+deb14-amd64"),
            "linux-headers-7.2.13+deb14-common"
        );
        assert_eq!(part.prefix(), None);
    }

    #[test]
    fn sibling_of_another_flavour_or_series_is_none() {
        let like = "7.2.13+deb14-amd64";
        assert!(is_sibling("7.2.15+deb14-amd64", "7.2", like));
        assert!(!is_sibling("7.2.15+deb14-cloud-amd64", "7.2", like));
        assert!(!is_sibling("7.3.1+deb14-amd64", "7.2", like));
        assert!(!is_sibling("7.2.13+deb14-amd64-dbg", "7.2", like));
    }
}
