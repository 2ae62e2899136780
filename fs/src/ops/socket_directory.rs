//! A directory of our own for one socket, that nobody else can enter.
//! It knows where such a directory may be; it does not know who listens.

use crate::errno::Failure;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

/// The directory and the socket in it; both go when this is dropped.
pub(super) struct SocketDirectory {
    path: PathBuf,
    socket: &'static str,
}

impl SocketDirectory {
    /// A new one, called `name`.
    pub(super) fn new(name: &str, socket: &'static str) -> Result<Self, Failure> {
        let path = parent().join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::io(format!("create {}", path.display()), &error))?;
        Ok(SocketDirectory { path, socket })
    }

    /// One that was left by a process that has ended.
    pub(super) fn left(path: PathBuf, socket: &'static str) -> Self {
        SocketDirectory { path, socket }
    }

    /// Lets another process make the socket: its user owns the directory from now on.
    pub(super) fn hand_to(&self, pid: i32) -> Result<(), Failure> {
        let failed = |error| Failure::io(format!("give {} to QEMU", self.path.display()), &error);
        let theirs = std::fs::metadata(format!("/proc/{pid}")).map_err(failed)?;
        let ours = std::fs::metadata(&self.path).map_err(failed)?;
        if theirs.uid() == ours.uid() {
            return Ok(());
        }
        std::os::unix::fs::chown(&self.path, Some(theirs.uid()), Some(theirs.gid()))
            .map_err(|error| failed(error).next("mount as root, or as the user that QEMU runs as"))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path.join(self.socket)
    }
}

/// Where such directories are.
pub(super) fn parent() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_dir())
        .unwrap_or_else(std::env::temp_dir)
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let _ = std::fs::remove_dir(&self.path);
    }
}
