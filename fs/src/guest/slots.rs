//! How many readers there may be: each may take half a gigabyte, if its guest wants it to.

use std::sync::Arc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Readers at the same time, in all points of a mount.
const READERS: usize = 8;
/// How long a new one waits for one of the others to end.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Slots {
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Default)]
struct Used {
    taken: usize,
    waiting: usize,
}

/// A place; dropping it gives it back.
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    /// A place, as soon as there is one; None after a while.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let until = Instant::now() + PATIENCE;
        let mut used = self.used();
        used.waiting += 1;
        while used.taken >= READERS {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            let waited = self.freed.wait_timeout(used, rest);
            used = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        used.waiting -= 1;
        if used.taken >= READERS {
            return None;
        }
        used.taken += 1;
        drop(used);
        Some(Slot(Arc::clone(self)))
    }

    /// Whether somebody waits for a place.
    pub(super) fn are_wanted(&self) -> bool {
        self.used().waiting > 0
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used().taken -= 1;
        self.0.freed.notify_one();
    }
}
