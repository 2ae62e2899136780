//! Inode numbers: one for each [`NodeKey`], kept as long as the kernel holds it or it is there.
//! It knows keys, numbers and how often the kernel was given one; not what they mean.
//! Invariant: a number is never given to another thing, so none ever appears under an inode the
//! kernel still remembers.

use super::NodeKey;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

/// The kernel's number of the root directory.
const ROOT: u64 = 1;
/// A table this small is not worth tidying up.
const TIDY_FROM: usize = 1024;

/// Both directions of the table.
struct Table {
    numbers: HashMap<NodeKey, u64>,
    keys: HashMap<u64, Known>,
    last: u64,
    /// How large it may grow before it is tidied up again.
    tidy_at: usize,
}

struct Known {
    key: NodeKey,
    /// How often the kernel was given the number and has not let go of it.
    held: u64,
}

impl Table {
    fn drop_number(&mut self, number: u64) {
        if let Some(known) = self.keys.remove(&number)
            && self.numbers.get(&known.key) == Some(&number)
        {
            self.numbers.remove(&known.key);
        }
    }
}

/// The inode numbers of a mount.
pub struct Ids {
    table: RwLock<Table>,
}

impl Default for Ids {
    fn default() -> Self {
        Self::new()
    }
}

impl Ids {
    /// A table that knows the root.
    pub fn new() -> Self {
        let ids = Ids {
            table: RwLock::new(Table {
                numbers: HashMap::new(),
                keys: HashMap::new(),
                last: ROOT - 1,
                tidy_at: TIDY_FROM,
            }),
        };
        let root = ids.number(&NodeKey::Root);
        assert_eq!(
            root, ROOT,
            "the first key of an empty table gets the first number"
        );
        ids.hold(root, NodeKey::Root);
        ids
    }

    /// The number of `key`, given now if it has none yet.
    pub fn number(&self, key: &NodeKey) -> u64 {
        if let Some(number) = self
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .numbers
            .get(key)
        {
            return *number;
        }
        let mut table = self.write();
        if let Some(number) = table.numbers.get(key) {
            return *number;
        }
        table.last += 1;
        let number = table.last;
        table.numbers.insert(key.clone(), number);
        let key = key.clone();
        table.keys.insert(number, Known { key, held: 0 });
        number
    }

    /// What the number stands for.
    pub fn key(&self, number: u64) -> Option<NodeKey> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.keys.get(&number).map(|known| known.key.clone())
    }

    /// The kernel is about to be given `number` for `key`, and holds it until it forgets it.
    pub fn hold(&self, number: u64, key: NodeKey) {
        let mut table = self.write();
        // it may have been let go of since it was looked up for this answer
        table.numbers.entry(key.clone()).or_insert(number);
        let known = table.keys.entry(number).or_insert(Known { key, held: 0 });
        known.held = known.held.saturating_add(1);
    }

    /// Whether the kernel holds `number`.
    pub fn is_held(&self, number: u64) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.keys.get(&number).is_some_and(|known| known.held > 0)
    }

    /// The kernel lets go of `number` so many times. What is still there keeps it.
    pub fn forget(&self, number: u64, times: u64, is_there: impl Fn(&NodeKey) -> bool) {
        let mut table = self.write();
        let Some(known) = table.keys.get_mut(&number) else {
            return;
        };
        known.held = known.held.saturating_sub(times);
        if number != ROOT && known.held == 0 && !is_there(&known.key) {
            table.drop_number(number);
        }
    }

    /// Lets go of what the kernel does not hold and is not there, whenever the table has doubled.
    pub fn tidy(&self, is_there: impl Fn(&NodeKey) -> bool) {
        let full = |table: &Table| table.keys.len() >= table.tidy_at;
        if !full(&self.table.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut table = self.write();
        let gone: Vec<u64> = table
            .keys
            .iter()
            .filter(|(_, known)| known.held == 0 && !is_there(&known.key))
            .map(|(number, _)| *number)
            .collect();
        gone.into_iter()
            .for_each(|number| table.drop_number(number));
        table.tidy_at = TIDY_FROM.max(table.keys.len() * 2);
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.read().expect("not poisoned").keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{Ids, TIDY_FROM};
    use crate::tree::NodeKey;

    #[test]
    fn a_key_keeps_its_number() {
        let ids = Ids::new();
        assert_eq!(ids.key(1), Some(NodeKey::Root));
        let disk = NodeKey::Disk("vda".into());
        let number = ids.number(&disk);
        assert_ne!(number, 1);
        assert_eq!(ids.number(&NodeKey::Disk("vdb".into())), number + 1);
        assert_eq!(ids.number(&disk), number);
        assert_eq!(ids.key(number), Some(disk));
        assert_eq!(ids.key(0), None);
        assert_eq!(ids.key(99), None);
    }

    #[test]
    fn what_is_gone_and_forgotten_is_let_go_of_and_its_number_never_given_again() {
        let ids = Ids::new();
        let job = NodeKey::Job("vda".into(), "a".into());
        let number = ids.number(&job);
        ids.hold(number, job.clone());
        ids.hold(number, job.clone());
        ids.forget(number, 1, |_| false);
        assert_eq!(ids.key(number), Some(job.clone()), "held once more");
        ids.forget(number, 1, |_| true);
        assert_eq!(ids.number(&job), number, "it is still there");
        ids.hold(number, job.clone());
        ids.forget(number, 1, |_| false);
        assert_eq!(ids.key(number), None);
        assert!(ids.number(&job) > number);
        ids.forget(1, u64::MAX, |_| false);
        assert_eq!(ids.key(1), Some(NodeKey::Root));
    }

    #[test]
    fn a_number_that_was_let_go_of_while_it_was_on_its_way_is_what_it_was() {
        let ids = Ids::new();
        let job = NodeKey::Job("vda".into(), "a".into());
        let number = ids.number(&job);
        ids.forget(number, 0, |_| false);
        ids.hold(number, job.clone());
        assert_eq!(ids.key(number), Some(job));
    }

    #[test]
    fn listings_of_what_comes_and_goes_do_not_grow_the_table_for_ever() {
        let ids = Ids::new();
        for round in 0..20 {
            for index in 0..TIDY_FROM {
                ids.number(&NodeKey::Job("vda".into(), format!("{round}-{index}")));
            }
            ids.tidy(
                |key| matches!(key, NodeKey::Job(_, id) if id.starts_with(&format!("{round}-"))),
            );
        }
        assert!(ids.len() <= 3 * TIDY_FROM, "{}", ids.len());
    }
}
