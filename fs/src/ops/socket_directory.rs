//! A directory of our own for one socket, that nobody else can enter.
//! It knows where such a directory may be; it does not know who listens.
//! Invariant: it is the one that was opened, whatever its name leads to by now; nothing but a socket is removed from it.

use crate::errno::Failure;
use crate::sys;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// Nobody but its owner has anything to do with it.
const MODE: u32 = 0o700;

/// The directory and the socket in it; both go when this is dropped.
pub(super) struct SocketDirectory {
    directory: Directory,
}

/// One that was left by a process that has ended; it stays unless it is removed.
pub(super) struct Left {
    directory: Directory,
}

struct Directory {
    path: PathBuf,
    opened: File,
    socket: &'static str,
}

impl SocketDirectory {
    /// A new one, called `name`.
    pub(super) fn new(name: &str, socket: &'static str) -> Result<Self, Failure> {
        let path = parent().join(name);
        let create = format!("create {}", path.display());
        let failed = |error| Failure::io(&create, &error);
        std::fs::DirBuilder::new()
            .mode(MODE)
            .create(&path)
            .map_err(failed)?;
        let directory = Directory::open(path, socket).map_err(failed)?;
        Ok(SocketDirectory { directory })
    }

    /// Lets another process make the socket: its user owns the directory from now on.
    pub(super) fn hand_to(&self, pid: i32) -> Result<(), Failure> {
        let Directory { path, opened, .. } = &self.directory;
        let failed = |error| Failure::io(format!("give {} to QEMU", path.display()), &error);
        let theirs = std::fs::metadata(format!("/proc/{pid}")).map_err(failed)?;
        let ours = opened.metadata().map_err(failed)?;
        if theirs.uid() == ours.uid() {
            return Ok(());
        }
        fchown(opened, Some(theirs.uid()), Some(theirs.gid()))
            .map_err(|error| failed(error).next("mount as root, or as the user that QEMU runs as"))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path.join(self.directory.socket)
    }
}

impl Left {
    /// None for what anybody else may have put there: ours is closed to others, and belongs to this user, or to that
    /// of the process that it was given to.
    pub(super) fn at(path: PathBuf, socket: &'static str, given_to: Option<i32>) -> Option<Self> {
        let directory = Directory::open(path, socket).ok()?;
        let metadata = directory.opened.metadata().ok()?;
        let (us, _) = sys::own_ids();
        let them = given_to.and_then(|pid| std::fs::metadata(format!("/proc/{pid}")).ok());
        let owners = [Some(us), them.map(|them| them.uid())];
        let is_ours = metadata.mode() & 0o777 == MODE && owners.contains(&Some(metadata.uid()));
        is_ours.then_some(Left { directory })
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory.path
    }

    /// A path to the socket, if it is one, for this process.
    pub(super) fn socket(&self) -> io::Result<PathBuf> {
        let Directory { opened, socket, .. } = &self.directory;
        if !sys::is_socket_at(opened, socket)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let opened = format!("/proc/self/fd/{}", opened.as_raw_fd());
        Ok(Path::new(&opened).join(socket))
    }

    pub(super) fn remove(self) {
        self.directory.remove();
    }
}

impl Directory {
    fn open(path: PathBuf, socket: &'static str) -> io::Result<Self> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&path)?;
        Ok(Directory {
            path,
            opened,
            socket,
        })
    }

    fn remove(&self) {
        let removed = sys::remove_socket_at(&self.opened, self.socket)
            .and_then(|()| std::fs::remove_dir(&self.path));
        if let Err(error) = removed {
            tracing::debug!(%error, directory = %self.path.display(), "it stays behind");
        }
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
        self.directory.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    fn left(path: &Path) -> Option<Left> {
        Left::at(path.to_owned(), "nbd", None)
    }

    fn close_to_others(path: &Path) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).unwrap();
    }

    #[test]
    fn what_was_left_goes_with_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("left");
        std::fs::create_dir(&path).unwrap();
        close_to_others(&path);
        let _listener = UnixListener::bind(path.join("nbd")).unwrap();
        let left = left(&path).expect("it is ours");
        std::os::unix::net::UnixStream::connect(left.socket().unwrap()).unwrap();
        left.remove();
        assert!(!path.exists());
    }

    #[test]
    fn what_others_put_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (theirs, link) = (dir.path().join("theirs"), dir.path().join("link"));
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("nbd"), b"precious").unwrap();
        symlink(&theirs, &link).unwrap();
        close_to_others(&theirs);
        assert!(left(&link).is_none(), "a link");
        let is_file = left(&theirs).expect("it is ours, and has a file");
        assert!(is_file.socket().is_err(), "a file is no socket");
        is_file.remove();
        assert_eq!(std::fs::read(theirs.join("nbd")).unwrap(), b"precious");
        std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(left(&theirs).is_none(), "open to others");
        close_to_others(&theirs);
        if std::os::unix::fs::chown(&theirs, Some(65534), None).is_ok() {
            assert!(left(&theirs).is_none(), "of somebody else");
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_by_now_removes_nothing_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away, theirs) = (
            dir.path().join("ours"),
            dir.path().join("away"),
            dir.path().join("theirs"),
        );
        std::fs::create_dir(&path).unwrap();
        close_to_others(&path);
        std::fs::create_dir(&theirs).unwrap();
        let _listener = UnixListener::bind(theirs.join("nbd")).unwrap();
        let ours = left(&path).expect("it is ours");
        std::fs::rename(&path, &away).unwrap();
        symlink(&theirs, &path).unwrap();
        ours.remove();
        assert!(theirs.join("nbd").exists());
    }
}
