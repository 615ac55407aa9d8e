//! The cache folder: downloads, unpacked packages and built images, outside of git.
//!
//! `$TDVMM_CACHE`, else `$XDG_CACHE_HOME/tdvmm`, else `~/.cache/tdvmm`. All that is in it can be
//! deleted at any time and comes back. A folder in it is either absent or complete: it is built
//! under another name and then renamed, so an interrupted run leaves nothing half-made behind.

use std::env;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, anyhow};

/// A handle to the cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache folder of this user and creates it if it is not there.
    pub fn open() -> Result<Self> {
        let root = env::var_os("TDVMM_CACHE")
            .map(PathBuf::from)
            .or_else(|| env::var_os("XDG_CACHE_HOME").map(|d| Path::new(&d).join("tdvmm")))
            .or_else(|| env::home_dir().map(|d| d.join(".cache/tdvmm")))
            .ok_or_else(|| anyhow!("no home folder: set TDVMM_CACHE to a folder for downloads"))?;
        Self::at(&root)
    }

    /// Opens a cache at a given place.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root)
            .with_context(|| format!("cannot create cache folder {}", root.display()))?;
        let root = root.canonicalize()?;
        Ok(Self { root })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The sub-folder `name`, created if it is not there.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// The folder `name`, made by `build` in an empty folder if it does not exist yet.
    ///
    /// `name` must hold a hash or version of everything that goes into it. Two processes that build
    /// the same folder take turns.
    pub fn build_dir(
        &self,
        name: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let dir = self.root.join(name);
        if dir.is_dir() {
            return Ok(dir);
        }
        let parent = dir.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent)?;
        let _lock = self.lock("build")?;
        if dir.is_dir() {
            return Ok(dir);
        }
        let scratch = self.root.join(format!("scratch-{}", process::id()));
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        fs::create_dir_all(&scratch)?;
        let built = build(&scratch)
            .and_then(|()| Ok(fs::rename(&scratch, &dir)?))
            .with_context(|| format!("cannot build {}", dir.display()));
        if built.is_err() {
            // The cause is already in `built`; what is left behind is only disk space.
            let _ = fs::remove_dir_all(&scratch);
        }
        built.map(|()| dir)
    }

    /// Holds the lock `name` of this cache until the result is dropped; says so if it must wait.
    pub fn lock(&self, name: &str) -> Result<File> {
        lock_file(&self.root.join(format!("{name}.lock")))
    }
}

/// Takes an exclusive `flock` on `path`, creating it for all users; says so if it must wait.
pub fn lock_file(path: &Path) -> Result<File> {
    let file = open_lock(path).with_context(|| {
        format!(
            "cannot open lock {} (if no run of its owner uses it, it may be removed)",
            path.display()
        )
    })?;
    if file.try_lock().is_err() {
        crate::say(&format!(
            "waiting for another run to release {}",
            path.display()
        ));
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Another user's lock in a shared folder can be opened for reading, which is enough.
fn open_lock(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    match File::options().create_new(true).append(true).open(path) {
        Ok(file) => {
            // The creator's umask is not to keep others from waiting for it.
            file.set_permissions(Permissions::from_mode(0o666))?;
            Ok(file)
        }
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => File::open(path),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_made_for_all_users() {
        let cache = scratch("lock");
        let path = cache.root().join("one.lock");
        drop(lock_file(&path).unwrap());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        // A usual umask takes the last bits for writing away.
        assert_eq!(mode & 0o777, 0o666);
        drop(lock_file(&path).unwrap());
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn lock_that_cannot_be_made_is_named() {
        let cache = scratch("closed");
        let path = cache.root().join("absent/one.lock");
        let error = lock_file(&path).unwrap_err();
        assert!(
            format!("{error:#}").contains("absent/one.lock"),
            "{error:#}"
        );
        fs::remove_dir_all(cache.root()).unwrap();
    }

    fn scratch(name: &str) -> Cache {
        let dir = env::temp_dir().join(format!("tdvmm-cache-test-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&dir);
        Cache::at(&dir).unwrap()
    }

    #[test]
    fn build_dir_that_fails_leaves_nothing_behind() {
        let cache = scratch("fails");
        let result = cache.build_dir("x/one", |dir| {
            fs::write(dir.join("half"), b"half")?;
            Err(anyhow!("interrupted"))
        });
        assert!(result.is_err());
        assert!(!cache.root().join("x/one").exists());
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn build_dir_that_exists_is_not_built_again() {
        let cache = scratch("again");
        let mut count = 0;
        for _ in 0..2 {
            let dir = cache
                .build_dir("one", |dir| {
                    count += 1;
                    Ok(fs::write(dir.join("file"), b"whole")?)
                })
                .unwrap();
            assert_eq!(fs::read(dir.join("file")).unwrap(), b"whole");
        }
        assert_eq!(count, 1);
        fs::remove_dir_all(cache.root()).unwrap();
    }
}
