//! apt as a tool that reads a suite's signed index and downloads, and does nothing else.
//!
//! Each suite has an apt root of its own in the cache: configuration, package lists, an empty list
//! of installed packages. Of the machine's configuration only the address of the mirror is taken and
//! how to get there: proxies, certificates, passwords. apt checks the index against the archive's
//! keys and the files against the index. A suite may be past its Valid-Until (a mirror that stands
//! still), which is accepted.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::pins::Suite;
use super::resolve::{Candidate, Deb};
use crate::cache::Cache;

const HELPER: &str = "/usr/lib/apt/apt-helper";
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// Where packages come from.
#[derive(Clone, Debug)]
pub enum Archive {
    /// The Debian mirror of this machine, its index signed by the archive's keys.
    OfMachine,
    /// An archive at this address, without signatures and not by way of a proxy: for tests of the testbed itself.
    Unsigned(String),
}

impl Archive {
    fn sources(&self, suites: &[&str]) -> Result<String> {
        Ok(match self {
            Self::OfMachine => sources(&mirror()?, suites, &format!("signed-by={}", keyring()?)),
            Self::Unsigned(address) => sources(address, suites, "trusted=yes"),
        })
    }

    fn settings(&self) -> String {
        match self {
            Self::OfMachine => machine_settings(),
            // Whoever is told of a failure is not to wait for further tries.
            Self::Unsigned(_) => {
                "Acquire::http::Proxy \"DIRECT\"; Acquire::Retries \"0\";\n".to_owned()
            }
        }
    }
}

/// Why packages cannot be had on this machine, if so.
pub fn missing_apt() -> Option<&'static str> {
    (!Path::new(HELPER).exists())
        .then_some("the testbed takes its packages with apt, which this machine does not have")
}

/// The apt root of one suite.
#[derive(Debug)]
pub struct Apt {
    config: PathBuf,
    suite: String,
}

impl Apt {
    /// Writes the apt root of `suite` and reads the suite's index.
    pub fn open(cache: &Cache, archive: &Archive, name: &str, suite: &Suite) -> Result<Self> {
        if let Some(reason) = missing_apt() {
            bail!("{reason}");
        }
        let root = cache.dir(&format!("apt/{name}"))?;
        for dir in ["etc", "lists/partial", "archives/partial", "state"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::write(root.join("state/status"), "")?;
        let suites: Vec<&str> = suite
            .base
            .iter()
            .map(String::as_str)
            .chain([name])
            .collect();
        fs::write(root.join("etc/sources.list"), archive.sources(&suites)?)?;
        let config = root.join("apt.conf");
        fs::write(&config, configuration(&root, &archive.settings()))?;
        let apt = Self {
            config,
            suite: name.to_owned(),
        };
        apt.update()?;
        Ok(apt)
    }

    fn update(&self) -> Result<()> {
        crate::say(&format!("reading the index of {}", self.suite));
        let status = self
            .command("apt-get")
            .arg("update")
            .arg("--error-on=any")
            .stdout(std::io::stderr())
            .status()
            .context("cannot run apt-get")?;
        ensure!(
            status.success(),
            "apt-get could not read the signed index of {}",
            self.suite
        );
        Ok(())
    }

    /// All versions of a package that the suite has.
    pub fn candidates(&self, package: &str) -> Result<Vec<Candidate>> {
        // An unknown name is an error for apt-cache, here it is just no candidate.
        let output = self.command("apt-cache").args(["show", package]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text
            .split("\n\n")
            .filter_map(parse_stanza)
            .filter(|c| c.package == package)
            .collect())
    }

    /// Names of all packages that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = self.output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text
            .lines()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect())
    }

    /// The address of one package.
    pub fn locate(&self, candidate: &Candidate) -> Result<Deb> {
        let name = format!("{}={}", candidate.package, candidate.version);
        let text =
            self.output(
                self.command("apt-get")
                    .args(["-qq", "download", "--print-uris", &name]),
            )?;
        let deb = text.lines().find_map(parse_uri);
        let deb = deb.ok_or_else(|| anyhow!("apt-get gave no address for {name}: {text}"))?;
        ensure!(
            deb.sha256 == candidate.sha256,
            "two different sha256 in the index for {name}"
        );
        Ok(deb)
    }

    /// The addresses of packages and of all that they depend on, as `name` or `name=version`.
    pub fn closure<S: AsRef<OsStr>>(&self, names: &[S]) -> Result<Vec<Deb>> {
        let mut command = self.command("apt-get");
        command.args(["-qq", "install", "--print-uris"]).args(names);
        let debs: Vec<Deb> = self
            .output(&mut command)?
            .lines()
            .filter_map(parse_uri)
            .collect();
        ensure!(!debs.is_empty(), "apt-get found nothing to install");
        Ok(debs)
    }

    fn output(&self, command: &mut Command) -> Result<String> {
        let output = command
            .output()
            .with_context(|| format!("cannot run {command:?}"))?;
        if !output.status.success() {
            bail!(
                "{command:?} failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, program: &str) -> Command {
        apt_command(&self.config, program)
    }
}

/// Downloads files into `dir`, each under the name that the archive gives it.
///
/// What is already there in part is continued where the mirror allows it.
pub fn download(cache: &Cache, archive: &Archive, debs: &[&Deb], dir: &Path) -> Result<()> {
    let root = cache.dir("apt/download")?;
    for dir in ["lists/partial", "archives/partial", "state"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let config = root.join("apt.conf");
    fs::write(&config, configuration(&root, &archive.settings()))?;
    let mut command = apt_command(&config, HELPER);
    command.arg("download-file").stdout(std::io::stderr());
    for deb in debs {
        command
            .arg(&deb.uri)
            .arg(dir.join(&deb.file))
            .arg(format!("SHA256:{}", deb.sha256));
    }
    let status = command.status().context("cannot run apt-helper")?;
    ensure!(
        status.success(),
        "apt could not download {} package(s)",
        debs.len()
    );
    Ok(())
}

fn apt_command(config: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("APT_CONFIG", config)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    command
}

fn configuration(root: &Path, settings: &str) -> String {
    let root = root.display();
    format!(
        r#"Dir::Etc "{root}/etc"; Dir::Etc::sourcelist "{root}/etc/sources.list";
Dir::Etc::sourceparts "/dev/null"; Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::State "{root}/state"; Dir::State::lists "{root}/lists"; Dir::State::status "{root}/state/status";
Dir::Cache "{root}"; Dir::Cache::archives "{root}/archives";
APT::Architecture "amd64"; APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false"; APT::Install-Suggests "false"; APT::Sandbox::User "";
Acquire::Languages "none"; Acquire::Check-Valid-Until "false"; Acquire::Check-Date "false";
Acquire::ForceHash "SHA256"; Acquire::Retries "3"; Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Binary::apt-get::APT::Get::Assume-Yes "true";
{settings}"#
    )
}

fn sources(mirror: &str, suites: &[&str], option: &str) -> String {
    let mut text = String::new();
    for suite in suites {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "deb [{option}] {mirror} {suite} main");
    }
    text
}

fn keyring() -> Result<&'static str> {
    KEYRINGS
        .into_iter()
        .find(|k| Path::new(k).exists())
        .ok_or_else(|| {
            anyhow!("the archive's keys are missing: install the package debian-archive-keyring")
        })
}

/// How the machine's apt gets to a mirror.
fn machine_settings() -> String {
    let said = |arguments: &[&str]| {
        let output = Command::new("apt-config").args(arguments).output();
        let output = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    };
    // Absolute paths, as ours are below another folder.
    let [file, folder] = PASSWORDS;
    let passwords = [&format!("{file}/f"), &format!("{folder}/d")];
    let passwords = said(&["shell", file, passwords[0], folder, passwords[1]]);
    access_settings(&said(&["dump"]), &passwords)
}

/// Names of the settings for the file, and the folder of files, with the passwords of mirrors.
const PASSWORDS: [&str; 2] = ["Dir::Etc::netrc", "Dir::Etc::netrcparts"];

/// Of a configuration what concerns connections, and the places of the passwords as `apt-config shell` tells them.
fn access_settings(dump: &str, passwords: &str) -> String {
    let protocols = ["acquire::http::", "acquire::https::"];
    let connections = dump.lines().filter(|line| {
        // apt takes names of settings in any case.
        let line = line.to_lowercase();
        let proxy = line.starts_with("acquire::") && line.contains("proxy");
        proxy || protocols.iter().any(|start| line.starts_with(start))
    });
    let places = passwords.lines().filter_map(|line| {
        let (name, path) = line.split_once('=')?;
        Some(format!("{name} \"{}\";", path.trim_matches('\'')))
    });
    let lines = connections.map(str::to_owned).chain(places);
    lines.map(|line| format!("{line}\n")).collect()
}

/// The mirror of the Debian archive: from the environment, else from the machine's apt.
fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var("TDVMM_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    // Without this option apt tells only of indexes that were fetched, in a fresh container none.
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--no-release-info",
            "--format",
            "$(RELEASE) $(COMPONENT) $(REPO_URI)",
        ])
        .arg("Created-By: Packages")
        .output()
        .context("cannot run apt-get")?;
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    choose_mirror(&String::from_utf8_lossy(&output.stdout), &os_release).ok_or_else(|| {
        anyhow!(
            "this machine's apt configuration names no Debian mirror: \
             set TDVMM_DEBIAN_MIRROR to the address of one"
        )
    })
}

/// The source that serves the machine's own Debian release, security and other archives aside.
fn choose_mirror(targets: &str, os_release: &str) -> Option<String> {
    let field = |key: &str| {
        let line = os_release
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    let own = field("VERSION_CODENAME");
    let is_debian = field("ID").as_deref() == Some("debian");
    let known = [
        "stable", "testing", "unstable", "sid", "trixie", "forky", "bookworm",
    ];
    let fitting = targets.lines().filter_map(|line| {
        let [release, component, uri] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return None;
        };
        let release_fits = own.as_deref() == Some(release) || known.contains(&release);
        let fits = is_debian && component == "main" && release_fits && !uri.contains("security");
        fits.then(|| uri.to_owned())
    });
    // Another archive may use the same release names: the distribution's own path goes first.
    fitting.min_by_key(|uri| !uri.contains("/debian"))
}

/// One stanza of `apt-cache show`.
fn parse_stanza(text: &str) -> Option<Candidate> {
    let field = |key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(": "))
    };
    Some(Candidate {
        package: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        sha256: field("SHA256")?.to_owned(),
    })
}

/// One line of `--print-uris`: address in quotes, file name, size, hash.
fn parse_uri(line: &str) -> Option<Deb> {
    let [uri, file, size, hash] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        return None;
    };
    Some(Deb {
        uri: uri.strip_prefix('\'')?.strip_suffix('\'')?.to_owned(),
        file: file.to_owned(),
        size: size.parse().ok()?,
        sha256: hash.strip_prefix("SHA256:")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "ID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn mirror_is_the_source_of_the_own_release() {
        let targets = "cloud main http://x.example/apt/\n\
                       bookworm-security main http://m.example/debian-security/\n\
                       bookworm contrib http://m.example/debian/\n\
                       bookworm main http://m.example/debian/\n";
        let mirror = choose_mirror(targets, DEBIAN);
        assert_eq!(mirror.as_deref(), Some("http://m.example/debian/"));
    }

    #[test]
    fn mirror_with_the_own_path_goes_before_another_archive() {
        let targets = "bookworm main http://x.example/tools/\n\
                       bookworm main http://m.example/debian/\n";
        let mirror = choose_mirror(targets, DEBIAN);
        assert_eq!(mirror.as_deref(), Some("http://m.example/debian/"));
    }

    #[test]
    fn mirror_of_another_distribution_is_not_taken() {
        let targets = "noble main http://m.example/other/\nstable main http://m.example/other/\n";
        assert_eq!(
            choose_mirror(targets, "ID=other\nVERSION_CODENAME=noble\n"),
            None
        );
    }

    #[test]
    fn proxies_certificates_and_passwords_of_the_machine_are_taken() {
        let dump = "Acquire::http::Proxy \"http://p.example:3128/\";\n\
                    Acquire::https::CAInfo \"/etc/ssl/own.pem\";\n\
                    Acquire::Languages \"de\";\n\
                    Acquire::ftp::Proxy \"\";\n\
                    APT::Default-Release \"stable\";\n";
        let passwords = "Dir::Etc::netrc='/etc/apt/auth.conf'\n\
                         Dir::Etc::netrcparts='/etc/apt/auth.conf.d/'\n";
        let expected = "Acquire::http::Proxy \"http://p.example:3128/\";\n\
                        Acquire::https::CAInfo \"/etc/ssl/own.pem\";\n\
                        Acquire::ftp::Proxy \"\";\n\
                        Dir::Etc::netrc \"/etc/apt/auth.conf\";\n\
                        Dir::Etc::netrcparts \"/etc/apt/auth.conf.d/\";\n";
        assert_eq!(access_settings(dump, passwords), expected);
    }

    #[test]
    fn uri_line_is_parsed() {
        let line = "'http://m.example/pool/a_1%3a2.deb' a_1%3a2.deb 970908 SHA256:00ff";
        let deb = parse_uri(line).unwrap();
        assert_eq!(
            (deb.file.as_str(), deb.size, deb.sha256.as_str()),
            ("a_1%3a2.deb", 970908, "00ff")
        );
        assert!(parse_uri("E: something else").is_none());
    }
}
