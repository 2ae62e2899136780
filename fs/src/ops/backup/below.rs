//! What a backup of the active layer alone stands on: a full backup of the layer below, made once and stood on as long as
//! that layer is as it was. A sealed layer waits, so it is copied when the instant's own copy is complete, by a job of the
//! same id: the journal's stage says which of the two a job copies. It holds the disk all the time, so nothing is merged.

use super::plan::Beneath;
use super::room::Room;
use super::{Making, instant, target};
use crate::backups::{self, Journal, Stage, Unfinished};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{BackupKind, Copied, Disk, Layer, LayerState, Manifest};
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::render;
use crate::tree::{first_free, fit_name};
use qmpbridge::command::Sync;
use qmpbridge::{Bridge, JobHandle};

/// What the active layer of a disk stands on now.
pub(super) async fn beneath(disk: &Disk) -> Result<Beneath, Failure> {
    match disk.layers.last() {
        None => Ok(Beneath::Nothing),
        Some(layer) => Ok(Beneath::Layer(state(layer).await?)),
    }
}

/// How a layer is known again. Nothing tells of a block device.
async fn state(layer: &Layer) -> Result<Option<LayerState>, Failure> {
    let (path, file) = (layer.path.clone(), layer.file);
    let finished = blocking(move || Ok(path.is_file().then(|| backups::finished(&path)))).await?;
    let point = layer.record.as_ref().map(|record| record.id.clone());
    Ok(finished
        .flatten()
        .zip(file)
        .map(|(finished, file)| LayerState {
            point: point.unwrap_or_default(),
            inode: file.ino,
            file: finished,
        }))
}

/// The manifest of the copy that is to be made beside a backup: of the layer's own instant, with its name if that is free.
pub(super) async fn manifest(
    making: &Manifest,
    place: &backups::Place,
    disk: &Disk,
    layer: Option<LayerState>,
) -> Result<Manifest, Failure> {
    let below = below_of(disk)?;
    let stem = below.path.file_stem().unwrap_or_default();
    let wanted = match below.point_name() {
        Some(name) => name.to_owned(),
        None => fit_name(&stem.to_string_lossy()),
    };
    let (place, other) = (place.clone(), making.name.clone());
    let taken = move |name: &str| name == other || !place.is_free(name);
    let name = blocking(move || Ok(first_free(&wanted, '-', taken))).await?;
    let record = below.record.clone();
    let (recorded, last_written) = (
        record.as_ref().map(|record| record.time.clone()),
        below.modified.map(render::rfc3339),
    );
    Ok(Manifest {
        kind: BackupKind::Full,
        name,
        id: layer_file::random_hex(),
        time: recorded.or(last_written).unwrap_or_else(render::now),
        copied: Copied::Full,
        layer,
        bitmap: None,
        end_mark: None,
        virtual_size: below.virtual_size,
        consistency: match &record {
            Some(record) => record.consistency.clone(),
            None => "unknown".into(),
        },
        frozen_ms: record.as_ref().and_then(|record| record.frozen_ms),
        quiesce_error: record.and_then(|record| record.quiesce_error),
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
    let Some((Unfinished { id, path }, below)) = file_of(making) else {
        return Ok(None);
    };
    let (place, made, like) = (making.place.clone(), path.clone(), disk.active_path.clone());
    blocking(move || place.create(&made, &like).map(drop)).await?;
    let size = below.virtual_size;
    target::open(bridge, &path, &id, size, None).await?;
    let layers: u64 = disk.layers.iter().fold(0, |sum, layer| {
        sum.saturating_add(match layer.format.is_read_here() {
            true => layer.allocated_size,
            false => layer.virtual_size,
        })
    });
    blocking(move || Room::take(&path, layers, size))
        .await
        .map(Some)
}

/// Its file, if it is to be made with this one.
fn file_of(making: &Making) -> Option<(Unfinished, &Manifest)> {
    let below = making.journal.below.as_ref()?;
    let path = making.place.unfinished(&below.name, &below.id);
    let id = below.id.clone();
    Some((Unfinished { id, path }, below))
}

/// Whether all is ready for the second job, of which nobody knows any more: the QEMU that had the first one is still there.
pub(super) async fn is_prepared(
    engine: &Engine,
    bridge: &Bridge,
    making: &Making,
) -> Result<bool, Failure> {
    match file_of(making) {
        Some((Unfinished { id, path }, _)) if making.journal.stage == Stage::Below => {
            target::is_open(engine, bridge, &path, &id).await
        }
        Some(_) | None => Ok(false),
    }
}

/// The backup's own file is complete: begins to copy what it stands on, if that is not there.
pub(super) async fn begin(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<Option<JobHandle>, Failure> {
    let Some((Unfinished { id, path }, below)) = file_of(making) else {
        return Ok(None);
    };
    let (name, state, size) = (below.name.clone(), below.layer.clone(), below.virtual_size);
    let disk = engine.observe_disk(&making.guard).await?;
    let source = below_of(&disk)?.node.clone().ok_or_else(changed)?;
    refuse_if_changed(&disk, state).await?;
    let own = making.unfinished();
    target::put_away(engine, bridge, &own.path, &own.id).await?;
    making.room = match making.below_room.take() {
        Some(room) => Some(room),
        // of a daemon that was killed: what there is must do until the first look
        None => {
            let path = path.clone();
            blocking(move || Ok(Room::take(&path, 0, size).ok())).await?
        }
    };
    // first: a job of that id that is there from now on is the second one
    bridge.dismiss_job(&making.job).await?;
    making.journal.stage = Stage::Below;
    let (journal, place) = (making.journal.clone(), making.place.clone());
    blocking(move || journal.write(&place)).await?;
    engine.log.note(&format!(
        "disk '{}': what '{}' stands on is copied now, as the full backup '{name}'",
        disk.name, making.journal.manifest.name
    ));
    let target = target::node_on(engine, bridge, &path, &id).await?;
    let room = making.room.as_ref();
    let backup = instant::backup(engine, &making.job, room, (source, target), Sync::Full);
    Ok(Some(bridge.start_job(making.job.clone(), backup).await?))
}

/// It is complete, too, and gets its name.
pub(super) async fn finish(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<(), Failure> {
    let Some((Unfinished { id, path }, below)) = file_of(making) else {
        return Ok(());
    };
    let below = below.clone();
    making.room = None;
    let disk = engine.observe_disk(&making.guard).await?;
    refuse_if_changed(&disk, below.layer.clone()).await?;
    target::put_away(engine, bridge, &path, &id).await?;
    target::release(engine, bridge, &path, &id).await?;
    let (mut journal, place) = (
        Journal::new(making.job.as_str(), below),
        making.place.clone(),
    );
    blocking(move || journal.finish(&place)).await?;
    engine.backups_changed(&disk.name);
    Ok(())
}

/// The backup holds what the active layer had on this layer, and on no other.
async fn refuse_if_changed(disk: &Disk, was: Option<LayerState>) -> Result<(), Failure> {
    match (was, state(below_of(disk)?).await?) {
        (Some(was), now) if now.as_ref() != Some(&was) => Err(changed()),
        (Some(_) | None, _) => Ok(()),
    }
}

fn changed() -> Failure {
    Failure::new(
        Errno::EIO,
        "the layer below the active one was changed while the backup was made",
    )
    .next("see who else changes the disk's files, then make the backup again")
}
