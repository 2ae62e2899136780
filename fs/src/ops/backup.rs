//! `mkdir disks/D/backups/KIND/N`: the disk as of one instant, copied into the backup directory by
//! QEMU's `blockdev-backup`, with a dirty bitmap that begins at the same instant. The call returns
//! when the instant is fixed and the job runs; the rest holds the disk and is what `recover` takes up
//! after a kill. Files, journal and names are `backups`' business; `plan` decides what is copied, `below` what else.

pub(super) mod all;
mod below;
pub(super) mod bitmaps;
mod end_mark;
mod fleece;
mod follow;
mod instant;
mod merge;
mod mirror;
mod plan;
mod prepare;
mod recover;
mod remove;
mod room;
mod target;
mod together;

pub(super) use end_mark::is_node as is_end_mark_node;
pub(super) use fleece::{is_node as is_fleece_node, sweep};
pub(super) use mirror::{ALL_NEED as MIRRORS_NEED, NEEDS as MIRROR_NEEDS, end as end_mirror};
pub(super) use plan::with_end_marks;
pub(super) use recover::{go_on_with_a_merge, settle, settle_shelf};
pub(super) use remove::{delete, delete_bitmap, plan_text};

use super::Answer;
use super::blocking::blocking;
use super::engine::{DiskGuard, Engine};
use super::quiesce::Quiescing;
use crate::backups::{Journal, Place, Unfinished};
use crate::errno::Failure;
use crate::layer_file::{self, Claim};
use crate::model::{Backup, BackupKind, BackupStage, GroupRecord, Job, Manifest};
use prepare::Prepared;
use qmpbridge::{Bridge, JobHandle, JobId};
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
    /// Of what it stands on, until that is copied.
    below_room: Option<Room>,
    /// Keeps other mounts from the backups that it stands on.
    _claim: Option<Claim>,
    /// Keeps them from what saves for it.
    _kept: Option<Claim>,
}

/// What is asked for, of each disk.
struct Asked<'a> {
    kind: BackupKind,
    name: &'a str,
    /// The backup of all disks that it is part of.
    group: Option<GroupRecord>,
}

/// Makes a backup. `answer` is called once the instant is fixed, or nothing came of it.
pub(super) async fn take(
    engine: Rc<Engine>,
    disk: &str,
    kind: BackupKind,
    name: &str,
    answer: Answer<()>,
) {
    let asked = Asked {
        kind,
        name,
        group: None,
    };
    let begun = match engine.hold(disk).await {
        Ok(guard) => begin(&engine, vec![(guard, layer_file::random_hex())], &asked).await,
        Err(failure) => Err(failure),
    };
    match begun {
        Ok(begun) => {
            answer(Ok(()));
            for (making, job) in begun {
                tokio::task::spawn_local(follow::run(Rc::clone(&engine), making, Some(job)));
            }
        }
        Err(failure) => answer(Err(failure)),
    }
}

/// Brings backups of disks that are held, with the ids they are to have, to their instant: all or none.
async fn begin(
    engine: &Engine,
    disks: Vec<(DiskGuard, String)>,
    asked: &Asked<'_>,
) -> Result<Vec<(Making, JobHandle)>, Failure> {
    let bridge = engine.bridge()?;
    let quiescing = Quiescing::begin(engine).await?;
    let mut prepared = Vec::new();
    for (guard, id) in disks {
        let disk = guard.name().to_owned();
        match prepare::prepare(engine, bridge, guard, asked, id).await {
            Ok(one) => prepared.push(one),
            Err(failure) => {
                for Prepared { making, .. } in &prepared {
                    give_up(engine, bridge, making, &failure).await;
                }
                return Err(match asked.group {
                    None => failure,
                    Some(_) => failure.of_disk(&disk),
                });
            }
        }
    }
    let mut handles = Vec::new();
    for Prepared { making, .. } in &prepared {
        engine.show_backup(&making.guard, making.shown());
        engine.announce(&making.guard, making.entry("created"));
        // its first events come before the answer
        handles.push(bridge.expect_job(making.job.clone()));
    }
    let (makings, outcome) = instant::pass(engine, bridge, prepared, quiescing, asked).await;
    match outcome {
        Ok(()) => {
            let guards: Vec<_> = makings.iter().map(|making| &making.guard).collect();
            if let Err(failure) = engine.refresh(&guards).await {
                tracing::debug!(%failure, "refresh after the instant of a backup");
            }
            Ok(makings.into_iter().zip(handles).collect())
        }
        Err(failure) => {
            for making in &makings {
                let disk = making.guard.name();
                engine.hide_backup(disk, &making.journal.manifest.id);
                give_up(engine, bridge, making, &failure).await;
                engine.end_job(disk, making.job.as_str(), None);
                engine.rest(&making.guard);
            }
            Err(failure)
        }
    }
}

/// Nothing came of it: what is there of a backup goes, now or when QEMU answers again.
async fn give_up(engine: &Engine, bridge: &Bridge, making: &Making, failure: &Failure) {
    match failure.outcome_known() {
        true => undo(engine, bridge, making).await,
        false => engine.settle_later(making.guard.name()),
    }
}

impl Making {
    fn entry(&self, state: &str) -> Job {
        Job::new(&self.job, self.verb(), &self.journal.manifest.name, state)
    }

    fn verb(&self) -> &'static str {
        prepare::job_word(self.journal.manifest.kind)
    }

    fn shown(&self) -> Backup {
        let stage = BackupStage::Job(self.job.as_str().into());
        Backup::new(self.journal.manifest.clone(), stage)
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
        engine.try_later(
            making.guard.name(),
            &format!(
                "what is left of the backup '{}' goes later: {failure}",
                making.journal.manifest.name
            ),
        );
    }
}

async fn try_undo(engine: &Engine, bridge: &Bridge, making: &Making) -> Result<(), Failure> {
    fleece::end(bridge, &making.journal).await?;
    for Unfinished { id, path } in making.journal.unfinished(&making.place) {
        target::release(engine, bridge, &path, &id).await?;
    }
    if let Some(bitmap) = &making.journal.manifest.bitmap {
        remove::drop_bitmap(engine, bridge, making.guard.name(), bitmap).await?;
    }
    let (journal, place) = (making.journal.clone(), making.place.clone());
    blocking(move || journal.undo(&place)).await
}
