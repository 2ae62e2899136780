//! Extended attributes of an open file, and all of what a path names.
//! It knows their system calls; it does not know what is kept in them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The kernel takes no longer value (XATTR_SIZE_MAX), so none is read.
const VALUE_MAX: usize = 65_536;

/// The value of an attribute; None when the file has none of that name.
pub fn xattr_get(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; VALUE_MAX];
    // SAFETY: the descriptor is open, the name ends with NUL, and the kernel writes at most
    // `value.len()` bytes to `value`.
    let length = unsafe {
        libc::fgetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match usize::try_from(length) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(_) => absent(io::Error::last_os_error()).map(|()| None),
    }
}

/// All names and values of what a path names, in the order of names; a link's own, not those of what it leads to.
pub fn xattrs_of(path: &Path) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0u8; VALUE_MAX];
    // SAFETY: the path ends with NUL, and the kernel writes at most `names.len()` bytes to `names`.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let names = names.get(..length).unwrap_or_default();
    let mut all = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        let mut value = vec![0u8; VALUE_MAX];
        // SAFETY: the path and the name end with NUL, and the kernel writes at most `value.len()` bytes to `value`.
        let length = unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        value.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
        all.push((name.to_owned(), value));
    }
    all.sort();
    Ok(all)
}

/// Sets an attribute, whether it was there or not.
pub fn xattr_set(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the descriptor is open, the name ends with NUL, and the kernel reads `value.len()`
    // bytes from `value`.
    let answer = unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Removes an attribute; one that is not there is no error.
pub fn xattr_remove(file: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: the descriptor is open and the name ends with NUL.
    let answer = unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) };
    if answer == 0 {
        Ok(())
    } else {
        absent(io::Error::last_os_error())
    }
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ENODATA) {
        Ok(())
    } else {
        Err(error)
    }
}
