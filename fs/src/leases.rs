//! Which open views hold which points, so that a point in use is not taken away.
//! It knows files and process ids; it does not know what a view is or how it reads.

use crate::model::FileId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a view holds: a point, by the file that makes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseKey {
    /// The top file of its chain.
    pub file: FileId,
    /// The id of the internal snapshot in it; None: the file's own state.
    pub internal: Option<String>,
}

/// Who holds something of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process that opened the view.
    pub pid: u32,
    /// The id of the internal snapshot it reads, if it is one.
    pub internal: Option<String>,
}

/// All leases of a mount; a clone is another handle on the same book.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    held: HashMap<u64, (LeaseKey, u32)>,
}

/// Dropping it gives the point back.
#[derive(Debug)]
#[must_use = "a lease that is dropped protects nothing"]
pub struct Lease {
    number: u64,
    leases: Leases,
}

/// Stands for us where a view is only measured: it holds its files, but keeps no point.
pub const MEASURING: u32 = 0;

impl Leases {
    /// Holds a point for a process. A point may be held many times.
    pub fn hold(&self, key: LeaseKey, pid: u32) -> Lease {
        let mut book = self.book();
        let number = book.next;
        book.next += 1;
        book.held.insert(number, (key, pid));
        Lease {
            number,
            leases: self.clone(),
        }
    }

    /// Everybody who holds the file's own state or an internal snapshot of it, oldest first.
    pub fn holders(&self, file: FileId) -> Vec<Holder> {
        let book = self.book();
        let mut found: Vec<_> = book
            .held
            .iter()
            .filter(|(_, (key, _))| key.file == file)
            .collect();
        found.sort_by_key(|(number, _)| **number);
        found
            .into_iter()
            .map(|(_, (key, pid))| Holder {
                pid: *pid,
                internal: key.internal.clone(),
            })
            .collect()
    }

    /// The same without our own measuring.
    pub fn readers(&self, file: FileId) -> Vec<Holder> {
        let mut holders = self.holders(file);
        holders.retain(|holder| holder.pid != MEASURING);
        holders
    }

    /// Whether anybody holds anything of the file.
    pub fn any_in(&self, file: FileId) -> bool {
        self.book().held.values().any(|(key, _)| key.file == file)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Each change of the book is one insert or remove: a panic elsewhere leaves it whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.book().held.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId { dev: 1, ino: 2 };

    #[test]
    fn a_lease_lasts_as_long_as_its_guard() {
        let leases = Leases::default();
        let own = leases.hold(
            LeaseKey {
                file: FILE,
                internal: None,
            },
            10,
        );
        let again = leases.clone().hold(
            LeaseKey {
                file: FILE,
                internal: None,
            },
            10,
        );
        let internal = leases.hold(
            LeaseKey {
                file: FILE,
                internal: Some("3".into()),
            },
            11,
        );
        let _other = leases.hold(
            LeaseKey {
                file: FileId { dev: 1, ino: 3 },
                internal: None,
            },
            12,
        );

        assert_eq!(
            leases.holders(FILE),
            [
                Holder {
                    pid: 10,
                    internal: None
                },
                Holder {
                    pid: 10,
                    internal: None
                },
                Holder {
                    pid: 11,
                    internal: Some("3".into())
                },
            ]
        );
        drop(own);
        drop(internal);
        assert_eq!(
            leases.holders(FILE),
            [Holder {
                pid: 10,
                internal: None
            }]
        );
        assert!(leases.any_in(FILE));
        drop(again);
        assert!(!leases.any_in(FILE));
        assert!(leases.any_in(FileId { dev: 1, ino: 3 }));
    }
}
