//! Lines written to `jobs/ID/ctl`: what a person tells a job that is at work. It knows what QEMU
//! takes of a job in which state; it does not know what the job is for.
//! Invariant: what is asked twice is done once. A job is paused when `query-block-jobs` says so.

use super::engine::Engine;
use crate::errno::{Errno, Failure};
use crate::intent::JobCommand;
use crate::model::Job;
use qmpbridge::{Bridge, JobId, JobInfo};

/// `echo COMMAND > jobs/ID/ctl`.
pub(super) async fn job(
    engine: &Engine,
    disk: &str,
    id: &str,
    command: JobCommand,
) -> Result<(), Failure> {
    let job = engine
        .job(disk, id)
        .filter(|job| !job.ended())
        .ok_or_else(|| has_ended(id))?;
    match command {
        JobCommand::Cancel => return engine.cancel(disk, id).await,
        JobCommand::Finish | JobCommand::Pivot => return Err(no_mirror(&job, command)),
        JobCommand::Pause | JobCommand::Resume | JobCommand::Speed(_) => {}
    }
    let bridge = engine.bridge()?;
    let job = JobId::new(id).map_err(|error| Failure::new(Errno::EINVAL, error.to_string()))?;
    let seen = info(bridge, &job).await?.ok_or_else(|| has_ended(id))?;
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
        return match info(bridge, &job).await {
            Ok(None) => Err(has_ended(id)),
            Ok(Some(_)) | Err(_) => Err(Failure::from(error).next(format!(
                "cat disks/{disk}/jobs/{id}/state; a job that is just ending takes no commands"
            ))),
        };
    }
    engine.show_progress(disk, id).await;
    Ok(())
}

async fn info(bridge: &Bridge, id: &JobId) -> Result<Option<JobInfo>, Failure> {
    Ok(bridge.jobs().await?.into_iter().find(|job| job.id == *id))
}

fn has_ended(id: &str) -> Failure {
    Failure::new(Errno::ENOENT, format!("the job '{id}' has ended"))
}

fn no_mirror(job: &Job, command: JobCommand) -> Failure {
    Failure::new(
        Errno::EOPNOTSUPP,
        format!("'{command}' ends a mirror, and this job is a {}", job.verb),
    )
    .next("a merge ends by itself: cat the job's wait file")
}
