//! From a pin and what the suites offer to one version: pure decisions.
//!
//! The pinned version if any of its suites has it (with the pinned sha256, else it is an error: the
//! archive never changes a published file), otherwise the newest of the series in the first suite
//! that has any.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::pins::PackagePin;
use super::version::{compare, in_series};

/// A version of a package as a suite's index tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Package name.
    pub package: String,
    /// Debian version.
    pub version: String,
    /// Lower-case hex.
    pub sha256: String,
}

/// A package file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deb {
    /// Where the mirror has it.
    pub uri: String,
    /// File name.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hex, from the signed index.
    pub sha256: String,
}

/// What was chosen for a [`super::PackagePin`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolvedPackage {
    /// The pinned version at that time.
    pub pin: String,
    /// The version taken.
    pub version: String,
    /// The suite it came from.
    pub suite: String,
    /// The package itself first, then what it depends on, if that was asked for.
    pub debs: Vec<Deb>,
}

/// What was chosen for a [`super::KernelPin`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolvedKernel {
    /// The pinned version at that time.
    pub pin: String,
    /// The version taken.
    pub version: String,
    /// What `uname -r` says.
    pub release: String,
    /// The suite it came from.
    pub suite: String,
    /// The package of each part.
    pub parts: BTreeMap<String, Deb>,
}

/// The candidate with the pinned version, checked against the pinned hash.
pub fn pinned<'a>(
    candidates: &'a [Candidate],
    version: &str,
    sha256: &str,
) -> Result<Option<&'a Candidate>> {
    let Some(found) = candidates.iter().find(|c| c.version == version) else {
        return Ok(None);
    };
    ensure!(
        found.sha256 == sha256,
        "{} {version} is not the pinned file: the index says sha256 {}, the pin {sha256}",
        found.package,
        found.sha256
    );
    Ok(Some(found))
}

/// The suite and the candidates for packages that are taken at one version, in their order. `offer` gives what a suite
/// has of a package; a suite is not asked when one before it has the pins.
pub fn choose<'a>(
    group: &[&'a PackagePin],
    offer: impl Fn(&str, &PackagePin) -> Result<Vec<Candidate>>,
) -> Result<Option<(&'a str, Vec<Candidate>)>> {
    let Some(first) = group.first() else {
        return Ok(None);
    };
    let mut replacement = None;
    for suite in &first.suites {
        let offers = group.iter().map(|pin| offer(suite, pin));
        let offers = offers.collect::<Result<Vec<_>>>()?;
        let found = group
            .iter()
            .zip(&offers)
            .map(|(pin, candidates)| pinned(candidates, &pin.version, &pin.sha256));
        let found: Option<Vec<_>> = found.collect::<Result<Vec<_>>>()?.into_iter().collect();
        if let Some(found) = found {
            return Ok(Some((suite, found.into_iter().cloned().collect())));
        }
        if replacement.is_none()
            && let Some(version) = newest_common(&offers, &first.series)
        {
            let found = offers
                .iter()
                .flat_map(|candidates| candidates.iter().find(|c| c.version == version));
            replacement = Some((suite.as_str(), found.cloned().collect()));
        }
    }
    Ok(replacement)
}

/// Whether records of packages that are taken together are of these pins and of one version.
pub fn still_good(pins: &[&PackagePin], known: &[ResolvedPackage]) -> bool {
    let of_pins = pins.iter().zip(known).all(|(pin, k)| k.pin == pin.version);
    let versions = known
        .windows(2)
        .all(|pair| pair[0].version == pair[1].version);
    of_pins && versions
}

/// The newest version that all of several packages have, for instance the parts of a kernel.
pub fn newest_common(parts: &[Vec<Candidate>], series: &str) -> Option<String> {
    let (first, rest) = parts.split_first()?;
    first
        .iter()
        .filter(|c| in_series(&c.version, series))
        .filter(|c| {
            rest.iter()
                .all(|part| part.iter().any(|p| p.version == c.version))
        })
        .map(|c| c.version.clone())
        .max_by(|a, b| compare(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(version: &str) -> Candidate {
        Candidate {
            package: "p".into(),
            version: version.into(),
            sha256: format!("h{version}"),
        }
    }

    #[test]
    fn pinned_version_with_another_hash_is_refused() {
        let list = [candidate("1.2-1")];
        assert!(pinned(&list, "1.2-1", "h1.2-1").unwrap().is_some());
        assert!(pinned(&list, "1.2-1", "other").is_err());
        assert!(pinned(&list, "1.3-1", "h").unwrap().is_none());
    }

    fn pin(version: &str) -> PackagePin {
        PackagePin {
            package: "p".into(),
            suites: vec!["a".into(), "b".into()],
            series: "1.".into(),
            version: version.into(),
            sha256: format!("h{version}"),
            closure: false,
            with: None,
        }
    }

    #[test]
    fn newest_common_stays_in_the_series() {
        let list = vec![
            candidate("7.2.9-1"),
            candidate("7.2.13-1"),
            candidate("7.3.1-1"),
        ];
        let lists = [list];
        assert_eq!(newest_common(&lists, "7.2").as_deref(), Some("7.2.13-1"));
        assert_eq!(newest_common(&lists, "6.12"), None);
    }

    #[test]
    fn choose_takes_the_pin_of_any_suite_before_a_newer_version() {
        let pin = pin("1.2-1");
        let chosen = choose(&[&pin], |suite, _| {
            let version = if suite == "a" { "1.9-1" } else { "1.2-1" };
            Ok(vec![candidate(version)])
        });
        assert_eq!(chosen.unwrap().unwrap(), ("b", vec![candidate("1.2-1")]));
    }

    #[test]
    fn choose_takes_packages_together_at_one_version() {
        let (code, mut store) = (pin("1.2-1"), pin("1.2-1"));
        store.package = "store".into();
        // The pin of one is still there, but not of the other, which has a newer version than both.
        let offer = |_: &str, pin: &PackagePin| {
            let versions: &[&str] = if pin.package == "store" {
                &["1.3-1", "1.4-1"]
            } else {
                &["1.2-1", "1.3-1"]
            };
            Ok(versions.iter().map(|v| candidate(v)).collect())
        };
        let (suite, found) = choose(&[&code, &store], offer).unwrap().unwrap();
        assert_eq!(suite, "a");
        assert_eq!(found, [candidate("1.3-1"), candidate("1.3-1")]);
    }

    #[test]
    fn records_of_two_versions_are_not_good_together() {
        let pin = pin("1.2-1");
        let record = |version: &str| ResolvedPackage {
            pin: "1.2-1".into(),
            version: version.into(),
            suite: "a".into(),
            debs: vec![],
        };
        let pins = [&pin, &pin];
        assert!(still_good(&pins, &[record("1.3-1"), record("1.3-1")]));
        assert!(!still_good(&pins, &[record("1.2-1"), record("1.3-1")]));
    }

    #[test]
    fn newest_common_skips_a_version_that_lacks_a_part() {
        let image = vec![candidate("7.2.9-1"), candidate("7.2.13-1")];
        let source = vec![candidate("7.2.9-1")];
        assert_eq!(
            newest_common(&[image.clone(), source], "7.2").as_deref(),
            Some("7.2.9-1")
        );
        assert_eq!(newest_common(&[image, vec![]], "7.2"), None);
    }
}
