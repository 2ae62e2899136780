//! The one room with `unsafe`: the system calls the standard library does not wrap.
//! It knows libc and file descriptors; it knows no layer, no view and no errno of ours, and
//! answers plain `io::Result`s.

mod file;
mod lock;
mod xattr;

pub use file::{
    Stretch, directory_sync, file_id, file_id_of, free_bytes, names_of, open_for_reading,
    process_directory, stretch_at,
};
pub use lock::{byte_held_elsewhere, lock_byte_shared, unlock_byte};
pub use xattr::{xattr_get, xattr_remove, xattr_set};

/// Repeats a system call that a signal interrupted.
fn retried(mut call: impl FnMut() -> libc::c_int) -> std::io::Result<libc::c_int> {
    loop {
        let answer = call();
        if answer >= 0 {
            return Ok(answer);
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
