//! How packages are taken from an archive that loses connections and versions. The archive is one of the test's own, the
//! program that reads it this machine's apt; without it the cases are ignored (`TDVMM_REQUIRE=apt`: failed).

mod mirror;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tdvmm_tests::cache::Cache;
use tdvmm_tests::debian::{Archive, Packages, Pins, Role, missing_apt};
use tdvmm_tests::harness::required;

use mirror::Mirror;

/// Pins of versions that the archive never has.
const PINS: &str = r#"
    [suite.test]
    [role]
    main = "1.0"
    old = "1.0"
    newest = "1.0"
    [kernel."1.0"]
    suites = ["test"]
    version = "1.0.0-1"
    release = "1.0.0-amd64"
    [kernel."1.0".parts]
    image = { package = "linux-image-{release}", sha256 = "" }
    source = { package = "linux-source-{series}", sha256 = "" }
    [package.code]
    package = "code"
    suites = ["test"]
    series = "1."
    version = "1.0-1"
    sha256 = ""
    [package.store]
    package = "store"
    with = "code"
    suites = ["test"]
    series = "1."
    version = "1.0-1"
    sha256 = ""
"#;

type Case = fn(&Bench) -> Result<()>;

const CASES: [(&str, Case); 3] = [
    ("download_that_was_cut_is_continued", continued),
    ("kernel_that_lost_a_part_is_chosen_anew", chosen_anew),
    ("packages_that_go_together_are_of_one_version", together),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = CASES.map(|(name, case)| {
        let run = move || Bench::new(name).and_then(|bench| bench.run(case));
        let run = move || run().map_err(|error| Failed::from(format!("{error:#}")));
        match missing_apt() {
            None => Trial::test(name, run),
            Some(reason) => {
                let fail = move || Err(Failed::from(reason));
                let name = format!("{name} ({reason})");
                Trial::test(name, fail).with_ignored_flag(!required("apt"))
            }
        }
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// An archive and a cache.
struct Bench {
    mirror: Mirror,
    root: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Result<Self> {
        let root = std::env::temp_dir().join(format!("tdvmm-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let mirror = Mirror::start()?;
        Ok(Self { mirror, root })
    }

    fn run(&self, case: Case) -> Result<()> {
        case(self)?;
        Ok(fs::remove_dir_all(&self.root)?)
    }

    /// As a run of the testbed opens them: what another run read of the index is not known.
    fn packages(&self) -> Result<Packages> {
        let archive = Archive::Unsigned(self.mirror.address.clone());
        Ok(Packages::with(
            Cache::at(&self.root)?,
            Pins::parse(PINS)?,
            archive,
        ))
    }
}

/// The second run asks for the rest only.
fn continued(bench: &Bench) -> Result<()> {
    let content: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    bench
        .mirror
        .offer(&[("code", "1.2-1", &content), ("store", "1.2-1", b"store")]);
    bench.mirror.cut(Some(100_000));
    ensure!(
        bench.packages()?.package("code").is_err(),
        "nothing was cut"
    );
    bench.mirror.cut(None);
    bench.mirror.resumed();
    let packages = bench.packages()?;
    let code = packages.package("code")?;
    let deb = code.debs.first().context("a package has a file")?;
    ensure!(fs::read(packages.deb_path(deb)?)? == content, "other bytes");
    let resumed = bench.mirror.resumed();
    ensure!(
        resumed == [("/pool/code_1.2-1_amd64.deb".to_owned(), 100_000)],
        "{resumed:?}"
    );
    Ok(())
}

/// The first run needs the image alone. When the second wants the source as well, the archive has the next version.
fn chosen_anew(bench: &Bench) -> Result<()> {
    let offer = |version: &str| {
        let image = format!("linux-image-{version}-amd64");
        let full = format!("{version}-1");
        let source = format!("source {version}").into_bytes();
        bench.mirror.offer(&[
            (&image, &full, image.as_bytes()),
            ("linux-source-1.0", &full, &source),
        ]);
    };
    let content = |path: &Path| fs::read_to_string(path);
    offer("1.0.2");
    let packages = bench.packages()?;
    let image = packages
        .kernel_parts(Role::Main, &["image"])?
        .deb("image")?;
    ensure!(content(&image)? == "linux-image-1.0.2-amd64", "{image:?}");
    offer("1.0.3");
    let packages = bench.packages()?;
    let kernel = packages.kernel(Role::Main)?;
    ensure!(kernel.release() == "1.0.3-amd64", "{}", kernel.release());
    ensure!(content(&kernel.deb("image")?)? == "linux-image-1.0.3-amd64");
    ensure!(content(&kernel.deb("source")?)? == "source 1.0.3");
    // And what is there as a whole stays, whatever the archive has.
    offer("1.0.4");
    let packages = bench.packages()?;
    let kernel = packages.kernel(Role::Main)?;
    ensure!(kernel.release() == "1.0.3-amd64", "{}", kernel.release());
    Ok(())
}

/// One of them is there in a newer version already, the other one is not.
fn together(bench: &Bench) -> Result<()> {
    bench.mirror.offer(&[
        ("code", "1.2-1", b"code 2"),
        ("store", "1.2-1", b"store 2"),
        ("store", "1.3-1", b"store 3"),
    ]);
    for name in ["store", "code"] {
        let version = bench.packages()?.package(name)?.version;
        ensure!(version == "1.2-1", "{name} {version}");
    }
    Ok(())
}
