//! Directories of the tree that the kernel keeps in mind, so that a path through them costs no request each. Every
//! new model makes it ask again, before anybody has an answer that the model belongs to.
//! A directory that is gone answers ESTALE to the question; the kernel then looks its path up anew.

use fuser::{INodeNo, Notifier};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long the kernel remembers a directory if nothing changes.
pub(super) const KEPT: Duration = Duration::from_secs(1);

/// The inodes whose attributes the kernel may have.
#[derive(Default)]
pub(super) struct Kept {
    told: Mutex<HashSet<u64>>,
}

impl Kept {
    /// The kernel is about to be told the attributes of a directory.
    pub(super) fn tell(&self, ino: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(ino);
    }

    /// Makes the kernel ask again for all of them. It takes no lock for this that a request may hold.
    pub(super) fn ask_again(&self, kernel: &Notifier) {
        let told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        for ino in told {
            // attributes alone: no page of a directory is cached
            if let Err(error) = kernel.inval_inode(INodeNo(ino), -1, 0) {
                tracing::debug!(%error, ino, "the kernel forgets a directory by itself");
            }
        }
    }
}
