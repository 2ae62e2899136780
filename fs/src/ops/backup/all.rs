//! `mkdir` and `rmdir` in backups/KIND/ at the top of the mount: one instant of all disks. It knows who
//! takes part, and that none is removed while one must stay.

use super::{Asked, begin, follow, mirror, remove};
use crate::errno::Failure;
use crate::intent;
use crate::layer_file;
use crate::model::{Backup, BackupKind, Disk, GroupRecord};
use crate::ops::engine::{Cancelled, Engine};
use crate::ops::{Answer, check, control};
use crate::tree::{GroupKey, GroupKind, find_group};
use std::rc::Rc;

/// Makes a backup of all disks that can have one. `answer` is called once the instant is fixed, or nothing
/// came of it.
pub(in crate::ops) async fn take(
    engine: Rc<Engine>,
    kind: BackupKind,
    name: &str,
    answer: Answer<()>,
) {
    match begin_all(&engine, kind, name).await {
        Ok(begun) => {
            answer(Ok(()));
            for (making, job) in begun {
                tokio::task::spawn_local(follow::run(Rc::clone(&engine), making, Some(job)));
            }
        }
        Err(failure) => answer(Err(failure)),
    }
}

async fn begin_all(
    engine: &Engine,
    kind: BackupKind,
    name: &str,
) -> Result<Vec<(super::Making, qmpbridge::JobHandle)>, Failure> {
    let (able, _) = check::parted(engine.observe().await?, check::root_of);
    let wanted = check::names(&able);
    let guards = engine.hold_all(&wanted).await?;
    let (able, unable) = check::parted(engine.observe().await?, check::root_of);
    if check::names(&able) != wanted {
        return Err(check::changed());
    }
    if able.is_empty() {
        return Err(intent::none_can(&unable));
    }
    if kind == BackupKind::Mirror {
        mirror::suits_several(engine.bridge()?, able.len())?;
    }
    let disks: Vec<_> = guards
        .into_iter()
        .map(|guard| (guard, layer_file::random_hex()))
        .collect();
    let members = disks
        .iter()
        .map(|(guard, id)| (guard.name().to_owned(), id.clone()));
    let group = GroupRecord {
        id: layer_file::random_hex(),
        members: members.collect(),
        missing: unable,
    };
    let asked = Asked {
        kind,
        name,
        group: Some(group),
    };
    begin(engine, disks, &asked).await
}

/// Removes what is left of a backup of all disks; nothing of it while one disk's must stay.
pub(in crate::ops) async fn delete(
    engine: &Rc<Engine>,
    kind: BackupKind,
    id: &str,
) -> Result<(), Failure> {
    let model = engine.current();
    let key = GroupKey {
        kind: GroupKind::Backup(kind),
        id: id.to_owned(),
    };
    let group = find_group(&model, &key).ok_or_else(remove::gone)?;
    let mut members: Vec<(&Disk, &Backup)> = Vec::new();
    for (disk, record) in &group.members {
        let backup = remove::find(disk, &record.id)?;
        if backup.job().is_none() {
            let refused = remove::refuse_if_read(engine, backup);
            refused.map_err(|failure| failure.of_disk(&disk.name))?;
        }
        members.push((disk, backup));
    }
    // one job that is cancelled ends the others: that is no failure of theirs
    for (disk, backup) in &members {
        cancelled(engine, disk, backup.job());
    }
    let mut outcome = Ok(());
    for (disk, backup) in members {
        let deleted = match backup.job() {
            Some(job) => cancel(engine, disk, backup, job).await,
            None => remove::accepted(engine, &disk.name, &backup.manifest.id).await,
        };
        outcome = outcome.and(deleted.map_err(|failure| failure.of_disk(&disk.name)));
    }
    if let Err(failure) = engine.refresh(&[]).await {
        tracing::debug!(%failure, "refresh after the removal of a backup of all disks");
    }
    outcome
}

/// That a job ends is asked for; one that has failed already is not what is at work on the disk.
fn cancelled(engine: &Engine, disk: &Disk, job: Option<&str>) {
    let job = job.and_then(|job| engine.job(&disk.name, job));
    if job.is_some_and(|job| !job.ended()) {
        engine.set_cancelled(&disk.name, Cancelled::Yes);
    }
}

/// Ends a job, unless it ends with that of another disk already.
async fn cancel(engine: &Engine, disk: &Disk, backup: &Backup, job: &str) -> Result<(), Failure> {
    let told = control::cancel(engine, &disk.name, job).await;
    cancelled(engine, disk, Some(job));
    engine.hide_backup(&disk.name, &backup.manifest.id);
    match told {
        Err(failure) if failure.outcome_known() => {
            tracing::debug!(%failure, "a job that ends with another one");
            Ok(())
        }
        told => told,
    }
}
