//! Locks of single bytes that belong to the open file, as QEMU's image locks do.
//! It knows fcntl; it does not know which byte means what.

use super::retried;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes a shared lock on one byte, without waiting. It goes with the last descriptor of `file`.
pub fn lock_byte_shared(file: &File, byte: u64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(drop)
}

/// Gives a byte back. One that was not held is no error.
pub fn unlock_byte(file: &File, byte: u64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
}

/// Whether another open file, of this process or another, holds a lock on the byte.
/// It only looks: nothing is taken, not even for a moment.
pub fn byte_held_elsewhere(file: &File, byte: u64) -> io::Result<bool> {
    let found = fcntl(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn fcntl(
    file: &File,
    command: libc::c_int,
    kind: libc::c_int,
    byte: u64,
) -> io::Result<libc::flock> {
    // SAFETY: `flock` is plain integers, for which all zeroes is a value. OFD locks want l_pid 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start =
        libc::off_t::try_from(byte).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    lock.l_len = 1;
    // SAFETY: the descriptor is open as long as `file` is borrowed, and both commands take a
    // pointer to a `flock` that lives across the call.
    retried(|| unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) })?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_seen_from_another_open_file_until_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"").unwrap();
        let (one, two) = (File::open(&path).unwrap(), File::open(&path).unwrap());

        lock_byte_shared(&one, 100).unwrap();
        assert!(byte_held_elsewhere(&two, 100).unwrap());
        assert!(!byte_held_elsewhere(&two, 99).unwrap());
        assert!(!byte_held_elsewhere(&two, 101).unwrap());
        assert!(
            !byte_held_elsewhere(&one, 100).unwrap(),
            "its own lock is not in its way"
        );

        lock_byte_shared(&two, 100).unwrap();
        unlock_byte(&one, 100).unwrap();
        unlock_byte(&one, 100).unwrap();
        assert!(!byte_held_elsewhere(&two, 100).unwrap());
        assert!(byte_held_elsewhere(&one, 100).unwrap());
        unlock_byte(&two, 100).unwrap();
        assert!(!byte_held_elsewhere(&one, 100).unwrap());
    }
}
