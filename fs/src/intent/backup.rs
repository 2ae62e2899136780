//! What verbs mean in backups/ and bitmaps/. Pure.

use super::{Effect, Intent, Verbs, allowed, connected, fit, no_verb};
use crate::errno::{Errno, Failure};
use crate::model::{BackupKind, Disk, Model};
use crate::tree::{NodeKey, exists};

/// What `mkdir disks/DISK/backups/KIND/name` means.
pub(super) fn mkdir(
    model: &Model,
    verbs: Verbs,
    disk: &Disk,
    kind: BackupKind,
    name: &str,
) -> Result<Intent, Failure> {
    allowed(verbs, Effect::Makes)?;
    fit(name)?;
    with_a_place(verbs)?;
    if is_taken(disk, name) {
        return Err(Failure::new(
            Errno::EEXIST,
            format!("there is a backup '{name}' of disk '{}'", disk.name),
        )
        .next("choose another name: backups of all kinds lie in one directory"));
    }
    connected(model)?;
    Ok(Intent::TakeBackup {
        disk: disk.name.clone(),
        kind,
        name: name.to_owned(),
    })
}

/// Without a backup directory there are no backups.
pub(super) fn with_a_place(verbs: Verbs) -> Result<(), Failure> {
    if verbs.backups {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EPERM,
        "no directory for backups was named at the mount",
    )
    .next("mount with --backup-dir DIR"))
}

/// Whether a disk has a backup of that name; one that failed gives its name up.
pub(super) fn is_taken(disk: &Disk, name: &str) -> bool {
    let backup = disk.backup(name);
    backup.is_some_and(|backup| !has_failed(disk, backup.job()))
}

fn has_failed(disk: &Disk, job: Option<&str>) -> bool {
    let mut jobs = disk.jobs.iter();
    job.is_some_and(|id| jobs.any(|job| job.id == id && job.ended()))
}

/// What `rm` of the file `key` means.
pub fn unlink(model: &Model, verbs: Verbs, key: &NodeKey) -> Result<Intent, Failure> {
    let NodeKey::Bitmap(disk, name) = key else {
        return Err(no_verb("rm"));
    };
    if !exists(model, key) {
        return Err(Failure::new(Errno::ENOENT, "there is no such bitmap"));
    }
    allowed(verbs, Effect::Destroys)?;
    connected(model)?;
    Ok(Intent::DeleteBitmap {
        disk: disk.clone(),
        name: name.clone(),
    })
}
