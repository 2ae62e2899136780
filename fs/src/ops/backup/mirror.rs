//! A mirror: a copy that follows the disk until somebody says `finish`; that is its instant. The guest
//! never waits for its target, and never moves onto it: the path it boots from keeps its name
//! (docs/SEMANTICS.md), which a pivot cannot.

mod finish;

use super::prepare::Prepared;
use super::{Making, together};
use crate::errno::{Errno, Failure};
use crate::intent::JobCommand;
use crate::model::{BackupKind, GroupRecord, Manifest, Quiesce};
use crate::ops::engine::{Ending, Engine};
use qmpbridge::command::{BlockdevMirror, OnError, Sync};
use qmpbridge::{Bridge, Cancel, JobId, JobInfo, JobStatus};
use std::rc::Rc;

/// What it needs of QEMU besides what any backup does.
pub(in crate::ops) const NEEDS: [&str; 2] = ["blockdev-mirror", "block-job-cancel"];

/// And what those of all disks need: they end while the guest stands still.
pub(in crate::ops) const ALL_NEED: [&str; 3] = ["blockdev-mirror", "block-job-cancel", "stop"];

/// Its instant is when the job has ended: nobody can freeze a guest for so long.
pub(super) fn suits(quiesce: Quiesce) -> Result<(), Failure> {
    match quiesce {
        Quiesce::Off | Quiesce::Try => Ok(()),
        Quiesce::Require => Err(Failure::new(
            Errno::EOPNOTSUPP,
            "a mirror ends without the guest being frozen, and this mount has quiesce=require",
        )
        .next("make a full backup, or mount with quiesce=try")),
    }
}

/// Several end at one instant only where their writers can be made to stand still.
pub(super) fn suits_several(bridge: &Bridge, disks: usize) -> Result<(), Failure> {
    if disks < 2 || bridge.supports("stop") {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EOPNOTSUPP,
        "mirrors of all disks end while the guest stands still, and the clients of a storage daemon cannot be stopped",
    )
    .next("make one of each disk: mkdir disks/*/backups/mirror/NAME; or backups of all disks: mkdir backups/full/NAME"))
}

/// Begins to copy all of them, or none.
pub(super) async fn begin_all(
    engine: &Engine,
    bridge: &Bridge,
    prepared: &[Prepared],
) -> Result<(), Failure> {
    for one in prepared {
        engine.set_ending(one.making.guard.name(), Ending::Nobodys);
    }
    for (number, one) in prepared.iter().enumerate() {
        if let Err(failure) = begin(engine, bridge, one).await {
            for begun in &prepared[..number] {
                take_back(bridge, &begun.making.job).await?;
            }
            return Err(match prepared.len() {
                1 => failure,
                _ => failure.of_disk(one.making.guard.name()),
            });
        }
    }
    Ok(())
}

/// The mirrors that one ends with; None where it ends by itself.
pub(super) fn several(manifest: &Manifest) -> Option<&GroupRecord> {
    let group = manifest.group.as_ref()?;
    (manifest.kind == BackupKind::Mirror && group.members.len() > 1).then_some(group)
}

/// Ends a job whose copy nobody wants.
async fn take_back(bridge: &Bridge, job: &JobId) -> Result<(), Failure> {
    let mut handle = bridge.attach_job(job.clone()).await?;
    bridge.cancel_job(job, Cancel::Force).await?;
    // cancelled, it ends with an error
    let _ = handle.wait_concluded().await;
    bridge.dismiss_job(job).await?;
    Ok(())
}

/// Waits until it is known that all disks' mirrors hold one instant, and gives it.
pub(super) async fn instant(engine: &Engine, making: &Making) -> Result<String, Failure> {
    if several(&making.journal.manifest).is_none() {
        return Ok(crate::render::now());
    }
    let deadline = tokio::time::Instant::now() + finish::DEADLINE;
    loop {
        match engine.ending(making.guard.name()) {
            Ending::At(time) => return Ok(time),
            Ending::UnderWay if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(finish::LOOK_EVERY).await;
            }
            // somebody ended this one alone
            Ending::UnderWay | Ending::Nobodys => return Err(together::taken_back()),
        }
    }
}

/// Begins to copy.
async fn begin(engine: &Engine, bridge: &Bridge, prepared: &Prepared) -> Result<(), Failure> {
    let job = prepared.making.job.clone();
    let (root, target) = (prepared.root.clone(), prepared.target.clone());
    let mirror = BlockdevMirror {
        speed: engine.config.backup.speed,
        on_source_error: Some(OnError::Report),
        on_target_error: Some(OnError::Report),
        ..BlockdevMirror::new(job, root, target, Sync::Full)
    };
    bridge.run(mirror).await?;
    Ok(())
}

/// `finish` and `pivot` in ctl.
pub(in crate::ops) async fn end(
    engine: &Rc<Engine>,
    disk: &str,
    seen: &JobInfo,
    command: JobCommand,
) -> Result<(), Failure> {
    if command == JobCommand::Pivot {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            "the VM is not moved onto a copy: its active path would be another one than it starts with",
        )
        .next("echo finish, and put the copy in the disk's place with the VM off"));
    }
    let ready = matches!(seen.status, JobStatus::Ready | JobStatus::Standby);
    if !ready || seen.paused {
        return Err(Failure::new(
            Errno::EBUSY,
            "the copy has not caught up with the disk, or is paused",
        )
        .next(format!(
            "wait until its state is `ready`: cat disks/{disk}/jobs/{}/progress",
            seen.id
        )));
    }
    if let Some(group) = finish::group_of(engine, disk, &seen.id) {
        return finish::all(engine, &group).await;
    }
    // of a job that is ready this is the end that keeps the copy
    let id: &JobId = &seen.id;
    engine.bridge()?.cancel_job(id, Cancel::Soft).await?;
    Ok(())
}
