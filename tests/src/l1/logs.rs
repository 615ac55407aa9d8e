//! The folders that the logs of L1s go to, `target/testbed/PID-NUMBER`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::time::SystemTime;

use crate::programs::target_dir;

/// How many folders of runs that have ended stay.
const KEPT: usize = 10;

/// The folder of the machine with this number of this process.
pub(super) fn folder(number: u32) -> PathBuf {
    root().join(format!("{}-{number}", process::id()))
}

/// Removes the folders of runs that have ended, but for the newest ten.
///
/// A run that passes removes its own. One that fails leaves it to be read, and so does one that is killed, at times with
/// an initramfs of 100 MB in it; nobody reads those of weeks ago.
///
/// # Errors
/// The folders cannot be listed, or one cannot be removed.
pub fn remove_old() -> io::Result<()> {
    remove_old_in(&root(), |process| {
        Path::new("/proc").join(process.to_string()).exists()
    })
}

fn root() -> PathBuf {
    target_dir().join("testbed")
}

fn remove_old_in(root: &Path, is_running: impl Fn(u32) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    let mut ended: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries {
        let entry = entry?;
        let of_ended_run = process_of(&entry.path()).is_some_and(|process| !is_running(process));
        if of_ended_run && entry.file_type()?.is_dir() {
            ended.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    ended.sort();
    let old = ended.len().saturating_sub(KEPT);
    ended
        .iter()
        .take(old)
        .try_for_each(|(_, folder)| fs::remove_dir_all(folder))
}

/// The process whose folder this is; other things in `target/testbed` have other names.
fn process_of(path: &Path) -> Option<u32> {
    let (process, number) = path.file_name()?.to_str()?.split_once('-')?;
    number.parse::<u32>().ok()?;
    process.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    #[test]
    fn old_folders_of_ended_runs_are_removed() {
        let root = env::temp_dir().join(format!("tdvmm-logs-{}", process::id()));
        let _ = fs::remove_dir_all(&root);
        for process in 1..=15_u32 {
            let folder = root.join(format!("{process}-0"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("console-1.log"), "").unwrap();
            let age = Duration::from_secs(100 - u64::from(process));
            let folder = File::open(&folder).unwrap();
            folder.set_modified(SystemTime::now() - age).unwrap();
        }
        fs::create_dir_all(root.join("demo")).unwrap();
        fs::write(root.join("1-0.img"), "").unwrap();
        remove_old_in(&root, |process| process == 2).unwrap();
        let left = (1..=15).filter(|process| root.join(format!("{process}-0")).exists());
        // 2 still runs; of the other 14 the ten newest stay.
        assert_eq!(
            left.collect::<Vec<_>>(),
            [&[2], &(6..=15).collect::<Vec<_>>()[..]].concat()
        );
        assert!(root.join("demo").exists() && root.join("1-0.img").exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn folder_that_is_not_there_is_no_error() {
        remove_old_in(Path::new("/nonexistent/testbed"), |_| false).unwrap();
    }
}
