//! Where each directory of a guest stands, as long as the kernel knows of it.
//! A directory has one name. In a damaged filesystem it may have two, and the second may lie below the directory
//! itself: who walks there would walk for ever. The kernel does not see that, as directories of different depths have
//! different inode numbers; so the second name is refused here.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What names a directory.
#[derive(Debug, Clone, Copy)]
pub enum Whence<'a> {
    /// Something that is no part of the filesystem: it is the root.
    Outside,
    /// A name in another one.
    Name {
        /// That one's node.
        directory: u64,
        /// The name.
        name: &'a [u8],
    },
}

#[derive(Default)]
pub(super) struct Places {
    known: Mutex<Known>,
    // No guest can know which names have the same hash.
    hasher: RandomState,
}

#[derive(Default)]
struct Known {
    /// The files that this was read from, by their fingerprint.
    files: Option<u64>,
    directories: HashMap<u64, Place>,
}

struct Place {
    whence: u64,
    /// How often the kernel was told of it and has not forgotten it.
    held: u64,
}

impl Places {
    /// The kernel is about to be told of a directory; false where it knows it by another name.
    pub(super) fn hold(&self, node: u64, whence: Whence) -> bool {
        let whence = match whence {
            Whence::Outside => 0,
            Whence::Name { directory, name } => self.hasher.hash_one((directory, name)),
        };
        match self.known().directories.entry(node) {
            Entry::Vacant(vacant) => {
                vacant.insert(Place { whence, held: 1 });
                true
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                let same = known.whence == whence;
                known.held = known.held.saturating_add(u64::from(same));
                same
            }
        }
    }

    /// The kernel lets go of it so many times.
    pub(super) fn forget(&self, node: u64, times: u64) {
        if let Entry::Occupied(mut known) = self.known().directories.entry(node) {
            known.get_mut().held = known.get().held.saturating_sub(times);
            if known.get().held == 0 {
                known.remove();
            }
        }
    }

    /// What is read from now on: where others have written to the files, directories may stand elsewhere.
    pub(super) fn are_in(&self, files: u64) {
        let mut known = self.known();
        if known.files.replace(files) != Some(files) {
            known.directories.clear();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Places, Whence};

    fn named(directory: u64, name: &str) -> Whence<'_> {
        let name = name.as_bytes();
        Whence::Name { directory, name }
    }

    #[test]
    fn a_directory_has_one_name_until_it_is_forgotten() {
        let places = Places::default();
        places.are_in(1);
        assert!(places.hold(2, Whence::Outside));
        assert!(places.hold(12, named(2, "home")));
        assert!(places.hold(12, named(2, "home")));
        assert!(!places.hold(2, named(12, "up")), "a circle");
        assert!(!places.hold(12, named(12, "itself")));
        assert!(!places.hold(12, named(2, "again")));
        places.forget(12, 1);
        assert!(!places.hold(12, named(2, "again")));
        places.forget(12, 1);
        assert!(places.hold(12, named(2, "again")));
        places.forget(99, 1);
    }

    #[test]
    fn what_was_rewritten_may_stand_elsewhere() {
        let places = Places::default();
        places.are_in(1);
        assert!(places.hold(12, named(2, "home")));
        places.are_in(1);
        assert!(!places.hold(12, named(2, "moved")));
        places.are_in(2);
        assert!(places.hold(12, named(2, "moved")));
        places.forget(12, 3);
        assert!(places.hold(12, named(2, "home")));
    }
}
