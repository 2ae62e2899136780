//! The mounted tree in words: a disk's directory, a point, their verbs and files.
//! Knows the contract's paths; nothing of who serves them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::faults::names;
use crate::wait;

/// The directory of one disk in a mount.
#[derive(Debug, Clone)]
pub struct DiskDir(pub PathBuf);

impl DiskDir {
    /// An external snapshot.
    pub fn snapshot(&self, name: &str) -> Point {
        Point(self.0.join("snapshots").join(name))
    }

    /// A backup, by its kind and name.
    pub fn backup(&self, kind: &str, name: &str) -> Point {
        Point(self.0.join("backups").join(kind).join(name))
    }

    /// An internal snapshot.
    pub fn internal(&self, name: &str) -> Point {
        Point(self.0.join("internal").join(name))
    }

    /// An instant of the running disk.
    pub fn live(&self, name: &str) -> Point {
        Point(self.0.join("live").join(name))
    }

    /// A sealed layer, by its place in the chain: the base is 0.
    #[track_caller]
    pub fn layer(&self, index: usize) -> Point {
        let prefix = format!("{index}-");
        let found = self
            .list("layers")
            .into_iter()
            .find(|n| n.starts_with(&prefix));
        Point(
            self.0
                .join("layers")
                .join(found.unwrap_or_else(|| panic!("no layer {index}"))),
        )
    }

    /// The names in one of its directories.
    #[track_caller]
    pub fn list(&self, dir: &str) -> Vec<String> {
        names(&self.0.join(dir))
    }

    /// disk.json.
    #[track_caller]
    pub fn json(&self) -> Value {
        json(&self.0.join("disk.json"))
    }

    /// The only job there is.
    #[track_caller]
    pub fn only_job(&self) -> PathBuf {
        let jobs = self.list("jobs");
        assert_eq!(jobs.len(), 1, "{jobs:?}");
        self.0.join("jobs").join(&jobs[0])
    }

    /// `echo NAME > rollback`
    pub fn roll_back(&self, name: &str) -> io::Result<()> {
        fs::write(self.0.join("rollback"), format!("{name}\n"))
    }

    /// Reads `wait`: returns when all work on this disk has ended, and how.
    pub fn wait(&self) -> io::Result<String> {
        fs::read_to_string(self.0.join("wait"))
    }
}

/// One instant of one disk.
#[derive(Debug, Clone)]
pub struct Point(pub PathBuf);

impl Point {
    /// Its disk image.
    pub fn disk_raw(&self) -> PathBuf {
        self.0.join("disk.raw")
    }

    /// point.json.
    #[track_caller]
    pub fn json(&self) -> Value {
        json(&self.0.join("point.json"))
    }

    /// `mkdir`: makes it.
    pub fn make(&self) -> io::Result<()> {
        fs::create_dir(&self.0)
    }

    /// `rmdir`: deletes it.
    pub fn delete(&self) -> io::Result<()> {
        fs::remove_dir(&self.0)
    }

    /// [`Self::delete`], as soon as the kernel has told the filesystem that the last reader closed it.
    #[track_caller]
    pub fn delete_when_closed(&self) {
        wait::until("the view is closed", || match self.delete() {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => None,
            result => {
                result.unwrap_or_else(|e| panic!("rmdir {}: {e}", self.0.display()));
                Some(())
            }
        });
    }

    /// True if it is there.
    pub fn exists(&self) -> bool {
        self.0.is_dir()
    }
}

/// `echo -n TEXT > PATH`: one write(2), as a shell does it.
pub fn write_line(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    let written = io::Write::write(&mut file, text)?;
    assert_eq!(written, text.len(), "a line is taken whole");
    Ok(())
}

/// Panics unless `result` failed with one of these error numbers.
#[track_caller]
pub fn assert_errno<T>(result: io::Result<T>, allowed: &[i32]) {
    match result {
        Ok(_) => panic!("succeeded, but must fail with {allowed:?}"),
        Err(e) => assert!(
            e.raw_os_error().is_some_and(|n| allowed.contains(&n)),
            "failed with {e}, but must fail with {:?}",
            allowed
                .iter()
                .map(|&n| io::Error::from_raw_os_error(n).to_string())
                .collect::<Vec<_>>()
        ),
    }
}

/// A file as text.
#[track_caller]
pub fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A file as JSON.
#[track_caller]
pub fn json(path: &Path) -> Value {
    let text = text(path);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", path.display()))
}
