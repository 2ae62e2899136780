//! The lock that a reader holds on a layer.
//! It knows QEMU's lock bytes; it does not know chains or formats.

use crate::errno::{Errno, Failure};
use crate::sys;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// "Somebody reads this consistently": the only byte of QEMU's we ever hold. Never byte 201 ("do
/// not write here"), which every other reader takes: held above a commit, it crashes the VM at
/// the end of the job.
const CONSISTENT_READ: u64 = 100;

/// "Do not read this consistently": held by QEMU on the source of a commit.
const NO_CONSISTENT_READ: u64 = 200;

/// "I write": held by whoever has the image open for writing.
const WRITE: u64 = 101;

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

/// Whether somebody, or a view of ours, reads the image. It only looks.
pub fn read_by_someone(image: &Path) -> Result<bool, Failure> {
    sys::open_for_reading(image)
        .and_then(|file| sys::byte_held_elsewhere(&file, CONSISTENT_READ))
        .map_err(|error| {
            Failure::io(
                format_args!("look for locks on {}", image.display()),
                &error,
            )
        })
}

/// A file locked for reading, until this is dropped. Given back by name, and not left to the last
/// descriptor: a child that is being started has a copy of each until it runs its program.
pub(super) struct Locked {
    path: PathBuf,
    file: Arc<File>,
}

impl Locked {
    /// Locks a layer, or backs off where QEMU is committing it.
    pub(super) fn new(path: &Path, file: Arc<File>) -> Result<Locked, Failure> {
        let trouble = |error| Failure::io(format_args!("lock {}", path.display()), &error);
        sys::lock_byte_shared(&file, CONSISTENT_READ).map_err(trouble)?;
        let locked = Locked {
            path: path.to_owned(),
            file,
        };
        // First lock, then look: QEMU takes its byte before it looks for ours, so that one of us
        // sees the other.
        if sys::byte_held_elsewhere(&locked.file, NO_CONSISTENT_READ).map_err(trouble)? {
            return Err(Failure::new(
                Errno::EBUSY,
                format!("QEMU is committing this layer: {}", path.display()),
            )
            .next("try again when its job has ended"));
        }
        Ok(locked)
    }

    /// A layer that a job of our own has to itself: it is read without a lock, through a map that
    /// the job does not change.
    pub(super) fn waived(path: &Path, file: Arc<File>) -> Locked {
        Locked {
            path: path.to_owned(),
            file,
        }
    }

    /// The file.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Gives the lock back; the file stays open.
    pub(super) fn unlock(&self) {
        if let Err(error) = sys::unlock_byte(&self.file, CONSISTENT_READ) {
            // Cannot be: the descriptor is open. QEMU then refuses a commit, and nothing is lost.
            tracing::error!(path = %self.path.display(), %error, "a layer's lock was not given back");
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.unlock();
    }
}
