//! The lock that a reader holds on a layer.
//! It knows QEMU's lock bytes; it does not know chains or formats.

use crate::errno::{Errno, Failure};
use crate::sys;
use std::fs::File;
use std::path::Path;

/// "Somebody reads this consistently": the only byte of QEMU's we ever hold. Never byte 201 ("do
/// not write here"), which every other reader takes: held above a commit, it crashes the VM at
/// the end of the job.
const CONSISTENT_READ: u32 = 100;

/// "Do not read this consistently": held by QEMU on the source of a commit.
const NO_CONSISTENT_READ: u32 = 200;

/// "I write": held by whoever has the image open for writing.
const WRITE: u32 = 101;

/// Whether somebody has the image open for writing. It only looks.
pub fn written_by_someone(image: &Path) -> Result<bool, Failure> {
    sys::open_for_reading(image)
        .and_then(|file| sys::byte_held_elsewhere(&file, WRITE))
        .map_err(|error| {
            Failure::io(
                format_args!("look for locks on {}", image.display()),
                &error,
            )
        })
}

/// Locks a layer for reading, or backs off where QEMU is committing it.
pub(super) fn lock(path: &Path, file: &File) -> Result<(), Failure> {
    let trouble = |error| Failure::io(format_args!("lock {}", path.display()), &error);
    sys::lock_byte_shared(file, CONSISTENT_READ).map_err(trouble)?;
    // First lock, then look: QEMU takes its byte before it looks for ours, so that one of us sees
    // the other.
    match sys::byte_held_elsewhere(file, NO_CONSISTENT_READ) {
        Ok(false) => Ok(()),
        Ok(true) => {
            let _ = unlock(file);
            Err(Failure::new(
                Errno::EBUSY,
                format!("QEMU is committing this layer: {}", path.display()),
            )
            .next("try again when its job has ended"))
        }
        Err(error) => {
            let _ = unlock(file);
            Err(trouble(error))
        }
    }
}

/// Gives the lock back.
pub(super) fn unlock(file: &File) -> std::io::Result<()> {
    sys::unlock_byte(file, CONSISTENT_READ)
}
