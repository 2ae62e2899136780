//! The instant of backups, of one disk or of several: bitmaps and jobs begin where the guest's
//! filesystems are frozen if they can be. It knows no file.

use super::fleece::Fleece;
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
    let jobs: Vec<_> = prepared.iter().flat_map(|one| one.jobs(engine)).collect();
    // what only saves never ends by itself
    let together = prepared.len() > 1 && prepared.iter().all(|one| one.fleece.is_none());
    let bitmaps: Vec<_> = prepared
        .iter()
        .flat_map(|one| [one.marked(), one.bitmaps()].concat())
        .collect();
    let active = prepared.iter().map(|one| one.disk.active.path.clone());
    let files = active.collect();
    let mut makings: Vec<Making> = prepared.into_iter().map(|one| one.making).collect();
    let what = match (&asked.group, makings.first()) {
        (None, Some(making)) => making.path(),
        (Some(_), _) | (None, None) => format!("/backups/{}/{}", asked.kind.name(), asked.name),
    };
    let actions = Actions {
        bitmaps,
        jobs,
        together,
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
    let workers = config
        .max_workers
        .or(config.fleecing.then_some(FLEECING_WORKERS));
    BlockdevBackup {
        compress: config.compress.then_some(true),
        speed: match (config.speed, limit) {
            (Some(speed), Some(limit)) => Some(speed.min(limit)),
            (speed, limit) => speed.or(limit),
        },
        on_source_error: Some(OnError::Report),
        // a job that stops lets the guest's writes fail as long as it stands (docs/decisions/0014)
        on_target_error: Some(OnError::Report),
        perf: workers.map(|max_workers| BackupPerf { max_workers }),
        ..BlockdevBackup::new(job.clone(), from, to, sync)
    }
}

impl Prepared {
    /// The jobs: its own is the last.
    fn jobs(&self, engine: &Engine) -> Vec<TransactionAction> {
        let sync = match self.plan.copied {
            Copied::Full => Sync::Full,
            Copied::Changes => Sync::Bitmap,
            Copied::Top => Sync::Top,
        };
        let Making { job, room, .. } = &self.making;
        let source = self.fleece.as_ref().map_or(&self.root, |it| &it.access);
        let bitmap = self.plan.bitmap.as_ref();
        let bitmap = bitmap.map(|bitmap| match &self.fleece {
            Some(_) => Fleece::bitmap(),
            None => bitmap.clone(),
        });
        let nodes = (source.clone(), self.target.clone());
        let own = TransactionAction::BlockdevBackup(BlockdevBackup {
            bitmap,
            // what it marks is what the bitmap's name says, whatever becomes of this job
            bitmap_mode: self.plan.bitmap.as_ref().map(|_| BitmapMode::Never),
            ..backup(engine, job, room.as_ref(), nodes, sync)
        });
        let save = self.fleece.as_ref().map(|it| it.save(&self.root));
        save.into_iter().chain([own]).collect()
    }

    /// What its job copies, if it is less than all and the disk's own bitmap does not say it.
    fn marked(&self) -> Vec<TransactionAction> {
        let (Some(fleece), Some(tag)) = (&self.fleece, &self.plan.bitmap) else {
            return Vec::new();
        };
        let bitmap = self.disk.bitmaps.iter().find(|bitmap| bitmap.tag == *tag);
        let granularity = bitmap.map(|bitmap| bitmap.granularity);
        fleece.mark(&self.root, tag, granularity).into()
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
