//! The directory we mount on: whether it may be used, what is mounted there, and how to take it
//! away again. It knows mountinfo and fusermount3; it knows nothing of what is inside.

use crate::errno::{Errno, Failure};
use crate::fuse::LONGEST_READ;
use crate::sys::{self, Unmount};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a mount of ours is called in mountinfo.
const FS_TYPE: &str = "fuse.qmpfs";

/// One line of mountinfo that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// "0:57": unlike the path, it tells one mount from its successor.
    pub(super) device: String,
    fs_type: String,
    path: PathBuf,
}

/// A usable mount point, as an absolute path.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, Failure> {
    let shown = path.display().to_string();
    // A killed daemon leaves a mount that answers nothing; canonicalize would fail on it too.
    if is_dead(path) {
        let path = resolved_without_looking(path)?;
        match topmost(&path)? {
            Some(entry) if entry.fs_type == FS_TYPE => {
                unmount(&path, Unmount::Lazy).map_err(|failure| {
                    failure.next(format!(
                        "clear the stale mount by hand: fusermount3 -uz {shown}"
                    ))
                })?;
                return prepare(&path);
            }
            Some(entry) => {
                return Err(Failure::new(
                    Errno::EBUSY,
                    format!("a dead {} mount is on {shown}", entry.fs_type),
                )
                .next(format!("clear it by hand: fusermount3 -uz {shown}")));
            }
            None => {}
        }
    }
    let metadata = std::fs::metadata(path).map_err(|error| {
        Failure::io(format_args!("use {shown}"), &error)
            .next(format!("make the directory: mkdir -p {shown}"))
    })?;
    if !metadata.is_dir() {
        return Err(
            Failure::new(Errno::ENOTDIR, format!("{shown} is not a directory"))
                .next("name an empty directory"),
        );
    }
    let path = path
        .canonicalize()
        .map_err(|error| Failure::io(format_args!("use {shown}"), &error))?;
    if let Some(entry) = topmost(&path)?.filter(|entry| entry.fs_type == FS_TYPE) {
        return Err(Failure::new(
            Errno::EBUSY,
            format!("{shown} is mounted already ({})", entry.fs_type),
        )
        .next(format!("unmount it first: qmpfs umount {shown}")));
    }
    let mut entries = std::fs::read_dir(&path)
        .map_err(|error| Failure::io(format_args!("read {shown}"), &error))?;
    if entries.next().is_some() {
        return Err(
            Failure::new(Errno::ENOTEMPTY, format!("{shown} is not empty"))
                .next("mount on an empty directory, so that nothing is hidden"),
        );
    }
    Ok(path)
}

/// The absolute path, its parent resolved, the mount point itself not touched.
pub(super) fn resolved_without_looking(path: &Path) -> Result<PathBuf, Failure> {
    let failed =
        |error: &std::io::Error| Failure::io(format_args!("use {}", path.display()), error);
    let path = std::path::absolute(path).map_err(|error| failed(&error))?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent
            .canonicalize()
            .map_err(|error| failed(&error))?
            .join(name)),
        _ => Ok(path),
    }
}

/// Whether a mount whose daemon is gone is at `path`. The kernel may remember attributes for a while, but asks for room
/// on a filesystem each time. The second error is that of who asks in the moment in which a daemon dies.
fn is_dead(path: &Path) -> bool {
    sys::free_bytes(path).is_err_and(|error| {
        matches!(
            error.raw_os_error(),
            Some(libc::ENOTCONN | libc::ECONNABORTED)
        )
    })
}

/// Where mounts of ours are whose daemon is gone.
pub(crate) fn dead() -> Result<Vec<PathBuf>, Failure> {
    let table = table()?;
    let ours = entries(&table).filter(|entry| entry.fs_type == FS_TYPE);
    let paths = ours.map(|entry| entry.path);
    Ok(paths.filter(|path| is_dead(path)).collect())
}

fn table() -> Result<Vec<u8>, Failure> {
    std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Failure::io("read /proc/self/mountinfo", &error))
}

/// The mount that is seen at `path`, if one is.
pub(super) fn topmost(path: &Path) -> Result<Option<Entry>, Failure> {
    let table = table()?;
    Ok(entries(&table).filter(|entry| entry.path == path).last())
}

/// Our own mount at `path`, if that is what is seen there.
pub(super) fn ours(path: &Path) -> Result<Option<Entry>, Failure> {
    Ok(topmost(path)?.filter(|entry| entry.fs_type == FS_TYPE))
}

/// The mount of ours that a path lies in.
pub(super) fn around(path: &Path) -> Result<Option<PathBuf>, Failure> {
    for above in path.ancestors() {
        if ours(above)?.is_some() {
            return Ok(Some(above.to_owned()));
        }
    }
    Ok(None)
}

/// Lets the kernel read further ahead in what it reads through its cache. Only root may say so, and
/// for others all works as well, in more and shorter reads.
pub(super) fn read_ahead(device: &str) {
    let knob = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&knob, (LONGEST_READ >> 10).to_string()) {
        tracing::debug!(%error, knob, "read-ahead stays as it is");
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = Entry> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let device = String::from_utf8(words.nth(2)?.to_vec()).ok()?;
        let path = unescaped(words.nth(1)?);
        let fs_type = words.skip_while(|word| *word != b"-").nth(1)?;
        Some(Entry {
            device,
            fs_type: String::from_utf8_lossy(fs_type).into_owned(),
            path,
        })
    })
}

/// mountinfo writes blanks and backslashes as three octal digits.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let value =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Takes the mount at `path` away, with our own rights or with fusermount3's.
pub(super) fn unmount(path: &Path, how: Unmount) -> Result<(), Failure> {
    match sys::unmount(path, how) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => by_fusermount(path, how),
        Err(error) => Err(Failure::io(
            format_args!("unmount {}", path.display()),
            &error,
        )),
        Ok(()) => Ok(()),
    }
}

fn by_fusermount(path: &Path, how: Unmount) -> Result<(), Failure> {
    let flags = match how {
        Unmount::Plain => "-u",
        Unmount::Lazy => "-uz",
    };
    let output = Command::new("fusermount3")
        .arg(flags)
        .arg("--")
        .arg(path)
        .output();
    let output = output.map_err(|error| {
        Failure::io("run fusermount3", &error).next("install the package fuse3, or unmount as root")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // fusermount3 has one exit code for all; its words follow strerror.
    let errno = if words.contains("busy") {
        Errno::EBUSY
    } else {
        Errno::EIO
    };
    Err(
        Failure::new(errno, format!("cannot unmount {}: {words}", path.display()))
            .next("see who uses it: fuser -vm"),
    )
}

#[cfg(test)]
mod tests {
    use super::{entries, prepare, topmost, unescaped};
    use crate::errno::Errno;
    use std::path::Path;

    const TABLE: &[u8] = b"22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        40 22 0:57 / /mnt/a\\040b rw,nosuid - fuse.qmpfs unix:/run/x.qmp rw,user_id=0\n\
        41 22 0:58 / /mnt/c rw shared:3 master:2 - fuse.sshfs host: rw\n\nbroken line\n";

    #[test]
    fn mountinfo_is_read_with_and_without_optional_fields() {
        let all: Vec<_> = entries(TABLE).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].device, "0:57");
        assert_eq!(all[1].path, Path::new("/mnt/a b"));
        assert_eq!(all[1].fs_type, "fuse.qmpfs");
        assert_eq!(all[2].fs_type, "fuse.sshfs");
    }

    #[test]
    fn escapes() {
        assert_eq!(unescaped(b"/a\\134b\\011"), Path::new("/a\\b\t"));
        assert_eq!(unescaped(b"/a\\"), Path::new("/a\\"));
        assert_eq!(unescaped(b"/a\\9zz"), Path::new("/a\\9zz"));
    }

    #[test]
    fn an_empty_directory_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let usable = prepare(directory.path()).expect("it is empty");
        assert!(usable.is_absolute());
        assert!(topmost(&usable).expect("mountinfo can be read").is_none());
        std::fs::write(directory.path().join("x"), "").expect("a file");
        assert_eq!(
            prepare(directory.path()).expect_err("not empty").errno,
            Errno::ENOTEMPTY
        );
        assert_eq!(
            prepare(&directory.path().join("x"))
                .expect_err("a file")
                .errno,
            Errno::ENOTDIR
        );
        let missing = prepare(&directory.path().join("y")).expect_err("missing");
        assert_eq!(missing.errno, Errno::ENOENT);
        assert!(missing.next.contains("mkdir"), "{missing}");
    }
}
