//! A mirror: a copy that follows the disk until somebody says `finish`; that is its instant. The guest
//! never waits for its target, and never moves onto it: the path it boots from keeps its name
//! (docs/SEMANTICS.md), which a pivot cannot.

use super::prepare::Prepared;
use crate::errno::{Errno, Failure};
use crate::intent::JobCommand;
use crate::model::Quiesce;
use crate::ops::engine::Engine;
use qmpbridge::command::{BlockdevMirror, OnError, Sync};
use qmpbridge::{Bridge, Cancel, JobId, JobInfo, JobStatus};

/// What it needs of QEMU besides what any backup does.
pub(in crate::ops) const NEEDS: [&str; 2] = ["blockdev-mirror", "block-job-cancel"];

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

/// Begins to copy.
pub(super) async fn begin(
    engine: &Engine,
    bridge: &Bridge,
    prepared: &Prepared,
) -> Result<(), Failure> {
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
    engine: &Engine,
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
    // of a job that is ready this is the end that keeps the copy
    let id: &JobId = &seen.id;
    engine.bridge()?.cancel_job(id, Cancel::Soft).await?;
    Ok(())
}
