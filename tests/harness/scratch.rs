//! A test's own directory, on a real filesystem (hard links, xattrs, SEEK_HOLE), gone when the test succeeded.
//! Sockets live in a second directory with a short name, as their paths may have 107 bytes only.

use std::path::{Path, PathBuf};

/// The directories of one test. When the test fails they stay, and their path is printed.
#[derive(Debug)]
pub struct Scratch {
    files: Option<tempfile::TempDir>,
    sockets: Option<tempfile::TempDir>,
}

impl Scratch {
    /// Makes them, named after the test.
    pub fn new(name: &str) -> Self {
        let base = base_dir();
        std::fs::create_dir_all(&base).expect("the tests' directory can be made");
        let make = |prefix: &str, base: &Path| {
            tempfile::Builder::new()
                .prefix(prefix)
                .tempdir_in(base)
                .expect("a scratch directory can be made")
        };
        Self {
            files: Some(make(&format!("{name}."), &base)),
            sockets: Some(make("qmpfs-t.", &std::env::temp_dir())),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.files.as_ref().expect("held until drop").path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A directory in it, made if missing.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.file(name);
        std::fs::create_dir_all(&dir).expect("a directory in the scratch directory");
        dir
    }

    /// A short path for a socket.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets
            .as_ref()
            .expect("held until drop")
            .path()
            .join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("QMPFS_TEST_KEEP").is_some() {
            let files = self.files.take().map(tempfile::TempDir::keep);
            eprintln!("kept for a look: {}", files.unwrap_or_default().display());
        }
    }
}

/// `$QMPFS_TEST_DIR`, or `tmp` in Cargo's target directory.
fn base_dir() -> PathBuf {
    std::env::var_os("QMPFS_TEST_DIR").map_or_else(|| target_dir().join("tmp"), PathBuf::from)
}

/// Cargo's target directory, found from where this test binary stands: TARGET/PROFILE/deps/it-HASH.
pub(crate) fn target_dir() -> PathBuf {
    profile_dir()
        .parent()
        .expect("TARGET above TARGET/PROFILE")
        .to_path_buf()
}

/// TARGET/PROFILE, where Cargo puts the programs.
pub(crate) fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test has a path");
    exe.ancestors()
        .nth(2)
        .expect("PROFILE above PROFILE/deps/it")
        .to_path_buf()
}
