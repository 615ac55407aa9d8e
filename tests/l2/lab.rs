//! What the cases share: the programs under test, guests, and how a case is written down.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;
use tdvmm_tests::native::needs::Need;
use tdvmm_tests::native::vm::Vm;
use tdvmm_tests::programs;

/// What the function of a case looks like.
pub type CaseFn = Box<dyn Fn(&Lab) -> Result<()> + Send>;

/// A case.
pub struct Case {
    /// Its name: subject, condition, outcome.
    pub name: String,
    /// Without these it is ignored.
    pub needs: &'static [Need],
    /// What it does.
    pub run: CaseFn,
}

/// What most cases need.
pub const GUEST: &[Need] = &[Need::Kvm, Need::Cc];

impl Case {
    /// A case that runs a guest.
    pub fn guest(
        name: impl Into<String>,
        run: impl Fn(&Lab) -> Result<()> + Send + 'static,
    ) -> Self {
        Self::needing(name, GUEST, run)
    }

    /// A case with needs of its own.
    pub fn needing(
        name: impl Into<String>,
        needs: &'static [Need],
        run: impl Fn(&Lab) -> Result<()> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            needs,
            run: Box::new(run),
        }
    }
}

/// The programs under test, built when the first case asks.
#[derive(Debug, Default)]
pub struct Lab {
    /// Leaf lock, held while cargo builds: other cases need the result as well.
    release: Mutex<Option<PathBuf>>,
    /// As `release`.
    checked: Mutex<Option<PathBuf>>,
}

impl Lab {
    /// The program as it is shipped.
    pub fn tdvmm(&self) -> Result<PathBuf> {
        once(&self.release, || programs::build(programs::TDVMM))
    }

    /// The program with overflow checks and debug assertions, in which a wrong sum is a panic.
    pub fn checked_tdvmm(&self) -> Result<PathBuf> {
        once(&self.checked, || programs::build_checked(programs::TDVMM))
    }

    /// A machine that runs guest `name`, assembled with `defines`.
    pub fn machine(&self, name: &str, defines: &[&str]) -> Result<Vm> {
        let folder = Folder::create()?;
        let kernel = guest::assemble(name, defines, folder.path())?;
        Ok(Vm::new(self.tdvmm()?, folder)?.machine(&kernel))
    }

    /// As [`Lab::machine`], with defines that were put together.
    pub fn guest(&self, name: &str, defines: &[String]) -> Result<Vm> {
        let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
        self.machine(name, &defines)
    }

    /// A VMM without any options, and `kernel` assembled in its folder.
    pub fn bare(&self, name: &str) -> Result<(Vm, PathBuf)> {
        let folder = Folder::create()?;
        let kernel = guest::assemble(name, &[], folder.path())?;
        Ok((Vm::new(self.tdvmm()?, folder)?, kernel))
    }
}

fn once(slot: &Mutex<Option<PathBuf>>, make: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() {
        *slot = Some(make()?);
    }
    Ok(slot.as_deref().map(Path::to_owned).unwrap_or_default())
}
