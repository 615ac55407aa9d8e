//! The packages in the cache: what the pins name, downloaded, checked and unpacked on demand.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::apt::{self, Apt, Archive};
use super::pins::{Pins, Role};
use super::resolve::{Deb, ResolvedKernel, ResolvedPackage, still_good};
use crate::cache::Cache;

/// The pins of this repository.
pub const PINS: &str = include_str!("../../../resources/testbed.toml");

static REPOSITORY: LazyLock<Pins> = LazyLock::new(|| {
    Pins::parse(PINS).unwrap_or_else(|error| panic!("resources/testbed.toml: {error:#}"))
});

impl Role {
    /// The series that has this role in the pins of the repository, which `uname -r` begins with.
    pub fn series(self) -> &'static str {
        REPOSITORY.role.series(self)
    }
}

/// All packages that the testbed knows.
#[derive(Debug)]
pub struct Packages {
    cache: Cache,
    pub(super) pins: Pins,
    pub(super) archive: Archive,
    // An index is read at most once in a run, and only if something is not in the cache.
    pub(super) suites: RefCell<BTreeMap<String, Rc<Apt>>>,
}

/// A kernel whose version is decided, with parts that are fetched.
#[derive(Debug)]
pub struct Kernel<'a> {
    packages: &'a Packages,
    /// Key in the pins, for instance `7.2`.
    pub series: String,
    /// What was chosen.
    pub resolved: ResolvedKernel,
}

impl Packages {
    /// Opens the cache with the pins of the repository.
    pub fn open() -> Result<Self> {
        let pins = Pins::parse(PINS)?;
        Ok(Self::with(Cache::open()?, pins, Archive::OfMachine))
    }

    /// Opens a cache with given pins.
    pub fn with(cache: Cache, pins: Pins, archive: Archive) -> Self {
        Self {
            cache,
            pins,
            archive,
            suites: RefCell::default(),
        }
    }

    /// The cache that the packages are in.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Decides on the version of the kernel that has a role, and fetches all of its parts.
    ///
    /// All at once, because they must agree: a mirror that drops the version while some are used and others are not
    /// there would leave nothing to go on with.
    pub fn kernel(&self, role: Role) -> Result<Kernel<'_>> {
        self.kernel_of(self.pins.role.series(role), |_| true)
    }

    /// The same for who needs these parts and no others, and is not to wait for the download of the source.
    pub fn kernel_parts(&self, role: Role, parts: &[&str]) -> Result<Kernel<'_>> {
        self.kernel_of(self.pins.role.series(role), |part| parts.contains(&part))
    }

    fn kernel_of(&self, series: &str, wanted: impl Fn(&str) -> bool) -> Result<Kernel<'_>> {
        let pin = self.pins.kernel.get(series);
        let pin = pin.ok_or_else(|| anyhow!("no kernel series `{series}` in the pins"))?;
        let record = format!("kernel-{series}");
        let known: Option<ResolvedKernel> = self.recall(&record)?;
        let known = known.filter(|k| {
            k.pin == pin.version && pin.parts.keys().all(|part| k.parts.contains_key(part))
        });
        let fetch = |kernel: &ResolvedKernel| {
            let parts = kernel.parts.iter().filter(|(part, _)| wanted(part));
            self.fetch(&parts.map(|(_, deb)| deb.clone()).collect::<Vec<_>>())
        };
        let good = known.filter(|known| {
            let fetched = fetch(known);
            if let Err(error) = &fetched {
                let version = &known.version;
                crate::say(&format!("kernel {version} is chosen anew: {error:#}"));
            }
            fetched.is_ok()
        });
        let resolved = match good {
            Some(known) => known,
            None => {
                let resolved = self.resolve_kernel(series, pin)?;
                fetch(&resolved)?;
                self.keep(&record, &resolved)?;
                resolved
            }
        };
        if resolved.version != pin.version {
            note_replaced(&format!("kernel {series}"), &pin.version, &resolved.version);
        }
        Ok(Kernel {
            packages: self,
            series: series.to_owned(),
            resolved,
        })
    }

    /// Decides on the version of a package, and of those that are taken together with it, and fetches them, with their
    /// closures if the pins say so.
    pub fn package(&self, name: &str) -> Result<ResolvedPackage> {
        let group = self.pins.together(name)?;
        let records = group.iter().map(|(name, _)| format!("package-{name}"));
        let records: Vec<String> = records.collect();
        let known = records.iter().map(|record| self.recall(record));
        let known: Option<Vec<ResolvedPackage>> =
            known.collect::<Result<Vec<_>>>()?.into_iter().collect();
        let pins: Vec<_> = group.iter().map(|(_, pin)| *pin).collect();
        let known = known.filter(|known| still_good(&pins, known));
        let resolved = match known.filter(|known| self.fetch_packages(known).is_ok()) {
            Some(known) => known,
            None => {
                let resolved = self.resolve_packages(&pins)?;
                self.fetch_packages(&resolved)?;
                for (record, resolved) in records.iter().zip(&resolved) {
                    self.keep(record, resolved)?;
                }
                resolved
            }
        };
        let mut named = group.iter().zip(resolved);
        let ((_, pin), resolved) = named
            .find(|((member, _), _)| *member == name)
            .context("a package is in its own group")?;
        if resolved.version != pin.version {
            note_replaced(name, &pin.version, &resolved.version);
        }
        Ok(resolved)
    }

    fn fetch_packages(&self, packages: &[ResolvedPackage]) -> Result<()> {
        packages
            .iter()
            .try_for_each(|package| self.fetch(&package.debs))
    }

    /// The folder with the files of a package (and of its closure, laid over each other).
    pub fn unpack(&self, name: &str) -> Result<PathBuf> {
        let resolved = self.package(name)?;
        self.unpack_debs(name, &resolved.debs)
    }

    /// Packages with all they depend on, at the suite's newest versions, not pinned: for a chroot.
    pub fn closure(&self, suite: &str, names: &[String]) -> Result<Vec<Deb>> {
        let debs = self.suite(suite)?.closure(names)?;
        self.fetch(&debs)?;
        Ok(debs)
    }

    /// Fetches every package and every part of every kernel.
    pub fn fetch_all(&self) -> Result<()> {
        for name in self.pins.package.keys() {
            self.package(name)?;
        }
        for series in self.pins.kernel.keys() {
            self.kernel_of(series, |_| true)?;
        }
        Ok(())
    }

    /// The path of a downloaded package file.
    pub fn deb_path(&self, deb: &Deb) -> Result<PathBuf> {
        // The archive's file name says version and architecture; the hash tells apart rebuilds.
        let dir = self.cache.dir(&format!("debs/{}", short(&deb.sha256)))?;
        Ok(dir.join(&deb.file))
    }

    /// Downloads what is not in the cache yet, and checks it.
    pub fn fetch(&self, debs: &[Deb]) -> Result<()> {
        if self.missing(debs)?.is_empty() {
            return Ok(());
        }
        let _lock = self.cache.lock("download")?;
        let missing = self.missing(debs)?;
        if missing.is_empty() {
            return Ok(());
        }
        let megabytes = missing.iter().map(|d| d.size).sum::<u64>() / 1_000_000;
        crate::say(&format!(
            "downloading {} package(s), {megabytes} MB",
            missing.len()
        ));
        // Half-made files stay in `partial`, where an interrupted download is taken up again.
        let partial = self.cache.dir("debs/partial")?;
        apt::download(&self.cache, &self.archive, &missing, &partial)?;
        for deb in missing {
            let file = partial.join(&deb.file);
            let sha256 = sha256_file(&file)?;
            if sha256 != deb.sha256 {
                fs::remove_file(&file)?;
                bail!(
                    "{} has sha256 {sha256}, the signed index says {}",
                    deb.file,
                    deb.sha256
                );
            }
            fs::rename(&file, self.deb_path(deb)?)?;
        }
        Ok(())
    }

    fn missing<'a>(&self, debs: &'a [Deb]) -> Result<Vec<&'a Deb>> {
        let mut missing = Vec::new();
        for deb in debs {
            if !self.deb_path(deb)?.exists() {
                missing.push(deb);
            }
        }
        Ok(missing)
    }

    fn unpack_debs(&self, name: &str, debs: &[Deb]) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for deb in debs {
            hash.update(&deb.sha256);
        }
        let folder = format!("unpacked/{name}-{}", short(&hex(&hash.finalize())));
        self.cache.build_dir(&folder, |dir| {
            crate::say(&format!("unpacking {name}"));
            debs.iter()
                .try_for_each(|deb| unpack_deb(&self.deb_path(deb)?, dir))
        })
    }

    fn record_path(&self, name: &str) -> Result<PathBuf> {
        Ok(self.cache.dir("resolved")?.join(format!("{name}.json")))
    }

    fn recall<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match fs::read(self.record_path(name)?) {
            // A record of an older layout is as good as none.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn keep<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let path = self.record_path(name)?;
        Ok(fs::write(path, serde_json::to_vec_pretty(value)?)?)
    }
}

impl Kernel<'_> {
    /// What `uname -r` says.
    pub fn release(&self) -> &str {
        &self.resolved.release
    }

    /// The package file of a part.
    pub fn deb(&self, part: &str) -> Result<PathBuf> {
        let deb = self.resolved.parts.get(part);
        let deb = deb.ok_or_else(|| anyhow!("kernel {} has no part `{part}`", self.series))?;
        self.packages.fetch(std::slice::from_ref(deb))?;
        self.packages.deb_path(deb)
    }

    /// The folder with the files of a part.
    pub fn unpack(&self, part: &str) -> Result<PathBuf> {
        let path = self.deb(part)?;
        let deb = self
            .resolved
            .parts
            .get(part)
            .context("a part that was just fetched")?;
        ensure!(path.exists(), "{} vanished from the cache", path.display());
        self.packages.unpack_debs(
            &format!("linux-{part}-{}", self.resolved.release),
            std::slice::from_ref(deb),
        )
    }
}

/// Unpacks the files of a package file into `dir`, without its maintainer scripts.
pub fn unpack_deb(deb: &Path, dir: &Path) -> Result<()> {
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .arg(deb)
        .arg(dir)
        .status();
    let status = status.context("cannot run dpkg-deb")?;
    ensure!(
        status.success(),
        "dpkg-deb could not unpack {}",
        deb.display()
    );
    Ok(())
}

/// The names of the packages that a package file depends on, the first of each alternative.
pub fn dependencies(deb: &Path) -> Result<Vec<String>> {
    let output = Command::new("dpkg-deb")
        .arg("--field")
        .args([deb.as_os_str(), "Depends".as_ref()])
        .output()
        .context("cannot run dpkg-deb")?;
    ensure!(
        output.status.success(),
        "dpkg-deb could not read {}",
        deb.display()
    );
    Ok(parse_depends(&String::from_utf8_lossy(&output.stdout)))
}

/// A `Depends` field: `a, b (>= 1), c:any | d`.
fn parse_depends(field: &str) -> Vec<String> {
    let first_word = |entry: &str| {
        let ends = |c: char| c.is_whitespace() || matches!(c, '(' | ':' | '|' | '[');
        entry.trim_start().split(ends).next().map(str::to_owned)
    };
    let names = field.split(',').filter_map(first_word);
    names.filter(|name| !name.is_empty()).collect()
}

/// The sha256 of a file in lower-case hex.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn short(sha256: &str) -> &str {
    sha256.get(..16).unwrap_or(sha256)
}

fn note_replaced(what: &str, pin: &str, taken: &str) {
    crate::note(&format!(
        "{what} {pin} (the pin) is gone from the mirror; using {taken}"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_gives_the_first_name_of_each_alternative() {
        let field = "gcc-16-for-host, linux-base (>= 4.12~), python3:any,\n b|c, d [amd64]\n";
        let expected = ["gcc-16-for-host", "linux-base", "python3", "b", "d"];
        assert_eq!(parse_depends(field), expected);
        assert!(parse_depends("\n").is_empty());
    }
}
