//! From pins to versions, by what the suites' indexes offer.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Result, anyhow};

use super::apt::Apt;
use super::pins::{KernelPin, PackagePin, is_sibling};
use super::resolve::{
    Candidate, Deb, ResolvedKernel, ResolvedPackage, choose, newest_common, pinned,
};
use super::store::Packages;

impl Packages {
    pub(super) fn suite(&self, name: &str) -> Result<Rc<Apt>> {
        if let Some(apt) = self.suites.borrow().get(name) {
            return Ok(Rc::clone(apt));
        }
        let suite = self.pins.suite.get(name);
        let suite = suite.ok_or_else(|| anyhow!("no suite `{name}` in the pins"))?;
        let apt = Rc::new(Apt::open(self.cache(), &self.archive, name, suite)?);
        self.suites
            .borrow_mut()
            .insert(name.to_owned(), Rc::clone(&apt));
        Ok(apt)
    }

    /// What is taken for packages that are taken together, in their order.
    pub(super) fn resolve_packages(&self, group: &[&PackagePin]) -> Result<Vec<ResolvedPackage>> {
        let chosen = choose(group, |suite, pin| {
            self.suite(suite)?.candidates(&pin.package)
        })?;
        let (suite, found) = chosen.ok_or_else(|| {
            let names: Vec<&str> = group.iter().map(|pin| pin.package.as_str()).collect();
            let (version, series, suites) = group.first().map_or_else(Default::default, |pin| {
                (
                    pin.version.clone(),
                    pin.series.clone(),
                    pin.suites.join(", "),
                )
            });
            anyhow!(
                "neither {version} nor another version of series {series} of {} is in {suites}",
                names.join(" and ")
            )
        })?;
        let pairs = group.iter().zip(&found);
        pairs
            .map(|(pin, found)| self.resolved_package(pin, suite, found))
            .collect()
    }

    fn resolved_package(
        &self,
        pin: &PackagePin,
        suite: &str,
        found: &Candidate,
    ) -> Result<ResolvedPackage> {
        let apt = self.suite(suite)?;
        let first = apt.locate(found)?;
        let mut debs: Vec<Deb> = vec![first.clone()];
        if pin.closure {
            let all = apt.closure(&[format!("{}={}", found.package, found.version)])?;
            debs.extend(all.into_iter().filter(|d| *d != first));
        }
        Ok(ResolvedPackage {
            pin: pin.version.clone(),
            version: found.version.clone(),
            suite: suite.to_owned(),
            debs,
        })
    }

    pub(super) fn resolve_kernel(&self, series: &str, pin: &KernelPin) -> Result<ResolvedKernel> {
        let mut replacement = None;
        for suite in &pin.suites {
            let parts = self.kernel_candidates(series, pin, suite, &pin.release)?;
            let mut whole = true;
            for (part, candidates) in pin.parts.values().zip(&parts) {
                whole &= pinned(candidates, &pin.version, &part.sha256)?.is_some();
            }
            if whole {
                return self.resolved_kernel(pin, suite, &pin.release, &pin.version, &parts);
            }
            if replacement.is_none() {
                replacement = self
                    .newest_kernel(series, pin, suite)?
                    .map(|found| (suite, found));
            }
        }
        let (suite, (release, version)) = replacement.ok_or_else(|| {
            anyhow!(
                "no version of kernel {series} with all of its parts is in {}",
                pin.suites.join(", ")
            )
        })?;
        let parts = self.kernel_candidates(series, pin, suite, &release)?;
        self.resolved_kernel(pin, suite, &release, &version, &parts)
    }

    /// The candidates of each part for one kernel release, in the order of the parts.
    fn kernel_candidates(
        &self,
        series: &str,
        pin: &KernelPin,
        suite: &str,
        release: &str,
    ) -> Result<Vec<Vec<Candidate>>> {
        let apt = self.suite(suite)?;
        pin.parts
            .values()
            .map(|part| apt.candidates(&part.name(series, release)))
            .collect()
    }

    /// The newest release of the series, with the version that all of its parts have.
    fn newest_kernel(
        &self,
        series: &str,
        pin: &KernelPin,
        suite: &str,
    ) -> Result<Option<(String, String)>> {
        let prefix = pin.parts.get("image").and_then(|part| part.prefix());
        let prefix =
            prefix.ok_or_else(|| anyhow!("the image of kernel {series} has no release"))?;
        let mut found: Option<(String, String)> = None;
        for name in self.suite(suite)?.names(prefix)? {
            let release = name.strip_prefix(prefix).unwrap_or_default();
            if !is_sibling(release, series, &pin.release) {
                continue;
            }
            let parts = self.kernel_candidates(series, pin, suite, release)?;
            let Some(version) = newest_common(&parts, series) else {
                continue;
            };
            if found
                .as_ref()
                .is_none_or(|(_, v)| super::compare_versions(v, &version).is_lt())
            {
                found = Some((release.to_owned(), version));
            }
        }
        Ok(found)
    }

    fn resolved_kernel(
        &self,
        pin: &KernelPin,
        suite: &str,
        release: &str,
        version: &str,
        candidates: &[Vec<Candidate>],
    ) -> Result<ResolvedKernel> {
        let apt = self.suite(suite)?;
        let mut parts = BTreeMap::new();
        for (name, candidates) in pin.parts.keys().zip(candidates) {
            let found = candidates.iter().find(|c| c.version == version);
            let found = found.ok_or_else(|| anyhow!("kernel part {name} has no {version}"))?;
            parts.insert(name.clone(), apt.locate(found)?);
        }
        Ok(ResolvedKernel {
            pin: pin.version.clone(),
            version: version.to_owned(),
            release: release.to_owned(),
            suite: suite.to_owned(),
            parts,
        })
    }
}
