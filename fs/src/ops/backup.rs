//! `mkdir disks/D/backups/KIND/N`: the disk as of one instant, copied into the backup directory by
//! QEMU's `blockdev-backup`, with a dirty bitmap that begins at the same instant. The call returns
//! when the instant is fixed and the job runs; the rest holds the disk and is what `recover` takes up
//! after a kill. Files, journal and names are `backups`' business; `plan` decides what is copied.

pub(super) mod bitmaps;
mod follow;
mod plan;
mod recover;
mod remove;
mod room;
mod target;

pub(super) use recover::settle;
pub(super) use remove::{delete, delete_bitmap, plan_text};

use super::Answer;
use super::blocking::blocking;
use super::check;
use super::engine::{DiskGuard, Engine};
use super::quiesce::Quiescing;
use crate::backups::{self, Journal, Place};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{
    Backup, BackupKind, BackupStage, Copied, Disk, Format, Job, Manifest, PointRecord,
};
use plan::Plan;
use qmpbridge::command::{
    BackupPerf, BitmapMode, BlockDirtyBitmapAdd, BlockdevBackup, OnError, Sync, TransactionAction,
};
use qmpbridge::{Bridge, JobHandle, JobId, Node, NodeName};
use room::Room;
use std::rc::Rc;

/// What a backup needs of QEMU.
pub(super) const NEEDS: [&str; 4] = [
    "blockdev-backup",
    "blockdev-create",
    "block-dirty-bitmap-add",
    "transaction",
];

/// A backup that is made: one disk's part of it.
pub(super) struct Making {
    guard: DiskGuard,
    place: Place,
    journal: Journal,
    job: JobId,
    room: Option<Room>,
}

/// What is ready for its instant.
struct Prepared {
    disk: Disk,
    root: NodeName,
    target: NodeName,
    plan: Plan,
    /// Whether the bitmap can be stored in the image.
    bitmap: Option<Persistence>,
    making: Making,
}

/// Whether a dirty bitmap outlives QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Persistence {
    Stored,
    InMemory,
}

/// Makes a backup. `answer` is called once the instant is fixed, or nothing came of it.
pub(super) async fn take(
    engine: Rc<Engine>,
    disk: &str,
    kind: BackupKind,
    name: &str,
    answer: Answer<()>,
) {
    match begin(&engine, disk, kind, name).await {
        Ok((making, job)) => {
            answer(Ok(()));
            follow::run(engine, making, job).await;
        }
        Err(failure) => answer(Err(failure)),
    }
}

async fn begin(
    engine: &Engine,
    disk: &str,
    kind: BackupKind,
    name: &str,
) -> Result<(Making, JobHandle), Failure> {
    let guard = engine.hold(disk).await?;
    let bridge = engine.bridge()?;
    let quiescing = Quiescing::begin(engine).await?;
    let prepared = prepare(engine, bridge, guard, kind, name).await?;
    let id = prepared.making.job.clone();
    engine.show_backup(&prepared.making.guard, prepared.making.shown());
    engine.announce(&prepared.making.guard, prepared.making.entry("created"));
    // its first events come before the answer
    let handle = bridge.expect_job(id.clone());
    match instant(engine, bridge, prepared, quiescing).await {
        Ok(making) => {
            if let Err(failure) = engine.refresh(&[&making.guard]).await {
                tracing::debug!(%failure, "refresh after the instant of a backup");
            }
            Ok((making, handle))
        }
        Err((making, failure)) => {
            let disk = making.guard.name().to_owned();
            engine.hide_backup(&disk, &making.journal.manifest.id);
            if failure.outcome_known() {
                undo(engine, bridge, &making).await;
            }
            engine.end_job(&disk, id.as_str(), None);
            engine.rest(&making.guard);
            if !failure.outcome_known() {
                engine.settle_later(&disk);
            }
            Err(failure)
        }
    }
}

/// All that can be done before the instant. A failure leaves nothing behind.
async fn prepare(
    engine: &Engine,
    bridge: &Bridge,
    guard: DiskGuard,
    kind: BackupKind,
    name: &str,
) -> Result<Prepared, Failure> {
    for needed in NEEDS {
        if !bridge.supports(needed) {
            return Err(qmpbridge::Error::TooOld { needs: needed }.into());
        }
    }
    let disk = engine.observe_disk(&guard).await?;
    let root = check::root_of(&disk)?;
    let bitmap = persistence(bridge, &root).await?;
    let place = engine.place_of(guard.name()).await?;
    let size = disk.active.virtual_size;
    let (looked_at, like, wanted) = (place.clone(), disk.active_path.clone(), name.to_owned());
    let listing = blocking(move || {
        looked_at.make(&like)?;
        if !looked_at.is_free(&wanted) {
            return Err(Failure::new(
                Errno::EEXIST,
                format!(
                    "{} exists, or is on its way",
                    looked_at.file(&wanted).display()
                ),
            )
            .next("choose another name"));
        }
        Ok(backups::list(&looked_at))
    })
    .await?;
    let plan = plan::choose(kind, &listing.backups, &disk.bitmaps, size);
    let id = layer_file::random_hex();
    let job = JobId::new(format!("qmpfs-backup-{id}"))
        .map_err(|error| Failure::new(Errno::EIO, error.to_string()))?;
    let manifest = Manifest {
        version: 1,
        kind,
        name: name.to_owned(),
        vm: engine.vm_name().await?,
        disk: disk.name.clone(),
        time: crate::render::now(),
        copied: plan.copied,
        why_full: plan.why_full.clone(),
        previous: plan.previous.clone(),
        bitmap: bitmap.map(|_| plan::bitmap_name(&id)),
        virtual_size: size,
        file: None,
        digest: None,
        consistency: "crash".into(),
        frozen_ms: None,
        quiesce_error: None,
        group: None,
        qemu_version: bridge.version().to_string(),
        qmpfs_version: env!("CARGO_PKG_VERSION").into(),
        id,
    };
    let mut making = Making {
        guard,
        journal: Journal::new(job.as_str(), manifest),
        place,
        job,
        room: None,
    };
    match make_target(bridge, &mut making, &disk, &plan).await {
        Ok(target) => Ok(Prepared {
            disk,
            root,
            target,
            plan,
            bitmap,
            making,
        }),
        Err(failure) => {
            if failure.outcome_known() {
                undo(engine, bridge, &making).await;
            } else {
                engine.settle_later(making.guard.name());
            }
            Err(failure)
        }
    }
}

/// Whether a bitmap of that node can be stored; None where there can be none.
async fn persistence(bridge: &Bridge, root: &NodeName) -> Result<Option<Persistence>, Failure> {
    let graph = bridge.graph().await?;
    let node = graph.node(root).filter(|node| !node.read_only);
    Ok(node.map(persistence_of))
}

fn persistence_of(node: &Node) -> Persistence {
    let compat = node.format_specific.get("compat");
    match compat.and_then(serde_json::Value::as_str) {
        Some("1.1") if node.driver == "qcow2" => Persistence::Stored,
        Some(_) | None => Persistence::InMemory,
    }
}

/// The journal, the file, its nodes, and room for what is expected.
async fn make_target(
    bridge: &Bridge,
    making: &mut Making,
    disk: &Disk,
    plan: &Plan,
) -> Result<NodeName, Failure> {
    let Manifest { id, name, .. } = making.journal.manifest.clone();
    let path = making.place.unfinished(&name, &id);
    let (journal, place, like) = (
        making.journal.clone(),
        making.place.clone(),
        disk.active_path.clone(),
    );
    let made = path.clone();
    blocking(move || {
        journal.write(&place)?;
        place.create(&made, &like).map(drop)
    })
    .await?;
    let size = disk.active.virtual_size;
    let target = target::open(bridge, &path, &id, size, plan.previous.as_ref()).await?;
    let expected = match plan.copied {
        Copied::Changes => plan.marked,
        Copied::Full => match disk.active.format {
            Format::Qcow2 | Format::Raw => {
                let layers = disk.layers.iter().chain([&disk.active]);
                layers.fold(0u64, |sum, layer| sum.saturating_add(layer.allocated_size))
            }
            Format::Other(_) => size,
        },
    };
    making.room = Some(blocking(move || Room::take(&path, expected, size)).await?);
    Ok(target)
}

/// The instant: the bitmap and the job begin in one transaction, where the guest's filesystems are
/// frozen if they can be.
async fn instant(
    engine: &Engine,
    bridge: &Bridge,
    prepared: Prepared,
    mut quiescing: Quiescing,
) -> Result<Making, (Making, Failure)> {
    let actions = prepared.actions(engine);
    let active = prepared.disk.active.path.clone();
    let mut making = prepared.making;
    let frozen = quiescing.freeze(vec![active]).await;
    if let Err(failure) = frozen {
        return Err((making, failure));
    }
    making.journal.manifest.time = crate::render::now();
    let begun = bridge.transaction(actions).await;
    let manifest = &mut making.journal.manifest;
    let what = format!(
        "disks/{}/backups/{}/{}",
        manifest.disk,
        manifest.kind.name(),
        manifest.name
    );
    let quiesced = quiescing.thaw(engine, &what).await;
    if let Err(error) = begun {
        return Err((making, error.into()));
    }
    let mut record = PointRecord {
        consistency: "crash".into(),
        ..PointRecord::default()
    };
    quiesced.tell(&mut record);
    manifest.consistency = record.consistency;
    manifest.frozen_ms = record.frozen_ms;
    manifest.quiesce_error = record.quiesce_error;
    engine.show_backup(&making.guard, making.shown());
    // until the copy is complete the one that was written before does as well
    let (journal, place) = (making.journal.clone(), making.place.clone());
    if let Err(failure) = blocking(move || journal.write(&place)).await {
        tracing::warn!(%failure, "a backup's journal is not complete");
    }
    Ok(making)
}

impl Prepared {
    fn actions(&self, engine: &Engine) -> Vec<TransactionAction> {
        let config = &engine.config.backup;
        let sync = match self.plan.bitmap {
            None => Sync::Full,
            Some(_) => Sync::Bitmap,
        };
        let job = self.making.job.clone();
        let limit = self.making.room.as_ref().and_then(Room::speed_limit);
        let backup = BlockdevBackup {
            bitmap: self.plan.bitmap.clone(),
            // what it marks is what the bitmap's name says, whatever becomes of this job
            bitmap_mode: self.plan.bitmap.as_ref().map(|_| BitmapMode::Never),
            compress: config.compress.then_some(true),
            speed: match (config.speed, limit) {
                (Some(speed), Some(limit)) => Some(speed.min(limit)),
                (speed, limit) => speed.or(limit),
            },
            on_source_error: Some(OnError::Report),
            // a job that stops lets the guest's writes fail as long as it stands (docs/decisions/0014)
            on_target_error: Some(OnError::Report),
            perf: config
                .max_workers
                .map(|max_workers| BackupPerf { max_workers }),
            ..BlockdevBackup::new(job, self.root.clone(), self.target.clone(), sync)
        };
        let bitmap = self.bitmap.map(|persistence| {
            TransactionAction::BlockDirtyBitmapAdd(BlockDirtyBitmapAdd {
                node: self.root.clone(),
                name: plan::bitmap_name(&self.making.journal.manifest.id),
                granularity: None,
                persistent: Some(persistence == Persistence::Stored),
                disabled: None,
            })
        });
        bitmap
            .into_iter()
            .chain([TransactionAction::BlockdevBackup(backup)])
            .collect()
    }
}

impl Making {
    fn entry(&self, state: &str) -> Job {
        Job {
            id: self.job.as_str().into(),
            verb: "backup".into(),
            point: self.journal.manifest.name.clone(),
            state: state.into(),
            progress: (0, 0),
            rate: None,
            limit: None,
            error: None,
        }
    }

    fn shown(&self) -> Backup {
        Backup {
            manifest: self.journal.manifest.clone(),
            stage: BackupStage::Job(self.job.as_str().into()),
            layers: Vec::new(),
            doubt: None,
        }
    }

    /// Where it is listed, for the log.
    fn path(&self) -> String {
        let Manifest {
            disk, kind, name, ..
        } = &self.journal.manifest;
        format!("/disks/{disk}/backups/{}/{name}", kind.name())
    }
}

/// A backup that did not come to be leaves nothing: no node, no file, no bitmap.
async fn undo(engine: &Engine, bridge: &Bridge, making: &Making) {
    if let Err(failure) = try_undo(engine, bridge, making).await {
        engine.log.note(&format!(
            "disk '{}': what is left of the backup '{}' goes later: {failure}",
            making.guard.name(),
            making.journal.manifest.name
        ));
        engine.settle_later(making.guard.name());
    }
}

async fn try_undo(engine: &Engine, bridge: &Bridge, making: &Making) -> Result<(), Failure> {
    let Manifest {
        id, name, bitmap, ..
    } = &making.journal.manifest;
    let path = making.place.unfinished(name, id);
    target::release(engine, bridge, &path, id).await?;
    if let Some(bitmap) = bitmap {
        remove::drop_bitmap(engine, bridge, making.guard.name(), bitmap).await?;
    }
    let (journal, place) = (making.journal.clone(), making.place.clone());
    blocking(move || journal.undo(&place)).await
}
