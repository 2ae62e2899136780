//! Taking mounts away.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Fails with EBUSY while somebody is inside.
    Plain,
    /// The name goes at once, the rest when the last reader has closed.
    Lazy,
}

/// umount2(2). Needs privileges; fusermount3 does the same for others.
pub fn unmount(path: &Path, how: Unmount) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = match how {
        Unmount::Plain => libc::UMOUNT_NOFOLLOW,
        Unmount::Lazy => libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH,
    };
    // SAFETY: the path is a valid C string for the length of the call.
    match unsafe { libc::umount2(path.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
