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
    closed: HashMap<u64, LeaseKey>,
    /// States that lie in another file by now, by the file that others may still ask for.
    became: HashMap<FileId, Became>,
}

/// Where a state is by now.
#[derive(Debug)]
struct Became {
    file: FileId,
    /// The disk whose state it is.
    disk: String,
}

impl Book {
    /// Where the state is that was in this file.
    fn now(&self, mut file: FileId) -> FileId {
        // one that came back to where it was is at home
        for _ in 0..self.became.len() {
            match self.became.get(&file) {
                Some(next) => file = next.file,
                None => break,
            }
        }
        file
    }

    fn key_now(&self, key: LeaseKey) -> LeaseKey {
        LeaseKey {
            file: self.now(key.file),
            ..key
        }
    }

    /// A number that no other entry has.
    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn readers(&self, file: FileId) -> Vec<Holder> {
        let mut holders = self.holders(file);
        holders.retain(|holder| holder.pid != MEASURING);
        holders
    }

    fn holders(&self, file: FileId) -> Vec<Holder> {
        let file = self.now(file);
        let mut found: Vec<_> = self
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
}

/// Dropping it gives the point back.
#[derive(Debug)]
#[must_use = "a lease that is dropped protects nothing"]
pub struct Lease {
    number: u64,
    leases: Leases,
}

/// Keeps new leases away from a point that is being removed, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets readers in again"]
pub struct Closed {
    number: u64,
    leases: Leases,
}

/// Stands for us where a view is only measured: it holds its files, but keeps no point.
pub const MEASURING: u32 = 0;

impl Leases {
    /// Holds a point for a process. A point may be held many times. None while it is being removed.
    pub fn hold(&self, key: LeaseKey, pid: u32) -> Option<Lease> {
        let mut book = self.book();
        let key = book.key_now(key);
        let own_state = LeaseKey {
            internal: None,
            ..key.clone()
        };
        let mut closed = book.closed.values();
        if closed.any(|closed| *closed == key || *closed == own_state) {
            return None;
        }
        let number = book.number();
        book.held.insert(number, (key, pid));
        Some(Lease {
            number,
            leases: self.clone(),
        })
    }

    /// Lets nobody in any more: to an internal snapshot, or to a file's own state and all in it.
    /// The readers that are there already, oldest first, where there are any: between asking who
    /// reads and the removal nobody may come.
    pub fn close(&self, key: LeaseKey) -> Result<Closed, Vec<Holder>> {
        let mut book = self.book();
        let mut readers = book.readers(key.file);
        readers.retain(|reader| key.internal.is_none() || reader.internal == key.internal);
        if !readers.is_empty() {
            return Err(readers);
        }
        let key = book.key_now(key);
        let number = book.number();
        book.closed.insert(number, key);
        Ok(Closed {
            number,
            leases: self.clone(),
        })
    }

    /// Everybody who holds the file's own state or an internal snapshot of it, oldest first.
    pub fn holders(&self, file: FileId) -> Vec<Holder> {
        self.book().holders(file)
    }

    /// The same without our own measuring.
    pub fn readers(&self, file: FileId) -> Vec<Holder> {
        self.book().readers(file)
    }

    /// A commit has brought a disk's state that was in the file `from` into the file `to`: whoever holds it holds that one
    /// from now on, as does who still asks for `from`, until [`Self::shown`].
    pub fn became(&self, disk: &str, from: FileId, to: FileId) {
        let mut book = self.book();
        if book.now(to) == from {
            return;
        }
        let Book { held, closed, .. } = &mut *book;
        let keys = held.values_mut().map(|(key, _)| key);
        for key in keys.chain(closed.values_mut()) {
            if key.file == from && key.internal.is_none() {
                key.file = to;
            }
        }
        let became = Became {
            file: to,
            disk: disk.to_owned(),
        };
        book.became.insert(from, became);
    }

    /// Nobody asks for a file any more that is not shown with its disk, and its number may come back as another file's.
    pub fn shown(&self, is_shown: impl Fn(&str, FileId) -> bool) {
        let mut book = self.book();
        book.became
            .retain(|from, became| is_shown(&became.disk, *from));
    }

    /// Whether any of these processes holds anything.
    pub fn any_by(&self, is_one: impl Fn(u32) -> bool) -> bool {
        let book = self.book();
        let mut pids = book.held.values().map(|(_, pid)| *pid);
        pids.any(|pid| pid != MEASURING && is_one(pid))
    }

    /// Whether anybody holds anything of the file.
    pub fn any_in(&self, file: FileId) -> bool {
        let book = self.book();
        let file = book.now(file);
        book.held.values().any(|(key, _)| key.file == file)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Each change of the book is one insert or remove: a panic elsewhere leaves it whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Another one of the same, for `pid`. None while the point is being removed.
    pub fn again(&self, pid: u32) -> Option<Lease> {
        let key = self.leases.book().held.get(&self.number)?.0.clone();
        self.leases.hold(key, pid)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.leases.book().closed.remove(&self.number);
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

    fn key(file: FileId, internal: Option<&str>) -> LeaseKey {
        LeaseKey {
            file,
            internal: internal.map(str::to_owned),
        }
    }

    #[test]
    fn a_lease_lasts_as_long_as_its_guard() {
        let leases = Leases::default();
        let hold = |key, pid| leases.clone().hold(key, pid).expect("nothing is closed");
        let other_file = FileId { dev: 1, ino: 3 };
        let own = hold(key(FILE, None), 10);
        let again = hold(key(FILE, None), 10);
        let internal = hold(key(FILE, Some("3")), 11);
        let _other = hold(key(other_file, None), 12);

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
        assert!(leases.any_in(other_file));
    }

    #[test]
    fn who_reads_what_was_committed_reads_the_file_it_was_committed_into() {
        let [a, b, c] = [1, 2, 3].map(|ino| FileId { dev: 1, ino });
        let leases = Leases::default();
        let early = leases.hold(key(b, None), 10).expect("nothing is closed");
        leases.became("vda", b, a);
        assert!(leases.close(key(a, None)).is_err());
        // who looked before
        let late = leases.hold(key(b, None), 11).expect("nothing is closed");
        let of_another = leases.hold(key(c, None), 12).expect("nothing is closed");
        drop(early);
        assert_eq!(leases.readers(a).len(), 1);
        drop(late);
        let closed = leases.close(key(a, None)).expect("nobody reads");
        assert!(leases.hold(key(b, None), 13).is_none());
        drop(closed);
        // one that waits for its turn to go
        let waits = leases.close(key(b, None)).expect("nobody reads");
        leases.became("vda", c, a);
        assert_eq!(leases.readers(a).len(), 1);
        drop((of_another, waits));
        // a new file with the number of one that is gone
        leases.shown(|disk, file| disk == "vda" && file == a);
        let new = leases.hold(key(b, None), 14).expect("nothing is closed");
        assert!(!leases.any_in(a) && leases.any_in(b));
        drop(new);
    }

    #[test]
    fn nobody_comes_to_what_is_being_removed() {
        let leases = Leases::default();
        let one = leases.close(key(FILE, Some("1"))).expect("nobody reads");
        assert!(leases.hold(key(FILE, Some("1")), 10).is_none());
        let two = leases.hold(key(FILE, Some("2")), 10).expect("another");
        let own = leases.hold(key(FILE, None), MEASURING).expect("another");
        assert_eq!(leases.close(key(FILE, None)).expect_err("read").len(), 1);
        assert_eq!(
            leases.close(key(FILE, Some("2"))).expect_err("read").len(),
            1
        );
        drop(two);
        let all = leases.close(key(FILE, None)).expect("we only measure");
        assert!(leases.hold(key(FILE, Some("2")), 10).is_none());
        assert!(leases.hold(key(FILE, None), MEASURING).is_none());
        drop((one, all, own));
        assert!(leases.hold(key(FILE, Some("1")), 10).is_some());
    }
}
