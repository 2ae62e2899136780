//! Backups of all disks at one instant are all there, or none is: QEMU ends their jobs together, and
//! no file gets its name before all of them are known to be complete. What is known of each stands in
//! its own directory, so a daemon that comes later decides the same.

use super::{Making, below, prepare};
use crate::backups::{self, Journal, Place, Stage};
use crate::errno::{Errno, Failure};
use crate::model::Manifest;
use crate::ops::blocking::blocking;
use crate::ops::engine::{Cancelled, Engine};
use qmpbridge::{Bridge, Cancel, JobInfo, JobStatus};
use std::time::Duration;

/// The jobs end in one moment: that is how long what comes next may take on a slow filesystem.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often the others are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same while one of them may take hours.
const LOOK_AT_A_COPY_EVERY: Duration = Duration::from_secs(1);

/// How the others are: as the one of them that is least far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Others {
    /// Complete, and written down as such.
    Copied,
    /// Their jobs run, or have ended well.
    OnTheirWay,
    /// The same, and it may take as long as a backup does: QEMU does not end them together.
    Copying,
    /// The same, but nobody follows it: it is about to be taken up, or never is.
    Begun,
    /// One was taken back.
    TakenBack,
}

/// Waits until the others of its instant are complete as well.
pub(super) async fn all_copied(
    engine: &Engine,
    bridge: &Bridge,
    making: &Making,
) -> Result<(), Failure> {
    let mut deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if engine.cancelled(making.guard.name()) == Cancelled::Yes {
            return Err(taken_back());
        }
        match others(engine, bridge, making).await? {
            Others::Copied => return Ok(()),
            Others::TakenBack => return Err(taken_back()),
            Others::Copying => {
                tokio::time::sleep(LOOK_AT_A_COPY_EVERY).await;
                deadline = tokio::time::Instant::now() + DEADLINE;
            }
            Others::OnTheirWay | Others::Begun if tokio::time::Instant::now() > deadline => {
                return Err(qmpbridge::Error::TimedOut {
                    command: "the other disks' backups",
                }
                .into());
            }
            Others::OnTheirWay | Others::Begun => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// One of all disks is no more: the others are of no use. Whoever follows them takes them back.
pub(super) async fn end_others(bridge: &Bridge, manifest: &Manifest) {
    let Some(group) = &manifest.group else {
        return;
    };
    let Ok(jobs) = bridge.jobs().await else {
        return;
    };
    let others = group.members.values().filter(|id| **id != manifest.id);
    for id in others {
        let Ok(job) = prepare::job_id(manifest.kind, id) else {
            continue;
        };
        let at_work = |known: &&JobInfo| known.id == job && known.status != JobStatus::Concluded;
        if jobs.iter().any(|known| at_work(&known))
            && let Err(error) = bridge.cancel_job(&job, Cancel::Force).await
        {
            tracing::debug!(%job, %error, "a job that ends by itself");
        }
    }
}

/// What becomes of one whose others did not become complete.
pub(super) fn taken_back() -> Failure {
    Failure::new(
        Errno::EIO,
        "taken back: the backup of another disk at the same instant failed, or was cancelled",
    )
    .next("see the other disks' jobs in the log, then make the backup of all disks again")
}

/// Looks at them.
pub(super) async fn others(
    engine: &Engine,
    bridge: &Bridge,
    making: &Making,
) -> Result<Others, Failure> {
    let manifest = &making.journal.manifest;
    let Some(group) = &manifest.group else {
        return Ok(Others::Copied);
    };
    let members = group.members.iter().filter(|(_, id)| **id != manifest.id);
    let jobs = bridge.jobs().await?;
    let mut all = Others::Copied;
    for (disk, id) in members {
        let Some(place) = engine.place(&manifest.vm, disk) else {
            continue;
        };
        let (name, id) = (manifest.name.clone(), id.clone());
        let looked_at = place.clone();
        match blocking(move || Ok(written_down(&looked_at, &name, &id))).await? {
            Written::Copied => {}
            Written::Running(journal) => {
                let job = jobs.iter().find(|known| known.id.as_str() == journal.job);
                let failed =
                    |job: &JobInfo| job.status == JobStatus::Concluded && job.error.is_some();
                let followed = engine
                    .job(disk, &journal.job)
                    .is_some_and(|job| !job.ended());
                // between two jobs QEMU has none
                let goes_on = match job {
                    Some(job) => !failed(job),
                    None => {
                        followed || below::is_prepared(engine, bridge, &place, &journal).await?
                    }
                };
                if !goes_on {
                    return Ok(Others::TakenBack);
                }
                let how = match (journal.ends_alone(), followed) {
                    (false, _) => Others::OnTheirWay,
                    (true, true) => Others::Copying,
                    (true, false) => Others::Begun,
                };
                all = all.max(how);
            }
            Written::Nothing => return Ok(Others::TakenBack),
        }
    }
    Ok(all)
}

/// What stands in the directory of another disk.
enum Written {
    Copied,
    /// Its job copies, or did.
    Running(Box<Journal>),
    Nothing,
}

fn written_down(place: &Place, name: &str, id: &str) -> Written {
    match Journal::read(place, name) {
        Some(journal) if journal.manifest.id == id => match journal.stage {
            Stage::Copied | Stage::Removing | Stage::Merging => return Written::Copied,
            Stage::Running | Stage::Below => return Written::Running(Box::new(journal)),
        },
        Some(_) | None => {}
    }
    match backups::manifest_at(&place.manifest(name)) {
        Ok(manifest) if manifest.id == id => Written::Copied,
        Ok(_) | Err(_) => Written::Nothing,
    }
}
