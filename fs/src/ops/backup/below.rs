//! What a backup of the active layer alone stands on: a full backup of the layer below, made once and stood on as long as
//! that layer is as it was. A sealed layer waits, so it is copied when the instant's own copy is complete, by a job of the
//! same id: the journal's stage says which of the two a job copies. It holds the disk all the time, so nothing is merged.

use super::plan::Beneath;
use super::prepare::data_in;
use super::room::Room;
use super::target::Source;
use super::{Making, instant, target};
use crate::backups::{self, Journal, Place, Stage, Unfinished};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{BackupKind, Copied, Disk, Finished, Format, Layer, LayerState, Manifest};
use crate::ops::blocking::blocking;
use crate::ops::engine::{Cancelled, Engine};
use crate::render;
use crate::sys;
use crate::tree::{first_free, fit_name};
use qmpbridge::command::Sync;
use qmpbridge::{Bridge, JobHandle};
use qmpfs_qcow2::Header;
use std::path::Path;

/// What the active layer of a disk stands on now.
pub(super) async fn beneath(disk: &Disk) -> Result<Beneath, Failure> {
    match disk.layers.last() {
        None => Ok(Beneath::Nothing),
        Some(layer) if layer.leaving => Ok(Beneath::HalfMerged),
        Some(_) => Ok(Beneath::Layers(state(disk).await?)),
    }
}

/// How what a disk stands on is known again: the layer below, and those of others below that one. What is ours there is written by
/// merges of ours alone, which change nothing of what is above.
async fn state(disk: &Disk) -> Result<Vec<LayerState>, Failure> {
    let layers = disk.layers.iter().rev().enumerate();
    let layers = layers.filter(|(place, layer)| *place == 0 || layer.record.is_none());
    let layers: Vec<Layer> = layers.map(|(_, layer)| layer.clone()).collect();
    blocking(move || Ok(layers.iter().map(state_of).collect())).await
}

fn state_of(layer: &Layer) -> LayerState {
    let point = layer.record.as_ref().map(|record| record.id.clone());
    LayerState {
        point: point.unwrap_or_default(),
        inode: layer.file.map_or(0, |file| file.ino),
        file: telling_file(&layer.path, &layer.format),
    }
}

/// A file whose length and time tell whether what it shows was changed: no other file holds a part of it.
fn telling_file(path: &Path, format: &Format) -> Option<Finished> {
    let alone = match format {
        Format::Raw => path.is_file(),
        Format::Qcow2 => {
            let header = Header::read(&sys::open_for_reading(path).ok()?).ok()?;
            !header.features.data_file()
        }
        Format::Other(_) => false,
    };
    alone.then(|| backups::finished(path)).flatten()
}

/// The manifest of the copy that is to be made beside a backup: of the layer's own instant, with its name if that is free.
pub(super) async fn manifest(
    making: &Manifest,
    place: &Place,
    disk: &Disk,
    layers: Vec<LayerState>,
) -> Result<Manifest, Failure> {
    let below = below_of(disk)?;
    let stem = below.path.file_stem().unwrap_or_default();
    let wanted = match below.point_name() {
        Some(name) => name.to_owned(),
        None => fit_name(&stem.to_string_lossy()),
    };
    let (place, other) = (place.clone(), making.name.clone());
    let taken = move |name: &str| name == other || place.is_free(name).is_ok_and(|free| !free);
    let name = blocking(move || Ok(first_free(&wanted, '-', taken))).await?;
    let record = below.record.as_ref();
    let last_written = || below.modified.map(render::rfc3339);
    let time = record
        .map(|record| record.time.clone())
        .or_else(last_written);
    Ok(Manifest {
        kind: BackupKind::Full,
        name,
        id: layer_file::random_hex(),
        time: time.unwrap_or_else(render::now),
        copied: Copied::Full,
        layers,
        bitmap: None,
        end_mark: None,
        virtual_size: below.virtual_size,
        consistency: record
            .map_or("unknown", |record| &record.consistency)
            .into(),
        frozen_ms: record.and_then(|record| record.frozen_ms),
        quiesce_error: record.and_then(|record| record.quiesce_error.clone()),
        group: None,
        ..making.clone()
    })
}

fn below_of(disk: &Disk) -> Result<&Layer, Failure> {
    disk.layers.last().ok_or_else(changed)
}

/// Makes the file for it, and takes its room, before the instant.
pub(super) async fn prepare(
    bridge: &Bridge,
    making: &Making,
    disk: &Disk,
) -> Result<Option<Room>, Failure> {
    let Some(Unfinished { id, path }) = making.journal.file_below(&making.place) else {
        return Ok(None);
    };
    let (place, made, like) = (making.place.clone(), path.clone(), disk.active_path.clone());
    blocking(move || place.create(&made, &like).map(drop)).await?;
    let size = below_of(disk)?.virtual_size;
    target::open(bridge, &path, &id, size, None, Source::Disk).await?;
    let data = data_in(disk.layers.iter());
    blocking(move || Room::take(&path, data, size))
        .await
        .map(Some)
}

/// Whether all is ready for the second job, of which nobody knows any more: the QEMU that had the first one is still there.
pub(super) async fn is_prepared(
    engine: &Engine,
    bridge: &Bridge,
    place: &Place,
    journal: &Journal,
) -> Result<bool, Failure> {
    match (journal.stage, journal.file_below(place)) {
        (Stage::Below, Some(Unfinished { id, path })) => {
            Ok(target::node_on(engine, bridge, &path, &id).await?.is_some())
        }
        _ => Ok(false),
    }
}

/// The backup's own file is complete: begins to copy what it stands on, if that is not there.
pub(super) async fn begin(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<Option<JobHandle>, Failure> {
    let files = making.journal.file_below(&making.place);
    let Some((Unfinished { id, path }, below)) = files.zip(making.journal.below.clone()) else {
        return Ok(None);
    };
    let disk = engine.observe_disk(&making.guard).await?;
    let source = below_of(&disk)?.node.clone().ok_or_else(changed)?;
    refuse_if_changed(&disk, &below).await?;
    let own = making.journal.own(&making.place);
    target::put_away(engine, bridge, &own.path, &own.id).await?;
    making.room = match making.below_room.take() {
        Some(room) => Some(room),
        // of a daemon that was killed: what there is must do until the first look
        None => {
            let (path, size) = (path.clone(), below.virtual_size);
            blocking(move || Ok(Room::take(&path, 0, size).ok())).await?
        }
    };
    let name = making.guard.name().to_owned();
    if engine.cancelled(&name) == Cancelled::Yes {
        return Err(Failure::new(Errno::EIO, "cancelled"));
    }
    // first: a job of that id that is there from now on is the second one
    bridge.dismiss_job(&making.job).await?;
    making.journal.stage = Stage::Below;
    let (journal, place) = (making.journal.clone(), making.place.clone());
    blocking(move || journal.write(&place)).await?;
    engine.log.note(&format!(
        "disk '{}': what '{}' stands on is copied now, as the full backup '{}'",
        disk.name, making.journal.manifest.name, below.name
    ));
    let target = target::node_on(engine, bridge, &path, &id).await?;
    let target = target.ok_or_else(|| not_open(&path))?;
    let room = making.room.as_ref();
    let mut backup = instant::backup(engine, &making.job, room, (source, target), Sync::Full);
    // what was said of the first is meant for both
    let limits = [engine.backup_speed(&name), room.and_then(Room::speed_limit)];
    backup.speed = limits.into_iter().flatten().min();
    Ok(Some(bridge.start_job(making.job.clone(), backup).await?))
}

/// The copy is complete, too, and in its file.
pub(super) async fn put_away(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<(), Failure> {
    let files = making.journal.file_below(&making.place);
    let Some((Unfinished { id, path }, below)) = files.zip(making.journal.below.clone()) else {
        return Ok(());
    };
    making.room = None;
    refuse_if_changed(&engine.observe_disk(&making.guard).await?, &below).await?;
    target::put_away(engine, bridge, &path, &id).await
}

/// The second job failed, or was cancelled: nobody begins it again.
pub(super) async fn abandon(engine: &Engine, bridge: &Bridge, making: &Making) {
    if let Some(Unfinished { id, path }) = making.journal.file_below(&making.place)
        && let Err(failure) = target::release(engine, bridge, &path, &id).await
    {
        // what is left goes with the rest
        tracing::debug!(%failure, "a target is still open");
    }
}

/// The backup holds what the active layer had on these layers, and on no others.
async fn refuse_if_changed(disk: &Disk, copy: &Manifest) -> Result<(), Failure> {
    match state(disk).await? == copy.layers {
        true => Ok(()),
        false => Err(changed()),
    }
}

fn changed() -> Failure {
    Failure::new(
        Errno::EIO,
        "what the active layer stands on was changed while the backup was made",
    )
    .next("see who else changes the disk's files, then make the backup again")
}

fn not_open(path: &Path) -> Failure {
    Failure::new(
        Errno::EIO,
        format!("QEMU does not have {} open any more", path.display()),
    )
    .next("make the backup again")
}
