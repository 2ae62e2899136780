//! Extended attributes of an open file.
//! It knows their system calls; it does not know what is kept in them.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

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
