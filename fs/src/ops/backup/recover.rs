//! Backups that a killed daemon, or a QEMU that died, left half made: taken up, finished or taken back,
//! as their journals and QEMU's jobs say. Doing it twice changes nothing.

use super::together::{self, Others};
use super::{Making, below, fleece, follow, merge, mirror, target, try_undo};
use crate::backups::{self, Journal, Place, Stage, Unfinished};
use crate::errno::{Errno, Failure};
use crate::model::Job;
use crate::ops::blocking::blocking;
use crate::ops::engine::{DiskGuard, Engine, Turn};
use crate::ops::shelf;
use crate::view::written_by_someone;
use qmpbridge::{Bridge, JobHandle, JobId, JobInfo, JobStatus};
use std::rc::Rc;

/// Settles what is written down of a disk's backups. A job that still runs holds the disk then.
pub(in crate::ops) async fn settle(engine: &Rc<Engine>, guard: DiskGuard) -> Result<(), Failure> {
    if engine.config.backup.directory.is_none() || engine.config.verbs.read_only {
        return Ok(());
    }
    let bridge = engine.bridge()?;
    let place = engine.place_of(guard.name()).await?;
    let_go_on(engine, &place, guard.name()).await?;
    let looked_at = place.clone();
    let (journals, strange) = blocking(move || Journal::all(&looked_at)).await?;
    tell_strange(engine, &place, guard.name(), strange);
    let (merging, journals): (Vec<Journal>, Vec<Journal>) = journals
        .into_iter()
        .partition(|it| it.stage == Stage::Merging);
    let mut merging = merging.into_iter();
    // no backup is merged away beside one that is made
    let making = journals.iter().any(|it| it.stage != Stage::Removing);
    if !making && let Some(journal) = merging.next() {
        // the others when it is at its end
        return take_up(engine, guard, journal);
    }
    let mut claim = match shelf::claim(engine, &place).await {
        Ok(claim) => Some(claim),
        // somebody is at work there, and nothing is left to be done
        Err(_) if journals.is_empty() => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let swept = place.clone();
    blocking(move || backups::sweep(&swept)).await?;
    let mut guard = guard;
    for journal in journals {
        if journal.stage == Stage::Removing {
            end_removal(engine, &place, guard.name(), journal).await?;
            continue;
        }
        let job = JobId::new(journal.job.as_str())?;
        let mut making = Making {
            guard,
            _kept: fleece::claim(&journal)?,
            place: place.clone(),
            journal,
            job,
            room: None,
            below_room: None,
            _claim: claim.take().flatten(),
        };
        if let Next::Follow(job) = one(engine, bridge, &mut making).await? {
            let engine = Rc::clone(engine);
            tokio::task::spawn_local(follow::run(engine, making, job));
            return Ok(());
        }
        engine.backups_changed(making.guard.name());
        guard = making.guard;
    }
    match merging.next() {
        Some(journal) => take_up(engine, guard, journal),
        None => Ok(()),
    }
}

fn tell_strange(engine: &Engine, place: &Place, disk: &str, strange: Vec<String>) {
    for name in strange {
        engine.report_once(&format!(
            "disk '{disk}': {} is no journal that this qmpfs knows; it is left alone",
            place.directory().join(name).display()
        ));
    }
}

/// A merge that was cut short goes on, and holds the disk.
fn take_up(engine: &Rc<Engine>, guard: DiskGuard, journal: Journal) -> Result<(), Failure> {
    engine.log.note(&format!(
        "disk '{}': taking up the merge of the backup '{}' again",
        guard.name(),
        journal.manifest.name
    ));
    let removal = merge::Removal {
        id: journal.manifest.id.clone(),
        job: JobId::new(journal.job.as_str())?,
        resumed: Some(journal),
    };
    engine.announce(&guard, Job::new(&removal.job, "merge", "", "created"));
    tokio::task::spawn_local(merge::run(Rc::clone(engine), guard, removal, None));
    Ok(())
}

/// A job was dismissed, or another one has ended: a merge that has failed, and that only its end makes right, is begun
/// again.
pub(in crate::ops) async fn go_on_with_a_merge(engine: &Rc<Engine>, disk: &str) {
    if let Err(failure) = begin_again(engine, disk).await {
        tracing::debug!(%failure, disk, "no merge of backups is taken up");
    }
}

async fn begin_again(engine: &Rc<Engine>, disk: &str) -> Result<(), Failure> {
    let place = engine.place_of(disk).await?;
    let (journals, _) = blocking(move || Journal::all(&place)).await?;
    let Some(journal) = journals.into_iter().find(|it| it.stage == Stage::Merging) else {
        return Ok(());
    };
    match engine.turn(disk).await? {
        Turn::Now(guard) => take_up(engine, guard, journal),
        // whoever is at work there takes it up himself
        Turn::AtWork => Ok(()),
    }
}

/// The same of a mount of a directory: removals and merges that were cut short. What else was begun is
/// the business of its VM's mount.
pub(in crate::ops) async fn settle_shelf(engine: &Rc<Engine>) {
    if engine.config.verbs.read_only {
        return;
    }
    let model = engine.current();
    for disk in &model.disks {
        if let Err(failure) = settle_one(engine, &disk.name).await {
            engine.report_once(&format!("disk '{}': not settled: {failure}", disk.name));
        }
    }
    if let Err(failure) = engine.refresh(&[]).await {
        tracing::debug!(%failure, "refresh after settling");
    }
}

async fn settle_one(engine: &Rc<Engine>, disk: &str) -> Result<(), Failure> {
    let place = engine.place_of(disk).await?;
    let looked_at = place.clone();
    let (journals, strange) = blocking(move || Journal::all(&looked_at)).await?;
    tell_strange(engine, &place, disk, strange);
    let is_ours = |it: &Journal| matches!(it.stage, Stage::Removing | Stage::Merging);
    let guard = match engine.hold(disk).await {
        // somebody is at work there, and nothing is left to be done
        Err(failure) if failure.errno == Errno::EBUSY && !journals.iter().any(is_ours) => {
            return Ok(());
        }
        held => held?,
    };
    let swept = place.clone();
    blocking(move || backups::sweep(&swept)).await?;
    for journal in journals {
        match journal.stage {
            Stage::Removing => end_removal(engine, &place, disk, journal).await?,
            Stage::Merging => return take_up(engine, guard, journal),
            Stage::Running | Stage::Below | Stage::Copied => {}
        }
    }
    Ok(())
}

/// A removal that was cut short is finished; where something stands on the backup by now, it stays.
async fn end_removal(
    engine: &Engine,
    place: &Place,
    disk: &str,
    journal: Journal,
) -> Result<(), Failure> {
    let name = journal.manifest.name.clone();
    let place = place.clone();
    let needed = blocking(move || {
        if Journal::read(&place, &journal.manifest.name).as_ref() != Some(&journal) {
            // somebody has ended it since it was read
            return Ok(None);
        }
        match backups::standing_on_file(&place, &journal.manifest.name)?.pop() {
            Some(needed) if journal.can_be_kept(&place) => {
                journal.keep(&place).map(|()| Some(needed))
            }
            // gone already, or merged into what stood on it
            _ => journal.remove_backup(&place).map(|()| None),
        }
    });
    match needed.await? {
        None => engine.log.note(&format!(
            "disk '{disk}': finishing the removal of the backup '{name}'"
        )),
        Some(needed) => engine.log.note(&format!(
            "disk '{disk}': the backup '{name}' stays: {} stands on it",
            needed.display()
        )),
    }
    engine.backups_changed(disk);
    Ok(())
}

/// What is left to do for a backup.
enum Next {
    Nothing,
    /// Its job runs, or another disk's must end before it is complete.
    Follow(Option<JobHandle>),
}

/// One journal.
async fn one(engine: &Engine, bridge: &Bridge, making: &mut Making) -> Result<Next, Failure> {
    let name = making.journal.manifest.name.clone();
    let note = |what: &str| {
        engine
            .log
            .note(&format!("disk '{}': {what} '{name}'", making.guard.name()));
    };
    match making.journal.stage {
        Stage::Copied => {
            let others = together::others(engine, bridge, making).await?;
            // mirrors that are not all known to have ended at one instant did not
            let apart = others == Others::OnTheirWay && is_mirror_of_several(making);
            if matches!(others, Others::Copying | Others::Begun) {
                show(engine, making);
                return Ok(Next::Follow(None));
            }
            if others != Others::TakenBack && !apart {
                note("finishing the backup");
                follow::finish(engine, bridge, making).await?;
                return Ok(Next::Nothing);
            }
        }
        // they were taken up before the others
        Stage::Removing | Stage::Merging => return Ok(Next::Nothing),
        Stage::Running | Stage::Below => {}
    }
    let jobs = bridge.jobs().await?;
    match jobs.into_iter().find(|job| job.id == making.job) {
        Some(job)
            if job.status == JobStatus::Concluded
                && job.error.is_none()
                && !making.journal.ends_alone()
                && !is_mirror_of_several(making)
                && together::others(engine, bridge, making).await? != Others::TakenBack =>
        {
            note("finishing the backup");
            follow::write_copied(engine, bridge, making).await?;
            follow::finish(engine, bridge, making).await?;
            Ok(Next::Nothing)
        }
        Some(job)
            if job.status != JobStatus::Concluded
                || goes_on(engine, bridge, making, &job).await? =>
        {
            note("taking up the backup");
            let handle = bridge.attach_job(making.job.clone()).await?;
            if job.paused {
                // whoever paused it told a daemon that is gone
                bridge.resume_job(&making.job).await?;
            }
            let below = making.journal.file_below(&making.place);
            let below = below.filter(|_| making.journal.stage == Stage::Below);
            let path = below
                .unwrap_or_else(|| making.journal.own(&making.place))
                .path;
            let size = making.journal.manifest.virtual_size;
            // what it takes is not known any more: what there is must do until the first look
            making.room = blocking(move || Ok(super::Room::take(&path, 0, size).ok())).await?;
            show(engine, making);
            Ok(Next::Follow(Some(handle)))
        }
        None if is_anothers(engine, bridge, making).await? => {
            engine.report_once(&format!(
                "disk '{}': the backup '{name}' is being written by another QEMU, and left alone: do two VMs have one name, or one backup directory?",
                making.guard.name()
            ));
            Ok(Next::Nothing)
        }
        None if below::is_prepared(engine, bridge, &making.place, &making.journal).await?
            && together::others(engine, bridge, making).await? != Others::TakenBack =>
        {
            note("taking up the backup");
            match below::begin(engine, bridge, making).await {
                Ok(job) => {
                    show(engine, making);
                    Ok(Next::Follow(job))
                }
                Err(failure) if failure.outcome_known() => {
                    try_undo(engine, bridge, making).await?;
                    Err(failure)
                }
                Err(failure) => Err(failure),
            }
        }
        ended => {
            note("taking back the backup that was not completed,");
            if ended.is_some() {
                bridge.dismiss_job(&making.job).await?;
            }
            together::end_others(bridge, &making.journal.manifest).await;
            try_undo(engine, bridge, making).await?;
            Ok(Next::Nothing)
        }
    }
}

/// From now on somebody follows it: until then the disk is not taken for one at work.
fn show(engine: &Engine, making: &Making) {
    engine.show_backup(&making.guard, making.shown());
    engine.announce(&making.guard, making.entry("running"));
}

/// Whether there is more to do behind a job that has ended.
async fn goes_on(
    engine: &Engine,
    bridge: &Bridge,
    making: &Making,
    ended: &JobInfo,
) -> Result<bool, Failure> {
    let copying = matches!(making.journal.stage, Stage::Running | Stage::Below);
    let more = copying && making.journal.ends_alone() && ended.error.is_none();
    Ok(more && together::others(engine, bridge, making).await? != Others::TakenBack)
}

fn is_mirror_of_several(making: &Making) -> bool {
    mirror::several(&making.journal.manifest).is_some()
}

/// A guest that was stopped for the end of mirrors, by a daemon that was killed then, goes on.
async fn let_go_on(engine: &Engine, place: &Place, disk: &str) -> Result<(), Failure> {
    let looked_at = place.clone();
    if !blocking(move || Ok(looked_at.has_standstill())).await? {
        return Ok(());
    }
    resume(engine, disk).await?;
    let place = place.clone();
    blocking(move || place.forget_standstill()).await
}

/// The guest goes on, if it stands still because it was told to.
pub(super) async fn resume(engine: &Engine, disk: &str) -> Result<(), Failure> {
    let _alone = engine.alone().await?;
    if engine.paused().await? {
        engine.log.note(&format!(
            "disk '{disk}': the guest was stopped for the end of mirrors, and goes on"
        ));
        engine.resume_guest().await?;
    }
    Ok(())
}

/// Whether somebody else writes the file: the VM was cloned, or another one has its name. What is being written is not
/// taken back.
async fn is_anothers(engine: &Engine, bridge: &Bridge, making: &Making) -> Result<bool, Failure> {
    for Unfinished { id, path } in making.journal.unfinished(&making.place) {
        if target::is_open(engine, bridge, &path, &id).await? {
            return Ok(false);
        }
        let theirs = blocking(move || Ok(path.exists() && written_by_someone(&path)?));
        if theirs.await? {
            return Ok(true);
        }
    }
    Ok(false)
}
