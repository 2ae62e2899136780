//! `finish` of the mirrors of all disks. QEMU ends no two mirrors in one moment; but while the guest stands still nothing is
//! written, and whatever ends then is of that instant. So: stop, let all catch up, end them, and go on. Until the guest is told
//! to stop, and again until the first is told to end, nothing has happened; from then on it is all of them or none.

use super::{several, together};
use crate::backups::Place;
use crate::errno::{Errno, Failure};
use crate::model::BackupStage;
use crate::ops::backup::{prepare, recover};
use crate::ops::blocking::blocking;
use crate::ops::engine::{Ending, Engine};
use qmpbridge::{Bridge, Cancel, JobId, JobInfo, JobStatus};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The guest stands still so long, at most, for copies that have not caught up.
const CATCH_UP: Duration = Duration::from_secs(2);
/// The same for their ends: files are flushed.
const END: Duration = Duration::from_secs(10);
/// Both, and what QEMU takes to answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// Between two attempts to let the guest go on.
const GO_ON_EVERY: Duration = Duration::from_secs(1);
/// How often they are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One disk's mirror.
pub(super) struct Member {
    disk: String,
    job: JobId,
}

/// The mirrors that end with this one: those of all disks that were begun with it. None where it is one disk's alone.
pub(super) fn group_of(engine: &Engine, disk: &str, job: &JobId) -> Option<Vec<Member>> {
    let model = engine.current();
    let makes = |stage: &BackupStage| matches!(stage, BackupStage::Job(id) if id == job.as_str());
    let mut backups = model.disk(disk)?.backups.iter();
    let backup = backups.find(|backup| makes(&backup.stage))?;
    let group = several(&backup.manifest)?;
    let members = group.members.iter().map(|(disk, id)| {
        Some(Member {
            disk: disk.clone(),
            job: prepare::job_id(backup.manifest.kind, id).ok()?,
        })
    });
    members.collect()
}

/// Ends them all.
pub(super) async fn all(engine: &Rc<Engine>, members: &[Member]) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    // nobody is stopped for copies that are far behind
    are_ready(bridge, members).await?;
    let note = place_of_note(engine, members).await?;
    let written = note.clone();
    let standstill = engine.stand_still(async || blocking(move || written.note_standstill()).await);
    let standstill = match standstill.await {
        Ok(standstill) => standstill,
        Err(failure) => {
            // QEMU may stop the guest yet
            let_go_on_later(engine, note, members);
            return Err(failure);
        }
    };
    let stood = standstill.is_still();
    let outcome = while_it_stands(engine, bridge, members).await;
    let went_on = engine.go_on(standstill).await;
    match went_on {
        Ok(()) if stood => blocking(move || note.forget_standstill()).await?,
        Ok(()) => {}
        Err(_) => let_go_on_later(engine, note, members),
    }
    outcome.and(went_on)
}

/// A guest that was stopped for this goes on as soon as QEMU can be told, which nobody else does while the mirrors hold
/// their disks.
fn let_go_on_later(engine: &Rc<Engine>, note: Place, members: &[Member]) {
    let Some(Member { disk, .. }) = members.first() else {
        return;
    };
    let (engine, disk) = (Rc::clone(engine), disk.clone());
    tokio::task::spawn_local(async move {
        let noted = note.clone();
        // where that is not to be read it may have been stopped
        let noted = blocking(move || Ok(noted.has_standstill())).await;
        if !noted.unwrap_or(true) {
            return;
        }
        while let Err(failure) = recover::resume(&engine, &disk).await {
            engine.report_once(&format!(
                "disk '{disk}': that the guest goes on is tried again: {failure}"
            ));
            sleep(GO_ON_EVERY).await;
        }
        // from here on it stands still for somebody else
        if let Err(left) = blocking(move || note.forget_standstill()).await {
            tracing::warn!(%left, "the next mount takes the note away");
        }
    });
}

async fn while_it_stands(
    engine: &Engine,
    bridge: &Bridge,
    members: &[Member],
) -> Result<(), Failure> {
    let deadline = Instant::now() + CATCH_UP;
    while !have_caught_up(&are_ready(bridge, members).await?) {
        if Instant::now() >= deadline {
            return Err(behind("have not caught up within two seconds"));
        }
        sleep(LOOK_EVERY).await;
    }
    let set = |ending: &Ending| {
        for member in members {
            engine.set_ending(&member.disk, ending.clone());
        }
    };
    let time = crate::render::now();
    set(&Ending::UnderWay);
    let ended = end(engine, bridge, members).await;
    match &ended {
        Ok(()) => set(&Ending::At(time)),
        // whoever follows them takes them back
        Err(_) => set(&Ending::Nobodys),
    }
    ended
}

/// From here on there is no way back.
async fn end(engine: &Engine, bridge: &Bridge, members: &[Member]) -> Result<(), Failure> {
    let outcome = async {
        for member in members {
            bridge.cancel_job(&member.job, Cancel::Soft).await?;
        }
        let deadline = Instant::now() + END;
        while !have_ended(&bridge.jobs().await?, members)? {
            if Instant::now() >= deadline {
                return Err(behind("did not end in time"));
            }
            sleep(LOOK_EVERY).await;
        }
        // somebody at another monitor may have let the guest go on
        match engine.running().await? {
            false => Ok(()),
            true => Err(behind("ended while somebody else let the guest go on")),
        }
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        for member in members {
            // those that have ended take no such word
            let _ = bridge.cancel_job(&member.job, Cancel::Force).await;
        }
    }
    outcome
}

/// The jobs, if all of them follow their disks.
async fn are_ready(bridge: &Bridge, members: &[Member]) -> Result<Vec<JobInfo>, Failure> {
    let jobs = bridge.jobs().await?;
    let mut found = Vec::new();
    for Member { disk, job } in members {
        let seen = jobs.iter().find(|known| known.id == *job);
        let ready = |seen: &&JobInfo| {
            matches!(seen.status, JobStatus::Ready | JobStatus::Standby) && !seen.paused
        };
        match seen.filter(ready) {
            Some(seen) => found.push(seen.clone()),
            None => {
                return Err(Failure::new(
                    Errno::EBUSY,
                    format!("the copy of disk '{disk}' has not caught up with it, is paused, or has failed: mirrors of all disks end together"),
                )
                .next(format!("wait until its state is `ready`: cat disks/{disk}/jobs/{job}/progress")));
            }
        }
    }
    Ok(found)
}

fn have_caught_up(jobs: &[JobInfo]) -> bool {
    let has = |job: &JobInfo| job.current_progress >= job.total_progress;
    jobs.iter().all(has)
}

/// Whether all are over; the first that failed is the failure of all.
fn have_ended(jobs: &[JobInfo], members: &[Member]) -> Result<bool, Failure> {
    let mut all = true;
    for Member { disk, job } in members {
        // one that is not there was dismissed by whoever follows it: it failed, and its log line says why
        let seen = jobs.iter().find(|known| known.id == *job);
        match seen.map(|seen| (seen.status, seen.error.as_ref())) {
            Some((JobStatus::Concluded, None)) => {}
            Some((JobStatus::Concluded, Some(_))) | None => {
                return Err(together::taken_back().of_disk(disk));
            }
            Some(_) => all = false,
        }
    }
    Ok(all)
}

fn behind(what: &str) -> Failure {
    Failure::new(Errno::EBUSY, format!("the mirrors {what}"))
        .next("see their progress and try again; the guest goes on")
}

/// Where it is written down that the guest was stopped: with the first disk's backups.
async fn place_of_note(engine: &Engine, members: &[Member]) -> Result<Place, Failure> {
    let first = members.first().ok_or_else(together::taken_back)?;
    engine.place_of(&first.disk).await
}
