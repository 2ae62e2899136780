//! Lines written to `jobs/ID/ctl`, and `rmdir jobs/ID`: what a person tells a job. It knows what QEMU
//! takes of a job in which state; it does not know what the job is for.
//! Invariant: what is asked twice is done once. A job is paused when `query-block-jobs` says so.

use super::backup;
use super::engine::{Cancelled, Engine, Held};
use crate::errno::{Errno, Failure};
use crate::intent::JobCommand;
use crate::model::Job;
use qmpbridge::{Bridge, JobId, JobInfo, JobStatus};
use std::rc::Rc;

/// `echo COMMAND > jobs/ID/ctl`.
pub(super) async fn job(
    engine: &Rc<Engine>,
    disk: &str,
    id: &str,
    command: JobCommand,
) -> Result<(), Failure> {
    let job = engine
        .job(disk, id)
        .filter(|job| !job.ended())
        .ok_or_else(|| has_ended(id))?;
    match (command, engine.is_queued(disk, id)) {
        (JobCommand::Cancel, _) => return cancel(engine, disk, id).await,
        (JobCommand::Finish | JobCommand::Pivot, _) if !job.is_mirror() => {
            return Err(no_mirror(&job, command));
        }
        (JobCommand::Pause, true) => {
            engine.hold_queued(disk, id, Held::Paused);
            return Ok(());
        }
        (JobCommand::Resume, true) => {
            engine.hold_queued(disk, id, Held::Queued);
            return Ok(());
        }
        (JobCommand::Speed(bytes), true) => {
            engine.limit_queued(disk, id, bytes);
            return Ok(());
        }
        (JobCommand::Finish | JobCommand::Pivot, _)
        | (JobCommand::Pause | JobCommand::Resume | JobCommand::Speed(_), false) => {}
    }
    let bridge = &engine.bridge_of(disk)?;
    let job = JobId::new(id).map_err(|error| Failure::new(Errno::EINVAL, error.to_string()))?;
    let seen = info(bridge, &job)
        .await?
        .ok_or_else(|| not_there(engine, disk, id))?;
    if let JobCommand::Finish | JobCommand::Pivot = command {
        return backup::end_mirror(engine, disk, &seen, command).await;
    }
    let told = match command {
        JobCommand::Pause if !seen.paused && engine.pivots(disk) => {
            return Err(Failure::new(
                Errno::EBUSY,
                "the job is at its end: the VM moves to the committed layer right now",
            )
            .next(format!("let it end: cat disks/{disk}/wait")));
        }
        JobCommand::Pause if !seen.paused => bridge.pause_job(&job).await,
        JobCommand::Resume if seen.paused => bridge.resume_job(&job).await,
        JobCommand::Speed(bytes) => bridge.set_job_speed(&job, bytes).await,
        JobCommand::Pause
        | JobCommand::Resume
        | JobCommand::Cancel
        | JobCommand::Finish
        | JobCommand::Pivot => Ok(()),
    };
    if let Err(error) = told {
        // it may have ended between the look and the word
        return Err(match info(bridge, &job).await {
            Ok(None) => not_there(engine, disk, id),
            Ok(Some(seen)) if is_ending(seen.status) => ending(disk, id),
            Ok(Some(_)) | Err(_) => {
                Failure::from(error).next(format!("cat disks/{disk}/jobs/{id}/state"))
            }
        });
    }
    match command {
        JobCommand::Pause => engine.ask_to_wait(disk, true),
        JobCommand::Resume => engine.ask_to_wait(disk, false),
        JobCommand::Speed(bytes) => engine.ask_speed(disk, bytes),
        JobCommand::Cancel | JobCommand::Finish | JobCommand::Pivot => {}
    }
    engine.show_progress(disk, id).await;
    Ok(())
}

/// `rmdir jobs/ID`, or the word `cancel`: ends a job, or forgets one that has failed.
pub(super) async fn cancel(engine: &Engine, disk: &str, id: &str) -> Result<(), Failure> {
    let job = engine.job(disk, id).ok_or_else(|| {
        Failure::new(Errno::ENOENT, format!("there is no job '{id}'"))
            .next("see which there are: ls jobs")
    })?;
    if job.ended() {
        engine.dismiss(id);
        return Ok(());
    }
    if engine.is_queued(disk, id) {
        engine.drop_queued(disk, id);
        return Ok(());
    }
    if engine.drop_queued_backup(disk, id) {
        return Ok(());
    }
    if !job.can_be_cancelled() {
        return Err(Failure::new(
            Errno::EPERM,
            "a commit has begun to change the layer below and cannot be taken back",
        )
        .next(format!("let it end: cat disks/{disk}/wait")));
    }
    let job = JobId::new(id).map_err(|error| Failure::new(Errno::EINVAL, error.to_string()))?;
    let bridge = &engine.bridge_of(disk)?;
    // before QEMU is told: the job's end may be seen before the answer is
    let before = engine.set_cancelled(disk, Cancelled::Asked);
    let Err(error) = bridge.cancel_job(&job, qmpbridge::Cancel::Force).await else {
        engine.set_cancelled(disk, Cancelled::Yes);
        return Ok(());
    };
    engine.set_cancelled(disk, before);
    match info(bridge, &job).await {
        Ok(None) => Err(not_there(engine, disk, id)),
        Ok(Some(seen)) if is_ending(seen.status) => Err(ending(disk, id)),
        Ok(Some(_)) | Err(_) => Err(error.into()),
    }
}

async fn info(bridge: &Bridge, id: &JobId) -> Result<Option<JobInfo>, Failure> {
    Ok(bridge.jobs().await?.into_iter().find(|job| job.id == *id))
}

/// Whether a job takes no words any more.
fn is_ending(status: JobStatus) -> bool {
    match status {
        JobStatus::Waiting
        | JobStatus::Pending
        | JobStatus::Aborting
        | JobStatus::Concluded
        | JobStatus::Null => true,
        JobStatus::Undefined
        | JobStatus::Unknown
        | JobStatus::Created
        | JobStatus::Running
        | JobStatus::Paused
        | JobStatus::Ready
        | JobStatus::Standby => false,
    }
}

/// It takes no words any more, but what it was for is not done yet.
fn ending(disk: &str, id: &str) -> Failure {
    Failure::new(Errno::EBUSY, format!("the job '{id}' is just ending")).next(format!(
        "cat disks/{disk}/jobs/{id}/state; a backup of all disks waits for the others, and goes with rmdir backups/KIND/NAME"
    ))
}

fn has_ended(id: &str) -> Failure {
    Failure::new(Errno::ENOENT, format!("the job '{id}' has ended"))
}

/// QEMU does not know the job: it has ended, or is just about to begin, or one of its two steps has.
fn not_there(engine: &Engine, disk: &str, id: &str) -> Failure {
    match engine.job(disk, id) {
        Some(job) if !job.ended() => Failure::new(
            Errno::EBUSY,
            format!("the job '{id}' is just beginning, or just ending"),
        )
        .next("try again in a moment"),
        Some(_) | None => has_ended(id),
    }
}

fn no_mirror(job: &Job, command: JobCommand) -> Failure {
    Failure::new(
        Errno::EOPNOTSUPP,
        format!("'{command}' ends a mirror, and this job is a {}", job.verb),
    )
    .next("a merge ends by itself: cat the job's wait file")
}
