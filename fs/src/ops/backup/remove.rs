//! `rmdir backups/KIND/N` and `rm bitmaps/N`; and the dirty bitmaps that are done with.

use super::{Making, merge, plan};
use crate::backups::{self, MergeVerb, Place};
use crate::errno::{Errno, Failure};
use crate::model::{Backup, Disk, Manifest};
use crate::ops::Answer;
use crate::ops::blocking::blocking;
use crate::ops::check;
use crate::ops::control;
use crate::ops::engine::{DiskGuard, Engine, Turn, at_work};
use crate::view;
use qmpbridge::Bridge;
use qmpbridge::command::BlockDirtyBitmapRemove;
use std::fmt::Write;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::sync::oneshot;

/// `rmdir disks/D/backups/KIND/N`: ends one that is made, removes one that is there. `answer` is called once
/// that is done, or, where others stand on it, once the job that merges it is accepted.
pub(in crate::ops) async fn delete(engine: Rc<Engine>, disk: &str, id: &str, answer: Answer<()>) {
    let model = engine.current();
    let shown = model.disk(disk).and_then(|disk| find(disk, id).ok());
    if let Some(job) = shown.and_then(Backup::job) {
        let cancelled = control::cancel(&engine, disk, job).await;
        if cancelled.is_ok() {
            engine.hide_backup(disk, id);
            if let Err(failure) = engine.refresh(&[]).await {
                tracing::debug!(%failure, "refresh after a cancel");
            }
        }
        return answer(cancelled);
    }
    // of two at one instant the second waits until the first is at work, and then behind it
    match (engine.turn(disk).await, merge::Removal::new(id)) {
        (Ok(Turn::Now(guard)), Ok(removal)) => {
            merge::run(engine, guard, removal, Some(answer)).await;
        }
        (Ok(Turn::AtWork), _) if engine.removes_backups(disk) => {
            answer(merge::queue(&engine, disk, id));
        }
        (Ok(Turn::AtWork), _) => answer(Err(at_work(disk))),
        (Err(failure), _) | (_, Err(failure)) => answer(Err(failure)),
    }
}

/// The same, until it is accepted.
pub(super) async fn accepted(engine: &Rc<Engine>, disk: &str, id: &str) -> Result<(), Failure> {
    let (told, answer) = oneshot::channel();
    let (engine, disk, id) = (Rc::clone(engine), disk.to_owned(), id.to_owned());
    tokio::task::spawn_local(async move {
        let answer: Answer<()> = Box::new(move |outcome| {
            // who asked waits for it, below
            let _ = told.send(outcome);
        });
        delete(engine, &disk, &id, answer).await;
    });
    answer.await.unwrap_or_else(|_| Err(gone()))
}

/// The dirty bitmap that began with a backup has done its duty.
pub(super) async fn drop_bitmap_of(
    engine: &Engine,
    disk: &str,
    manifest: &Manifest,
) -> Result<(), Failure> {
    match (&manifest.bitmap, engine.bridge()) {
        (Some(bitmap), Ok(bridge)) => drop_bitmap(engine, bridge, disk, bitmap).await,
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

/// Refused while somebody reads a backup.
pub(super) fn refuse_if_read(engine: &Engine, backup: &Backup) -> Result<(), Failure> {
    match backup.layers.last().and_then(|layer| layer.file) {
        None => Ok(()),
        Some(file) => check::refuse_if_read(engine, file, &backup.manifest.name),
    }
}

/// The backups whose files stand on this one's.
pub(super) fn standing_on<'a>(backups: &'a [Backup], id: &str) -> Vec<&'a Backup> {
    let on = |it: &&Backup| {
        let previous = it.manifest.previous.as_ref();
        previous.is_some_and(|previous| previous.id == id)
    };
    backups.iter().filter(on).collect()
}

/// Refused while something else stands on a backup's file than what it is to be merged into (none where it just goes), or while
/// somebody else reads it.
pub(super) fn refuse_if_needed(
    place: &Place,
    name: &str,
    expected: &[PathBuf],
    just_goes: bool,
) -> Result<(), Failure> {
    let standing = backups::standing_on_file(place, name)?;
    if let Some(stranger) = standing.into_iter().find(|path| !expected.contains(path)) {
        return Err(Failure::new(
            Errno::EBUSY,
            format!(
                "{} stands on '{name}', and is no backup that can be merged",
                stranger.display()
            ),
        )
        .next("remove that file if nobody needs it; a backup whose point.json says what is wrong with it, mend first"));
    }
    let file = place.file(name);
    if just_goes && file.exists() && view::read_by_someone(&file)? {
        return Err(
            Failure::new(Errno::EBUSY, format!("somebody reads {}", file.display()))
                .next("see who: lslocks, or fuser -v FILE; then rmdir again"),
        );
    }
    Ok(())
}

/// What `rmdir` of a backup would do, in words.
pub(in crate::ops) fn plan_text(disk: &Disk, backup: &Backup) -> String {
    if backup.job().is_some() {
        return "verb:    job-cancel\ncopies:  nothing\nremoves: what was copied so far\n".into();
    }
    let above: Vec<Backup> = standing_on(&disk.backups, &backup.manifest.id)
        .into_iter()
        .cloned()
        .collect();
    if !above.is_empty() {
        return merge_text(backup, &above);
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

fn merge_text(backup: &Backup, above: &[Backup]) -> String {
    let name = &backup.manifest.name;
    let bytes = |backup: &Backup| backup.layers.last().map_or(0, |layer| layer.allocated_size);
    let others: Vec<&str> = above.iter().map(|it| it.manifest.name.as_str()).collect();
    let others = others.join(", ");
    match merge::choose(backup, above, merge::Look::AtManifests) {
        Ok(plan) => match plan.verb {
            MergeVerb::Stream => format!(
                "verb:    block-stream of {name}.qcow2 into {others}, in a storage daemon of its own\ncopies:  up to {} bytes\nremoves: {name}.qcow2 and {name}.json\nbecause: {others} stands on it, and stays as it is\n",
                bytes(backup).saturating_mul(above.len() as u64)
            ),
            MergeVerb::Commit => format!(
                "verb:    block-commit of {others} into {name}.qcow2, which then is {others}.qcow2, in a storage daemon of its own\ncopies:  up to {} bytes\nremoves: {name}.json\nbecause: {others} stands on it, and stays as it is\n",
                above.iter().map(bytes).sum::<u64>()
            ),
        },
        Err(failure) => format!(
            "refused: {} ({})\nnext:    {}\n",
            failure.message, failure.errno, failure.next
        ),
    }
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
    let of = disk.bitmaps.iter().find(|bitmap| bitmap.tag == tag);
    if of.is_some_and(|bitmap| bitmap.end_mark.is_some()) {
        // first: without it the other one is used no more
        let (node, name) = (node.clone(), plan::end_mark_name(tag));
        bridge.run(BlockDirtyBitmapRemove { node, name }).await?;
    }
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
