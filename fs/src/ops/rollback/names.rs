//! The names of a rollback that was cut short, put right. Knows names, inodes and the journal; no QEMU.

use crate::errno::Failure;
use crate::layer_file::{self, RollbackJournal};
use crate::model::FileId;
use crate::ops::settle;
use std::path::Path;

/// The files of this disk that carry the journal of a rollback of it.
pub(super) fn journals(active: &Path) -> Result<Vec<RollbackJournal>, Failure> {
    let mut found: Vec<RollbackJournal> = Vec::new();
    for path in layer_file::siblings(active)? {
        let journal = layer_file::said_by_sibling(layer_file::read_rollback(&path))?;
        if let Some(journal) = journal.filter(|journal| journal.active == active)
            && !found.contains(&journal)
        {
            found.push(journal);
        }
    }
    Ok(found)
}

/// Takes back the names and marks: D is `file`, as it was. Without `overlay` that name stays.
pub(super) fn undo(
    journal: &RollbackJournal,
    overlay: Option<&Path>,
    file: FileId,
) -> Result<(), Failure> {
    settle::undo_seal(&journal.active, &journal.sealed, overlay, file);
    layer_file::clear_point(&journal.active)?;
    layer_file::clear_rollback(&journal.active)
}

/// What a rollback left on files whose QEMU is gone, before our own daemon opens them.
pub(in crate::ops) fn settle_names(active: &Path, file: FileId) -> Result<(), Failure> {
    if let Some(journal) = layer_file::read_rollback(active)? {
        if !settle::holds_data(&journal.overlay)? {
            return undo(&journal, Some(&journal.overlay), file);
        }
        // somebody's storage daemon wrote into the overlay before D could name it
        layer_file::replace(&journal.overlay, active)?;
    }
    for journal in journals(active)? {
        layer_file::clear_rollback(&journal.sealed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{journals, settle_names};
    use crate::layer_file::{self, GuestDebt, RollbackJournal, fixture};
    use crate::model::PointRecord;
    use crate::sys;
    use std::path::{Path, PathBuf};

    /// Names as a rollback makes them, one after the other.
    struct Names {
        active: PathBuf,
        sealed: PathBuf,
        overlay: PathBuf,
    }

    impl Names {
        fn new(dir: &Path) -> Names {
            let active = dir.join("web1.qcow2");
            std::fs::write(&active, b"old").unwrap();
            let names = Names {
                sealed: layer_file::sealed_path(&active, "rolled-back"),
                overlay: layer_file::alias_path(&active),
                active,
            };
            let file = sys::file_id(&names.active).unwrap();
            let record = PointRecord {
                id: "1".into(),
                name: "rolled-back".into(),
                time: "2026-01-02T03:04:05Z".into(),
                consistency: "crash".into(),
                frozen_ms: None,
                quiesce_error: None,
                inode: file.ino,
                group: None,
            };
            layer_file::write_rollback(&names.active, &names.journal(file.ino)).unwrap();
            layer_file::write_point(&names.active, &record).unwrap();
            names
        }

        fn journal(&self, inode: u64) -> RollbackJournal {
            RollbackJournal {
                version: 1,
                active: self.active.clone(),
                overlay: self.overlay.clone(),
                sealed: self.sealed.clone(),
                onto: "/x/web1.one.qcow2".into(),
                guest: GuestDebt::Nothing,
                inode,
            }
        }
    }

    #[test]
    fn before_d_is_the_overlay_it_is_taken_back() {
        for step in 0..3 {
            let dir = fixture::with_xattrs();
            let names = Names::new(dir.path());
            let file = sys::file_id(&names.active).unwrap();
            if step > 0 {
                layer_file::link_new(&names.active, &names.sealed).unwrap();
            }
            if step > 1 {
                layer_file::create_like(&names.overlay, &names.active).unwrap();
            }
            settle_names(&names.active, file).unwrap();
            assert_eq!(std::fs::read(&names.active).unwrap(), b"old");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{step}");
            assert_eq!(layer_file::read_point(&names.active).unwrap(), None);
            assert_eq!(layer_file::read_rollback(&names.active).unwrap(), None);
        }
    }

    #[test]
    fn after_it_what_was_active_stays_a_point() {
        let dir = fixture::with_xattrs();
        let names = Names::new(dir.path());
        layer_file::link_new(&names.active, &names.sealed).unwrap();
        std::fs::write(&names.overlay, b"new").unwrap();
        layer_file::replace(&names.overlay, &names.active).unwrap();
        assert_eq!(journals(&names.active).unwrap().len(), 1);
        for _twice in 0..2 {
            settle_names(&names.active, sys::file_id(&names.active).unwrap()).unwrap();
            assert_eq!(std::fs::read(&names.active).unwrap(), b"new");
            assert_eq!(std::fs::read(&names.sealed).unwrap(), b"old");
            assert!(layer_file::read_point(&names.sealed).unwrap().is_some());
            assert!(journals(&names.active).unwrap().is_empty());
        }
    }
}
