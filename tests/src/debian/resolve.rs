//! From a pin and what the suites offer to one version: pure decisions.
//!
//! The pinned version if any of its suites has it (with the pinned sha256, else it is an error: the
//! archive never changes a published file), otherwise the newest of the series in the first suite
//! that has any.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

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

/// The newest candidate of a series.
pub fn newest<'a>(candidates: &'a [Candidate], series: &str) -> Option<&'a Candidate> {
    candidates
        .iter()
        .filter(|c| in_series(&c.version, series))
        .max_by(|a, b| compare(&a.version, &b.version))
}

/// The newest version that every part of a kernel has.
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

    #[test]
    fn newest_stays_in_the_series() {
        let list = [
            candidate("7.2.9-1"),
            candidate("7.2.13-1"),
            candidate("7.3.1-1"),
        ];
        assert_eq!(newest(&list, "7.2").unwrap().version, "7.2.13-1");
        assert!(newest(&list, "6.12").is_none());
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
