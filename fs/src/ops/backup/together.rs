//! Backups of all disks at one instant are all there, or none is: QEMU ends their jobs together, and
//! no file gets its name before all of them are known to be complete. What is known of each stands in
//! its own directory, so a daemon that comes later decides the same.

use super::Making;
use crate::backups::{self, Journal, Place, Stage};
use crate::errno::{Errno, Failure};
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use qmpbridge::{Bridge, JobStatus};
use std::time::Duration;

/// The jobs end in one moment: that is how long what comes next may take on a slow filesystem.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often the others are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How the others are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// Complete, and written down as such.
    Copied,
    /// Their jobs run, or have ended well.
    OnTheirWay,
    /// What one of them stands on is copied, or is yet to be: that may take as long as the backup did.
    Copying,
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
        match others(engine, bridge, making).await? {
            Others::Copied => return Ok(()),
            Others::TakenBack => return Err(taken_back()),
            Others::Copying => {
                tokio::time::sleep(LOOK_EVERY).await;
                deadline = tokio::time::Instant::now() + DEADLINE;
            }
            Others::OnTheirWay if tokio::time::Instant::now() > deadline => {
                return Err(qmpbridge::Error::TimedOut {
                    command: "the other disks' backups",
                }
                .into());
            }
            Others::OnTheirWay => tokio::time::sleep(LOOK_EVERY).await,
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
        match blocking(move || Ok(written_down(&place, &name, &id))).await? {
            Written::Copied => {}
            Written::Running { job, with_below } => {
                let known = jobs.iter().find(|known| known.id.as_str() == job);
                match known {
                    Some(job) if job.status == JobStatus::Concluded && job.error.is_some() => {
                        return Ok(Others::TakenBack);
                    }
                    Some(_) => {}
                    // between two jobs QEMU has none
                    None if engine.job(disk, &job).is_some_and(|job| !job.ended()) => {}
                    None => return Ok(Others::TakenBack),
                }
                if with_below {
                    all = Others::Copying;
                } else if all == Others::Copied {
                    all = Others::OnTheirWay;
                }
            }
            Written::Nothing => return Ok(Others::TakenBack),
        }
    }
    Ok(all)
}

/// What stands in the directory of another disk.
enum Written {
    Copied,
    /// This job copies, or did; and maybe another one what the backup stands on.
    Running {
        job: String,
        with_below: bool,
    },
    Nothing,
}

fn written_down(place: &Place, name: &str, id: &str) -> Written {
    match Journal::read(place, name) {
        Some(journal) if journal.manifest.id == id => match journal.stage {
            Stage::Copied | Stage::Removing | Stage::Merging => return Written::Copied,
            Stage::Running | Stage::Below => {
                return Written::Running {
                    with_below: journal.below.is_some(),
                    job: journal.job,
                };
            }
        },
        Some(_) | None => {}
    }
    match backups::manifest_at(&place.manifest(name)) {
        Ok(manifest) if manifest.id == id => Written::Copied,
        Ok(_) | Err(_) => Written::Nothing,
    }
}
