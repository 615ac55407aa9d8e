//! The testbed by hand: `demo td|ordinary`, `lab FOLDER`, `headers`, `firmware`, `fetch`. Started by `cargo xtask`.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::Path;

use anyhow::{Result, bail};
use tdvmm_tests::debian::Packages;
use tdvmm_tests::fixture::install;
use tdvmm_tests::{demo, lab};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let packages = Packages::open()?;
    match arguments[..] {
        ["demo", "td"] => demo::td(&packages),
        ["demo", "ordinary"] => demo::ordinary(&packages),
        ["lab", folder] => lab::lab(&packages, Path::new(folder)),
        ["headers"] => {
            let folder = packages.unpack("kernel-headers")?.join("usr/include");
            println!("{}", folder.display());
            Ok(())
        }
        ["firmware"] => {
            println!("{}", install::firmware_image(&packages)?.display());
            Ok(())
        }
        ["fetch"] => {
            packages.fetch_all()?;
            println!(
                "all packages of resources/testbed.toml are in {}",
                packages.cache().root().display()
            );
            Ok(())
        }
        _ => bail!("usage: testbed demo td|ordinary | lab FOLDER | headers | firmware | fetch"),
    }
}
