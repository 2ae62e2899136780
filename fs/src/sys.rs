//! The one room with `unsafe`: the system calls the standard library does not wrap.
//! It knows libc and file descriptors; it knows no layer, no view and no errno of ours, and
//! answers plain `io::Result`s.

mod confine;
mod daemon;
mod file;
mod inherited;
mod lock;
mod mapped;
mod mount;
mod process;
mod socket;
mod xattr;

pub use confine::{close_inherited, confine, landlock_version};
pub use daemon::{
    Process, Side, StopSignals, close_standard_streams, fork_before_any_thread, new_session,
    own_ids, xattr_text,
};
pub use file::{
    Stretch, ask, directory_sync, file_id, file_id_of, forget_pages, free_bytes, is_one_file,
    is_socket_at, names_of, open_for_reading, remove_socket_at, rename_new, reserve,
    reserve_beyond, stretch_at,
};
pub use inherited::Inherited;
pub use lock::{byte_held_elsewhere, lock_byte_shared, unlock_byte};
pub use mapped::{Bytes, MappedFile, write_message};
pub use mount::{Unmount, unmount};
pub use process::{
    die_with_parent, foreign_root, give_way, open_files, process_directory, process_memory,
    process_program, raise_file_limit,
};
pub use socket::{connect_unix, peer_pid};
pub use xattr::{xattr_get, xattr_remove, xattr_set, xattrs_of};

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
