//! Programs of packages in the cache: run, or put into an L1, with their own dynamic loader and
//! libraries, not those of the machine.
//!
//! They may need a newer C library than the machine has. Their package, with all that it depends on, is
//! unpacked into one folder, and its own `ld.so` starts them from there: no privilege, container or user
//! namespace is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use crate::cpio::Archive;
use crate::debian::Packages;

/// Where libraries are, below the root of a package and of an L1.
pub const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// An unpacked package with all that it depends on.
#[derive(Clone, Debug)]
pub struct Unpacked {
    root: PathBuf,
    loader: PathBuf,
}

impl Unpacked {
    /// Fetches and unpacks a package (whose pin asks for the closure) if needed.
    pub fn open(packages: &Packages, name: &str) -> Result<Self> {
        let root = packages.unpack(name)?;
        let places = [
            root.join(LIBRARIES),
            root.join("usr/lib64"),
            root.join("lib64"),
        ];
        let loader = places
            .iter()
            .map(|dir| dir.join("ld-linux-x86-64.so.2"))
            .find(|p| p.is_file())
            .ok_or_else(|| anyhow!("no dynamic loader in {}", root.display()))?;
        Ok(Self { root, loader })
    }

    /// The folder of its files.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A command that runs `program`, a path such as `usr/bin/mcopy`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.loaded();
        command.arg(self.root.join(program));
        command
    }

    /// Puts `program` with its libraries into an initramfs, at the same path.
    pub fn install(&self, archive: &mut Archive, program: &str) -> Result<()> {
        archive.copy(&format!("/{program}"), 0o755, &self.root.join(program))?;
        for library in self.libraries(program)? {
            let name = library
                .file_name()
                .and_then(|n| n.to_str())
                .context("a library's name")?;
            archive.copy(&format!("/{LIBRARIES}/{name}"), 0o755, &library)?;
        }
        archive.copy("/lib64/ld-linux-x86-64.so.2", 0o755, &self.loader)?;
        archive.symlink("/lib/x86_64-linux-gnu", "../usr/lib/x86_64-linux-gnu");
        Ok(())
    }

    fn loaded(&self) -> Command {
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(self.root.join(LIBRARIES));
        command
    }

    /// The libraries that the loader would map, each with its full path.
    fn libraries(&self, program: &str) -> Result<Vec<PathBuf>> {
        let mut list = self.loaded();
        let output = list.arg("--list").arg(self.root.join(program)).output()?;
        ensure!(
            output.status.success(),
            "the loader cannot list the libraries of {program}"
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let paths = text
            .lines()
            .filter_map(|line| line.split_once("=> ")?.1.split(' ').next());
        let paths: Vec<PathBuf> = paths
            .map(PathBuf::from)
            .filter(|p| p.starts_with(&self.root))
            .collect();
        ensure!(
            !paths.is_empty(),
            "{program} seems to need no libraries: {text}"
        );
        Ok(paths)
    }
}
