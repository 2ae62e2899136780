//! The instant of backups, of one disk or of several: bitmaps and jobs begin where the guest's
//! filesystems are frozen if they can be. It knows no file.

use super::bitmaps::{self, Mark};
use super::prepare::{Persistence, Prepared};
use super::room::Room;
use super::{Asked, Making, end_mark, mirror, plan};
use crate::errno::Failure;
use crate::model::{BackupKind, Copied, PointRecord};
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::quiesce::{Quiesced, Quiescing};
use qmpbridge::command::{
    BackupPerf, BitmapMode, BitmapSource, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge,
    BlockdevBackup, OnError, Sync, TransactionAction,
};
use qmpbridge::{Bridge, JobId, NodeName};

/// Copies under way at the same time where the guest is not to wait for them: where those that hang take threads of QEMU's pool,
/// its 64 are for the guest's requests as well.
const FLEECING_WORKERS: u64 = 16;

/// Lets the instant pass. Gives all of them back, whatever came of it.
pub(super) async fn pass(
    engine: &Engine,
    bridge: &Bridge,
    prepared: Vec<Prepared>,
    quiescing: Quiescing,
    asked: &Asked<'_>,
) -> (Vec<Making>, Result<(), Failure>) {
    if asked.kind == BackupKind::Mirror {
        let begun = mirror::begin_all(engine, bridge, &prepared).await;
        return (prepared.into_iter().map(|one| one.making).collect(), begun);
    }
    let actions = Actions::of(engine, &prepared);
    let active = prepared.iter().map(|one| one.disk.active.path.clone());
    let files = active.collect();
    let mut makings: Vec<Making> = prepared.into_iter().map(|one| one.making).collect();
    let what = match (&asked.group, makings.first()) {
        (None, Some(making)) => making.path(),
        (Some(_), _) | (None, None) => format!("/backups/{}/{}", asked.kind.name(), asked.name),
    };
    let begun = begin(engine, bridge, actions, quiescing, (files, &what)).await;
    let (time, quiesced) = match begun {
        Ok(begun) => begun,
        Err(failure) => return (makings, Err(failure)),
    };
    let mut record = PointRecord {
        consistency: "crash".into(),
        ..PointRecord::default()
    };
    quiesced.tell(&mut record);
    for making in &mut makings {
        let manifest = &mut making.journal.manifest;
        manifest.time.clone_from(&time);
        manifest.consistency.clone_from(&record.consistency);
        manifest.frozen_ms = record.frozen_ms;
        manifest.quiesce_error.clone_from(&record.quiesce_error);
        engine.show_backup(&making.guard, making.shown());
        // until the copy is complete the one that was written before does as well
        let (journal, place) = (making.journal.clone(), making.place.clone());
        if let Err(failure) = blocking(move || journal.write(&place)).await {
            tracing::warn!(%failure, "a backup's journal is not complete");
        }
    }
    (makings, Ok(()))
}

/// What happens at the instant.
struct Actions {
    bitmaps: Vec<TransactionAction>,
    jobs: Vec<TransactionAction>,
    /// One job that fails ends all.
    together: bool,
}

impl Actions {
    fn of(engine: &Engine, prepared: &[Prepared]) -> Self {
        let each = || prepared.iter();
        // From the first job on a disk nobody writes it until the transaction is over. What is marked then is the instant's;
        // bitmaps that begin before it mark a little more.
        let saves = each().filter_map(|one| Some(one.fleece.as_ref()?.save(&one.root)));
        let marks = each().flat_map(Prepared::marked);
        let own = each().map(|one| one.job(engine));
        Self {
            bitmaps: each().flat_map(Prepared::bitmaps).collect(),
            jobs: saves.chain(marks).chain(own).collect(),
            // what only saves never ends by itself
            together: prepared.len() > 1 && each().all(|one| one.fleece.is_none()),
        }
    }
}

/// When it was, and how quiet.
async fn begin(
    engine: &Engine,
    bridge: &Bridge,
    Actions {
        bitmaps,
        jobs,
        together,
    }: Actions,
    mut quiescing: Quiescing,
    (files, what): (Vec<std::path::PathBuf>, &str),
) -> Result<(String, Quiesced), Failure> {
    if together && !bitmaps.is_empty() {
        // QEMU takes no bitmap into a transaction whose jobs end together; begun a little
        // earlier it marks a little more
        bridge.transaction(bitmaps.clone()).await?;
    }
    quiescing.freeze(files).await?;
    let time = crate::render::now();
    let begun = match together {
        true => bridge.grouped_transaction(jobs).await,
        false => {
            bridge
                .transaction(bitmaps.into_iter().chain(jobs).collect())
                .await
        }
    };
    let quiesced = quiescing.thaw(engine, what.trim_start_matches('/')).await;
    begun?;
    Ok((time, quiesced))
}

/// A job that copies as the mount's options say, and no faster than there is room.
pub(super) fn backup(
    engine: &Engine,
    job: &JobId,
    room: Option<&Room>,
    (from, to): (NodeName, NodeName),
    sync: Sync,
) -> BlockdevBackup {
    let config = &engine.config.backup;
    let limit = room.and_then(Room::speed_limit);
    BlockdevBackup {
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
        ..BlockdevBackup::new(job.clone(), from, to, sync)
    }
}

impl Prepared {
    /// Its own job.
    fn job(&self, engine: &Engine) -> TransactionAction {
        let sync = match self.plan.copied {
            Copied::Full => Sync::Full,
            Copied::Changes => Sync::Bitmap,
            Copied::Top => Sync::Top,
        };
        let Making { job, room, .. } = &self.making;
        let source = self.fleece.as_ref().map_or(&self.root, |it| &it.access);
        let nodes = (source.clone(), self.target.clone());
        let job = backup(engine, job, room.as_ref(), nodes, sync);
        let few = self.fleece.as_ref().map(|_| BackupPerf {
            max_workers: FLEECING_WORKERS,
        });
        TransactionAction::BlockdevBackup(BlockdevBackup {
            bitmap: self.plan.bitmap.clone(),
            // what it marks is what the bitmap's name says, whatever becomes of this job
            bitmap_mode: self.plan.bitmap.as_ref().map(|_| BitmapMode::Never),
            perf: job.perf.or(few),
            ..job
        })
    }

    /// What the disk's own bitmap marks, where its job copies from another node.
    fn marked(&self) -> Vec<TransactionAction> {
        let (Some(fleece), Some(tag)) = (&self.fleece, &self.plan.bitmap) else {
            return Vec::new();
        };
        let known = self.disk.bitmaps.iter().filter(|bitmap| bitmap.tag == *tag);
        let marks = known.map(|bitmap| Mark {
            tag,
            granularity: bitmap.granularity,
        });
        let copied = |mark| bitmaps::copy(&mark, &self.root, &fleece.access, Persistence::InMemory);
        marks.flat_map(copied).collect()
    }

    /// The bitmap that begins with it, and its end mark.
    fn bitmaps(&self) -> Vec<TransactionAction> {
        let Some(persistence) = self.bitmap else {
            return Vec::new();
        };
        let tag = plan::bitmap_name(&self.making.journal.manifest.id);
        let add = |name: &str, disabled| {
            TransactionAction::BlockDirtyBitmapAdd(BlockDirtyBitmapAdd {
                node: self.root.clone(),
                name: name.to_owned(),
                granularity: None,
                persistent: Some(persistence == Persistence::Stored),
                disabled,
            })
        };
        let mut actions = vec![add(&tag, None)];
        if let Some(node) = &self.end_mark {
            let mark = |target: &str| {
                TransactionAction::BlockDirtyBitmapMerge(BlockDirtyBitmapMerge {
                    node: self.root.clone(),
                    target: target.to_owned(),
                    bitmaps: vec![BitmapSource::External {
                        node: node.clone(),
                        name: end_mark::TAG.to_owned(),
                    }],
                })
            };
            let end = plan::end_mark_name(&tag);
            actions.extend([mark(&tag), add(&end, Some(true)), mark(&end)]);
        }
        actions
    }
}
