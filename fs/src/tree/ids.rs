//! Inode numbers: one for each [`NodeKey`] the kernel was ever told of, for the mount's life.
//! It knows keys and numbers, not what they mean. A key that is gone keeps its number, so that
//! no other thing ever appears under an inode the kernel still remembers.

use super::NodeKey;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// The kernel's number of the root directory.
const ROOT: u64 = 1;

/// Both directions of the table.
#[derive(Default)]
struct Table {
    numbers: HashMap<NodeKey, u64>,
    /// Index 0 is inode 1.
    keys: Vec<NodeKey>,
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
            table: RwLock::default(),
        };
        let root = ids.number(&NodeKey::Root);
        assert_eq!(
            root, ROOT,
            "the first key of an empty table gets the first number"
        );
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
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = table.numbers.get(key) {
            return *number;
        }
        let number = table.keys.len() as u64 + ROOT;
        table.keys.push(key.clone());
        table.numbers.insert(key.clone(), number);
        number
    }

    /// What the number stands for.
    pub fn key(&self, number: u64) -> Option<NodeKey> {
        let index = usize::try_from(number.checked_sub(ROOT)?).ok()?;
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys
            .get(index)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::Ids;
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
}
