//! Files by identity, their holes, free space, and directories.
//! It knows stat and statvfs; it does not know what a file is for.

use super::retried;
use crate::model::FileId;
use std::ffi::CString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The file that a path leads to, through symlinks.
pub fn file_id(path: &Path) -> io::Result<FileId> {
    std::fs::metadata(path).map(|metadata| id(&metadata))
}

/// An open file.
pub fn file_id_of(file: &File) -> io::Result<FileId> {
    file.metadata().map(|metadata| id(&metadata))
}

/// How many names (hard links) the file has that a path leads to.
pub fn names_of(path: &Path) -> io::Result<u64> {
    std::fs::metadata(path).map(|metadata| metadata.nlink())
}

fn id(metadata: &Metadata) -> FileId {
    FileId {
        dev: metadata.dev(),
        ino: metadata.ino(),
    }
}

/// Opens for reading without side effects: a FIFO does not block, a terminal is not taken.
pub fn open_for_reading(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// Has the filesystem of an open file answer `message` in its place, by an ioctl of its own.
pub fn ask(file: &File, request: u32, message: &mut [u8]) -> io::Result<()> {
    let length = (request >> 16 & 0x3fff) as usize;
    if length != message.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the request says how many bytes are read and written there, and there are as many.
    retried(|| unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::c_ulong::from(request),
            message.as_mut_ptr(),
        )
    })?;
    Ok(())
}

/// Makes the names in a directory survive a power cut.
pub fn directory_sync(directory: &Path) -> io::Result<()> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(directory)?
        .sync_all()
}

/// Bytes that we may still write to the filesystem `path` is on.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statvfs` is plain integers, for which all zeroes is a value.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with NUL and `answer` lives across the call.
    retried(|| unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) })?;
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// Gives a file `bytes` of room at least, so that no write below that can find the disk full. What is
/// new reads as zeros. Filesystems that cannot promise it say EOPNOTSUPP.
pub fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: the descriptor is open as long as `file` is borrowed, and no pointer is passed.
    retried(|| unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) }).map(drop)
}

/// Takes room for the first `bytes` of a file from the filesystem. Its length stays what it is.
pub fn reserve_beyond(file: &File, bytes: u64) -> io::Result<()> {
    let Ok(bytes) = libc::off_t::try_from(bytes) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is passed.
    retried(|| unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, bytes) })
        .map(drop)
}

/// What the kernel keeps of a file in memory has done its duty. That it does not let go of it is no harm.
pub fn forget_pages(file: &File) {
    // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is passed.
    let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Whether two names lead to one file.
pub fn is_one_file(one: &Path, other: &Path) -> bool {
    matches!((file_id(one), file_id(other)), (Ok(one), Ok(other)) if one == other)
}

/// Gives a file another name, which must be free; the old one goes.
pub fn rename_new(source: &Path, target: &Path) -> io::Result<()> {
    let (from, to) = (
        CString::new(source.as_os_str().as_bytes())?,
        CString::new(target.as_os_str().as_bytes())?,
    );
    // SAFETY: both paths end with NUL and live across the call.
    let renamed = retried(|| unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    });
    match renamed {
        // NFS has no such rename
        Err(error) if knows_no_flags(&error) => rename_by_link(source, target),
        renamed => renamed.map(drop),
    }
}

fn knows_no_flags(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
    )
}

/// The same in two steps; where it ends in between the file has both names.
fn rename_by_link(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::hard_link(from, to)?;
    std::fs::remove_file(from)
}

/// Whether a directory has a socket of this name. A link to one is none.
pub fn is_socket_at(directory: &File, name: &str) -> io::Result<bool> {
    let name = CString::new(name)?;
    // SAFETY: `stat` is plain integers, for which all zeroes is a value.
    let mut answer: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the name ends with NUL, and `answer` lives across the call.
    retried(|| unsafe {
        libc::fstatat(
            directory.as_raw_fd(),
            name.as_ptr(),
            &raw mut answer,
            libc::AT_SYMLINK_NOFOLLOW,
        )
    })?;
    Ok(answer.st_mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// Removes a socket from a directory. One that is not there is no error; anything else of that name stays, and is one.
pub fn remove_socket_at(directory: &File, name: &str) -> io::Result<()> {
    match is_socket_at(directory, name) {
        Ok(true) => {}
        Ok(false) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let name = CString::new(name)?;
    // SAFETY: the descriptor is open and the name ends with NUL.
    retried(|| unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// A part of a file that is all data or all hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Where it ends; u64::MAX where it does not end before the file does.
    pub end: u64,
    /// Whether the filesystem holds bytes for it.
    pub data: bool,
}

/// What lies at an offset of a file. A file that cannot say (a block device) is data throughout.
pub fn stretch_at(file: &File, offset: u64) -> io::Result<Stretch> {
    let hole = |end| Ok(Stretch { end, data: false });
    let data = |end| Ok(Stretch { end, data: true });
    match seek(file, offset, libc::SEEK_DATA) {
        Ok(next) if next > offset => hole(next),
        Ok(_) => match seek(file, offset, libc::SEEK_HOLE) {
            Ok(next) if next > offset => data(next),
            // It changed in between: data is the answer that hides nothing.
            Ok(_) | Err(_) => data(u64::MAX),
        },
        Err(error) => match error.raw_os_error() {
            Some(libc::ENXIO) => hole(u64::MAX),
            Some(libc::EINVAL | libc::EOPNOTSUPP) => data(u64::MAX),
            _ => Err(error),
        },
    }
}

/// The cursor moves, but nothing here reads at the cursor.
fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    let Ok(offset) = libc::off_t::try_from(offset) else {
        return Err(io::Error::from_raw_os_error(libc::ENXIO));
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is passed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_under_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, b"x").unwrap();
        assert_eq!(names_of(&a).unwrap(), 1);
        std::fs::hard_link(&a, &b).unwrap();
        assert_eq!(
            file_id(&a).unwrap(),
            file_id_of(&File::open(&b).unwrap()).unwrap()
        );
        assert_eq!(names_of(&b).unwrap(), 2);
    }

    #[test]
    fn holes_are_told_from_data() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 65_536], 1 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        let data_end = (1 << 20) + 65_536;
        assert_eq!(
            stretch_at(&file, 0).unwrap(),
            Stretch {
                end: 1 << 20,
                data: false
            }
        );
        assert_eq!(
            stretch_at(&file, 1 << 20).unwrap(),
            Stretch {
                end: data_end,
                data: true
            }
        );
        assert_eq!(
            stretch_at(&file, data_end).unwrap(),
            Stretch {
                end: u64::MAX,
                data: false
            }
        );
        assert_eq!(
            stretch_at(&file, 1 << 40).unwrap(),
            Stretch {
                end: u64::MAX,
                data: false
            }
        );
        assert_eq!(
            stretch_at(&file, u64::MAX).unwrap(),
            Stretch {
                end: u64::MAX,
                data: false
            }
        );
    }

    #[test]
    fn reserved_room_is_not_length_and_goes_with_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("reserved")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 65_536], 0).unwrap();
        reserve_beyond(&file, 8 << 20).unwrap();
        let taken = file.metadata().unwrap();
        assert_eq!(taken.len(), 65_536);
        assert!(taken.blocks() * 512 >= 8 << 20, "{}", taken.blocks());
        file.set_len(65_536).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
        let error = reserve_beyond(&file, u64::MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    }

    #[test]
    fn a_name_that_is_taken_is_not_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, b"new").unwrap();
        std::fs::write(&b, b"old").unwrap();
        let error = rename_new(&a, &b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&b).unwrap(), b"old");
        std::fs::remove_file(&b).unwrap();
        rename_new(&a, &b).unwrap();
        assert!(!a.exists() && b.exists());
    }

    #[test]
    fn a_name_is_given_by_a_link_where_renames_know_no_flags() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, b"new").unwrap();
        std::fs::write(&b, b"old").unwrap();
        let error = rename_by_link(&a, &b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(a.exists());
        std::fs::remove_file(&b).unwrap();
        rename_by_link(&a, &b).unwrap();
        assert!(!a.exists());
        assert_eq!(std::fs::read(&b).unwrap(), b"new");
        for error in [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP] {
            assert!(knows_no_flags(&io::Error::from_raw_os_error(error)));
        }
        assert!(!knows_no_flags(&io::Error::from_raw_os_error(libc::EEXIST)));
    }

    #[test]
    fn a_fifo_does_not_block_the_opening() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        open_for_reading(&fifo).unwrap();
    }

    #[test]
    fn free_space_and_synced_directories() {
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
        assert_eq!(
            free_bytes(Path::new("/no/such")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        directory_sync(&std::env::temp_dir()).unwrap();
        assert!(directory_sync(Path::new("/proc/self/status")).is_err());
    }
}
