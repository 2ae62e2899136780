//! `query-migrate`: whether the VM is on its way to another QEMU, or from one.

use serde::{Deserialize, Serialize};

use super::Command;

/// `query-migrate`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryMigrate;

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Migration {
    /// QEMU's word: `active`, `completed`, `failed`, …; absent, or `none`, where there was no migration.
    pub status: Option<String>,
}

impl Migration {
    /// Its word, while it is neither over nor never begun. A word that is not known counts: in doubt it goes on.
    pub fn under_way(&self) -> Option<&str> {
        let over = |word: &&str| matches!(*word, "none" | "completed" | "failed" | "cancelled");
        self.status.as_deref().filter(|word| !over(word))
    }
}

impl Command for QueryMigrate {
    const NAME: &str = "query-migrate";
    type Reply = Migration;
}

#[cfg(test)]
mod tests {
    use super::Migration;

    #[test]
    fn a_migration_is_under_way_until_qemu_says_that_it_is_over() {
        let told = |answer: &str| -> Migration { serde_json::from_str(answer).unwrap() };
        assert_eq!(told("{}").under_way(), None);
        for over in ["none", "completed", "failed", "cancelled"] {
            let answer = format!(r#"{{"status":"{over}"}}"#);
            assert_eq!(told(&answer).under_way(), None, "{over}");
        }
        for word in [
            "setup",
            "active",
            "pre-switchover",
            "device",
            "cancelling",
            "a-new-word",
        ] {
            let answer = format!(r#"{{"status":"{word}","ram":{{"total":1}}}}"#);
            assert_eq!(told(&answer).under_way(), Some(word));
        }
    }
}
