//! Names that change hands: hard links and renames, each durable before it is reported done.
//! It knows directories; it does not know what the names mean.

use super::names::alias_path;
use crate::errno::{Errno, Failure};
use crate::sys;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes `dst` another name of the file `src`, atomically: whoever opens `dst` meets the old
/// file or the new one. `src` keeps its name. An error after the exchange (a failed sync) leaves
/// `dst` new; doing it again is harmless.
pub fn replace(src: &Path, dst: &Path) -> Result<(), Failure> {
    let between = alias_path(dst);
    link(src, &between)?;
    let renamed = std::fs::rename(&between, dst);
    // rename(2) does nothing when both names are already the same file, and after a failure the
    // name between is left as well. It is never the file's only name: `src` is another.
    match std::fs::remove_file(&between) {
        Err(error) if renamed.is_ok() && error.kind() != io::ErrorKind::NotFound => {
            return Err(Failure::io(
                format_args!("remove {}", between.display()),
                &error,
            ));
        }
        Ok(()) | Err(_) => {}
    }
    renamed.map_err(|error| {
        Failure::io(
            format_args!("rename {} to {}", between.display(), dst.display()),
            &error,
        )
    })?;
    fsync_dir(dst)
}

/// Gives the file `src` the further name `dst`, which must be free (else EEXIST).
pub fn link_new(src: &Path, dst: &Path) -> Result<(), Failure> {
    link(src, dst)?;
    fsync_dir(dst)
}

/// Makes names survive a power cut: those in the directory that `path` is or, where it is none
/// (any more), lies in.
pub fn fsync_dir(path: &Path) -> Result<(), Failure> {
    let directory = if path.is_dir() {
        path
    } else {
        directory_of(path)
    };
    sys::directory_sync(directory).map_err(|error| {
        Failure::io(
            format_args!("sync directory {}", directory.display()),
            &error,
        )
    })
}

/// Makes a file's bytes and attributes survive a power cut.
pub fn fsync_file(path: &Path) -> Result<(), Failure> {
    sys::open_for_reading(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| Failure::io(format_args!("sync {}", path.display()), &error))
}

/// The directory a name lies in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn link(src: &Path, dst: &Path) -> Result<(), Failure> {
    std::fs::hard_link(src, dst).map_err(|error| {
        let doing = format!("give {} the name {}", src.display(), dst.display());
        match error.raw_os_error() {
            Some(libc::EEXIST) => Failure::new(Errno::EEXIST, format!("{} exists", dst.display())).next("choose another name, or move that file away"),
            Some(libc::EPERM) if may_link_others(src) => {
                Failure::new(Errno::EOPNOTSUPP, format!("cannot {doing}: the filesystem has no hard links"))
                    .next("keep the image on a filesystem with hard links (ext4, xfs, btrfs, zfs)")
            }
            Some(libc::EPERM) => Failure::new(Errno::EPERM, format!("cannot {doing}: {error}"))
                .next("mount as root or as the image's owner: fs.protected_hardlinks forbids it to others"),
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK | libc::EXDEV) => {
                Failure::new(Errno::EOPNOTSUPP, format!("cannot {doing}: {error}")).next("keep the image on a filesystem with hard links (ext4, xfs, btrfs, zfs)")
            }
            _ => Failure::io(doing, &error),
        }
    })
}

/// Whether fs.protected_hardlinks lets us link the file, so that EPERM must mean something else.
fn may_link_others(path: &Path) -> bool {
    let us = File::open("/proc/self/status")
        .and_then(|status| status.metadata())
        .map(|status| status.uid());
    let owner = path.metadata().map(|file| file.uid());
    matches!((us, owner), (Ok(us), Ok(owner)) if us == 0 || us == owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{file_id, names_of};
    use std::path::PathBuf;

    fn names_in(directory: &Path) -> Vec<PathBuf> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replace_takes_the_name_and_keeps_the_source() {
        let dir = tempfile::tempdir().unwrap();
        let (new, active) = (dir.path().join(".new"), dir.path().join("active"));
        std::fs::write(&new, b"new").unwrap();
        std::fs::write(&active, b"old").unwrap();
        let old = File::open(&active).unwrap();

        replace(&new, &active).unwrap();
        assert_eq!(std::fs::read(&active).unwrap(), b"new");
        assert_eq!(file_id(&active).unwrap(), file_id(&new).unwrap());
        assert_eq!(names_of(&new).unwrap(), 2);
        assert_eq!(old.metadata().unwrap().nlink(), 0);

        replace(&new, &active).unwrap();
        assert_eq!(
            names_in(dir.path()),
            [new.clone(), active.clone()],
            "the same inode twice leaves no name"
        );

        std::fs::remove_file(&active).unwrap();
        replace(&new, &active).unwrap();
        assert_eq!(names_in(dir.path()), [new, active]);
    }

    #[test]
    fn a_replace_that_fails_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let (new, taken) = (dir.path().join("new"), dir.path().join("directory"));
        std::fs::write(&new, b"new").unwrap();
        std::fs::create_dir(&taken).unwrap();
        assert!(replace(&new, &taken).is_err());
        assert_eq!(names_in(dir.path()), [taken, new.clone()]);
        assert_eq!(
            replace(&dir.path().join("no"), &new).unwrap_err().errno,
            Errno::ENOENT
        );
        assert_eq!(std::fs::read(&new).unwrap(), b"new");
    }

    #[test]
    fn a_new_link_takes_no_name_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (active, sealed) = (dir.path().join("active"), dir.path().join("sealed"));
        std::fs::write(&active, b"x").unwrap();
        link_new(&active, &sealed).unwrap();
        assert_eq!(file_id(&sealed).unwrap(), file_id(&active).unwrap());
        assert_eq!(link_new(&active, &sealed).unwrap_err().errno, Errno::EEXIST);
        fsync_file(&sealed).unwrap();
        assert_eq!(
            fsync_file(&dir.path().join("no")).unwrap_err().errno,
            Errno::ENOENT
        );
    }

    #[test]
    fn a_bare_name_lies_in_the_current_directory() {
        assert_eq!(directory_of(Path::new("web1.qcow2")), Path::new("."));
        assert_eq!(directory_of(Path::new("/web1.qcow2")), Path::new("/"));
    }
}
