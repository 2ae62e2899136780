//! A VM that goes over to another QEMU. That one has the files open by the names they have now, and writes into them from
//! a moment on that nobody here chooses: a layer that was sealed meanwhile it would write to, an overlay it would never
//! know. So no chain, no node and no name is changed until the VM is here for good. What is begun in the same moment is
//! seen right before the last step that can be taken back. It knows what QEMU says of that, and no verb.

use crate::errno::{Errno, Failure};
use qmpbridge::Bridge;
use qmpbridge::command::{Migration, QueryMigrate, QueryStatus};

/// Refused while the VM goes to another QEMU, has gone there, or has not come here yet.
pub(super) async fn refuse(bridge: &Bridge) -> Result<(), Failure> {
    let status = async {
        match bridge.supports("query-status") {
            true => Ok(bridge.run(QueryStatus).await?.status),
            false => Ok(String::new()),
        }
    };
    let (migration, status) = tokio::try_join!(ask(bridge), status)?;
    why_not(&migration, &status).map_or(Ok(()), Err)
}

/// QEMU's word for a migration that has not ended.
pub(super) async fn under_way(bridge: &Bridge) -> Result<Option<String>, Failure> {
    let migration = ask(bridge).await?;
    Ok(migration.under_way().map(str::to_owned))
}

async fn ask(bridge: &Bridge) -> Result<Migration, qmpbridge::Error> {
    match bridge.supports("query-migrate") {
        true => bridge.run(QueryMigrate).await,
        // a storage daemon has no VM that could go
        false => Ok(Migration::default()),
    }
}

fn why_not(migration: &Migration, status: &str) -> Option<Failure> {
    let failure = match (status, migration.under_way()) {
        ("inmigrate", _) => Failure::new(
            Errno::EBUSY,
            "the VM has not come here yet: this QEMU waits for its migration (inmigrate)",
        )
        .next("do it when the VM runs here"),
        (_, Some(word)) => Failure::new(
            Errno::EBUSY,
            format!(
                "the VM is being migrated ({word}): the QEMU it goes to would not know what was changed"
            ),
        )
        .next("wait until the migration has ended (info migrate), or end it (migrate_cancel)"),
        ("finish-migrate" | "postmigrate" | "colo", None) => Failure::new(
            Errno::EBUSY,
            format!("the VM has gone to another QEMU, and its disks with it ({status})"),
        )
        .next("mount that QEMU's socket; where the VM was only written to a file, let it go on: cont"),
        (_, None) => return None,
    };
    Some(failure)
}

#[cfg(test)]
mod tests {
    use super::why_not;
    use qmpbridge::command::Migration;

    fn refused(word: Option<&str>, status: &str) -> bool {
        let migration = Migration {
            status: word.map(str::to_owned),
        };
        why_not(&migration, status).is_some()
    }

    #[test]
    fn only_a_vm_that_is_here_for_good_is_changed() {
        for word in [None, Some("none"), Some("failed"), Some("cancelled")] {
            assert!(!refused(word, "running"), "{word:?}");
            assert!(!refused(word, "paused"), "{word:?}");
        }
        // it came here, or was saved to a file and goes on
        assert!(!refused(Some("completed"), "running"));
        // a storage daemon
        assert!(!refused(None, ""));
        for word in ["setup", "active", "postcopy-paused", "pre-switchover"] {
            assert!(refused(Some(word), "running"), "{word}");
        }
        // -incoming defer, before anybody has asked for it
        assert!(refused(None, "inmigrate"));
        assert!(refused(Some("completed"), "postmigrate"));
    }
}
