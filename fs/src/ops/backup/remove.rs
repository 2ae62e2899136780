//! `rmdir backups/KIND/N` and `rm bitmaps/N`; and the dirty bitmaps that are done with. A backup that
//! others stand on stays.

use super::Making;
use crate::backups::{self, Journal};
use crate::errno::{Errno, Failure};
use crate::model::{Backup, Disk};
use crate::ops::blocking::blocking;
use crate::ops::check;
use crate::ops::control;
use crate::ops::engine::{DiskGuard, Engine};
use crate::ops::shelf;
use qmpbridge::Bridge;
use qmpbridge::command::BlockDirtyBitmapRemove;
use std::fmt::Write;

/// `rmdir disks/D/backups/KIND/N`: ends one that is made, removes one that is there.
pub(in crate::ops) async fn delete(engine: &Engine, disk: &str, id: &str) -> Result<(), Failure> {
    let model = engine.current();
    let shown = model.disk(disk).and_then(|disk| find(disk, id).ok());
    if let Some(job) = shown.and_then(Backup::job) {
        control::cancel(engine, disk, job).await?;
        engine.hide_backup(disk, id);
        if let Err(failure) = engine.refresh(&[]).await {
            tracing::debug!(%failure, "refresh after a cancel");
        }
        return Ok(());
    }
    let guard = engine.hold(disk).await?;
    let outcome = remove(engine, &guard, id).await;
    engine.backups_changed(disk);
    if let Err(failure) = engine.refresh(&[&guard]).await {
        tracing::debug!(%failure, "refresh after the removal of a backup");
    }
    outcome
}

async fn remove(engine: &Engine, guard: &DiskGuard, id: &str) -> Result<(), Failure> {
    let place = engine.place_of(guard.name()).await?;
    let _claim = shelf::claim(engine, &place)?;
    let looked_at = place.clone();
    let listing = blocking(move || Ok(backups::list(&looked_at))).await?;
    let backup = listing.backups.iter().find(|it| it.manifest.id == id);
    let backup = backup.ok_or_else(gone)?;
    not_stood_on(&listing.backups, backup)?;
    engine.digests.stop(guard.name()).await;
    // nobody opens it between this look and its end
    let file = backup.layers.last().and_then(|layer| layer.file);
    let _closed = match file {
        None => None,
        Some(file) => {
            let point = format!("'{}'", backup.manifest.name);
            Some(check::close(engine, check::state_of(file), &point)?)
        }
    };
    let journal = Journal::new("", backup.manifest.clone());
    blocking(move || journal.remove_backup(&place)).await?;
    match (&backup.manifest.bitmap, engine.bridge()) {
        (Some(bitmap), Ok(bridge)) => drop_bitmap(engine, bridge, guard.name(), bitmap).await,
        (Some(_) | None, _) => Ok(()),
    }
}

pub(super) fn find<'a>(disk: &'a Disk, id: &str) -> Result<&'a Backup, Failure> {
    let mut backups = disk.backups.iter();
    backups.find(|it| it.manifest.id == id).ok_or_else(gone)
}

pub(super) fn gone() -> Failure {
    Failure::new(Errno::ENOENT, "the backup is gone").next("see which there are: ls backups/*")
}

/// The backups whose files stand on this one's.
fn standing_on<'a>(backups: &'a [Backup], id: &str) -> Vec<&'a Backup> {
    let on = |it: &&Backup| {
        let previous = it.manifest.previous.as_ref();
        previous.is_some_and(|previous| previous.id == id)
    };
    backups.iter().filter(on).collect()
}

pub(super) fn not_stood_on(backups: &[Backup], backup: &Backup) -> Result<(), Failure> {
    let above = standing_on(backups, &backup.manifest.id);
    let Some(first) = above.first() else {
        return Ok(());
    };
    let names: Vec<&str> = above.iter().map(|it| it.manifest.name.as_str()).collect();
    Err(Failure::new(
        Errno::EBUSY,
        format!(
            "the backup {} stands on '{}'",
            names.join(", "),
            backup.manifest.name
        ),
    )
    .next(format!(
        "remove {} first: a chain of backups goes from its end",
        first.manifest.name
    )))
}

/// What `rmdir` of a backup would do, in words.
pub(in crate::ops) fn plan_text(disk: &Disk, backup: &Backup) -> String {
    if backup.job().is_some() {
        return "verb:    job-cancel\ncopies:  nothing\nremoves: what was copied so far\n".into();
    }
    if let Err(failure) = not_stood_on(&disk.backups, backup) {
        return format!(
            "refused: {} ({})\nnext:    {}\n",
            failure.message, failure.errno, failure.next
        );
    }
    let mut text = format!(
        "verb:    unlink\ncopies:  nothing\nremoves: {0}.qcow2 and {0}.json\n",
        backup.manifest.name
    );
    let bitmap = backup.manifest.bitmap.as_deref();
    if let Some(bitmap) = bitmap.filter(|tag| disk.bitmaps.iter().any(|it| it.tag == **tag)) {
        let _ = writeln!(
            text,
            "bitmap:  {bitmap} goes too; the next incremental backup copies the whole disk"
        );
    }
    text.push_str("because: no other backup stands on it\n");
    text
}

/// `rm disks/D/bitmaps/N`
pub(in crate::ops) async fn delete_bitmap(
    engine: &Engine,
    guard: &DiskGuard,
    name: &str,
) -> Result<(), Failure> {
    let disk = engine.observe_disk(guard).await?;
    let bitmap = disk.bitmaps.iter().find(|bitmap| bitmap.name == name);
    let bitmap = bitmap
        .ok_or_else(|| Failure::new(Errno::ENOENT, format!("there is no dirty bitmap '{name}'")))?;
    if bitmap.busy {
        return Err(Failure::new(
            Errno::EBUSY,
            format!("a job uses the dirty bitmap '{name}'"),
        )
        .next("wait for it: cat wait"));
    }
    drop_one(engine.bridge()?, &disk, &bitmap.tag).await
}

/// Removes a bitmap of the active layer, if it has it.
pub(super) async fn drop_bitmap(
    engine: &Engine,
    bridge: &Bridge,
    disk: &str,
    tag: &str,
) -> Result<(), Failure> {
    let disk = engine.observe_again(disk).await?;
    if disk.bitmaps.iter().any(|bitmap| bitmap.tag == tag) {
        drop_one(bridge, &disk, tag).await?;
    }
    Ok(())
}

async fn drop_one(bridge: &Bridge, disk: &Disk, tag: &str) -> Result<(), Failure> {
    let Some(node) = disk.root.clone() else {
        return Ok(());
    };
    let name = tag.to_owned();
    bridge.run(BlockDirtyBitmapRemove { node, name }).await?;
    Ok(())
}

/// The bitmaps of the other backups in the directory go once a newer backup is there.
pub(super) async fn drop_older_bitmaps(
    engine: &Engine,
    bridge: &Bridge,
    making: &Making,
) -> Result<(), Failure> {
    let own = &making.journal.manifest.bitmap;
    if own.is_none() {
        return Ok(());
    }
    let place = making.place.clone();
    let listing = blocking(move || Ok(backups::list(&place))).await?;
    let disk = engine.observe_again(making.guard.name()).await?;
    if !disk.bitmaps.iter().any(|it| Some(&it.tag) == own.as_ref()) {
        return Ok(());
    }
    for backup in &listing.backups {
        let tag = backup
            .manifest
            .bitmap
            .as_ref()
            .filter(|tag| Some(*tag) != own.as_ref());
        if let Some(tag) = tag.filter(|tag| disk.bitmaps.iter().any(|it| it.tag == **tag)) {
            drop_one(bridge, &disk, tag).await?;
        }
    }
    Ok(())
}
