//! `mkdir` and `rmdir` in disks/D/internal: snapshots inside the active layer's own file.

use super::blocking::blocking;
use super::check;
use super::engine::{DiskGuard, Engine};
use super::migration;
use super::quiesce::{Quiesced, Quiescing};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{Disk, InternalRecord};
use qmpbridge::command::{BlockdevSnapshotDeleteInternalSync, BlockdevSnapshotInternalSync};

/// Takes an internal snapshot.
pub(super) async fn take(engine: &Engine, guard: &DiskGuard, name: &str) -> Result<(), Failure> {
    migration::refuse(engine.bridge()?).await?;
    let disk = engine.observe_disk(guard).await?;
    if let Some(why) = &disk.no_snapshots {
        return Err(Failure::new(Errno::EOPNOTSUPP, why.clone()));
    }
    // it would go with the layer that is committed
    check::refuse_if_mixed(&disk.name, disk.layers.last())?;
    let mut quiescing = Quiescing::begin(engine).await?;
    let command = BlockdevSnapshotInternalSync {
        device: device(&disk)?,
        name: name.to_owned(),
    };
    quiescing.freeze(vec![disk.active.path.clone()]).await?;
    let taken = engine.bridge()?.run(command).await;
    let what = format!("disks/{}/internal/{name}", disk.name);
    let quiesced = quiescing.thaw(engine, &what).await;
    taken?;
    if let Err(failure) = write_down(engine, guard, name, &quiesced).await {
        // it is there, and counts as one after a power cut
        tracing::warn!(%failure, "no record of an internal snapshot");
    }
    Ok(())
}

/// What the image's own table has no place for.
async fn write_down(
    engine: &Engine,
    guard: &DiskGuard,
    name: &str,
    quiesced: &Quiesced,
) -> Result<(), Failure> {
    if *quiesced == Quiesced::default() {
        return Ok(());
    }
    let disk = engine.observe_disk(guard).await?;
    let ours = disk.internals.iter().filter(|one| one.layer.is_none());
    let mut records: Vec<InternalRecord> =
        ours.clone().filter_map(|one| one.record.clone()).collect();
    records.sort_by_key(|record| record.time);
    let taken = ours
        .filter(|one| one.tag == name)
        .max_by_key(|one| one.time);
    let Some((taken, time)) = taken.and_then(|taken| Some((taken, taken.nanos()?))) else {
        return Err(Failure::new(Errno::ENOENT, "it is in no table"));
    };
    records.push(quiesced.of_internal(taken.id.clone(), time));
    let path = disk.active.path.clone();
    blocking(move || layer_file::write_internals(&path, records)).await
}

/// Deletes an internal snapshot. Its clusters are used again at once, so nobody may be reading it.
pub(super) async fn delete(engine: &Engine, guard: &DiskGuard, name: &str) -> Result<(), Failure> {
    migration::refuse(engine.bridge()?).await?;
    let disk = engine.observe_disk(guard).await?;
    let internal = disk.internal(name).ok_or_else(|| {
        Failure::new(
            Errno::ENOENT,
            format!("there is no internal snapshot '{name}'"),
        )
        .next("see which there are: ls internal")
    })?;
    if let Some(layer) = internal.layer {
        return Err(Failure::new(Errno::EOPNOTSUPP, format!("'{name}' lies inside the sealed {}, which nobody may write", disk.layers[layer].path.display()))
            .next("it can be removed again once the layer was committed into the active one, or goes with its file"));
    }
    let key = check::internal_of(&disk, internal)?;
    // nobody opens it between this look and QEMU's answer
    let _closed = check::close(engine, key, &format!("'{name}'"))?;
    let command = BlockdevSnapshotDeleteInternalSync {
        device: device(&disk)?,
        // by both: a name may look like another snapshot's id
        id: Some(internal.id.clone()),
        name: Some(internal.tag.clone()),
    };
    engine.bridge()?.run(command).await?;
    Ok(())
}

fn device(disk: &Disk) -> Result<String, Failure> {
    Ok(check::root_of(disk)?.as_str().to_owned())
}
