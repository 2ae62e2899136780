//! Backups that a killed daemon, or a QEMU that died, left half made: taken up, finished or taken back,
//! as their journals and QEMU's jobs say. Doing it twice changes nothing.

use super::together::{self, Others};
use super::{Making, follow, try_undo};
use crate::backups::{Journal, Stage};
use crate::errno::{Errno, Failure};
use crate::ops::blocking::blocking;
use crate::ops::engine::{DiskGuard, Engine};
use qmpbridge::{Bridge, JobId, JobStatus};
use std::rc::Rc;

/// Settles what is written down of a disk's backups. A job that still runs holds the disk then.
pub(in crate::ops) async fn settle(engine: &Rc<Engine>, guard: DiskGuard) -> Result<(), Failure> {
    if engine.config.backup.directory.is_none() || engine.config.verbs.read_only {
        return Ok(());
    }
    let bridge = engine.bridge()?;
    let place = engine.place_of(guard.name()).await?;
    let looked_at = place.clone();
    let (journals, strange) = blocking(move || Journal::all(&looked_at)).await?;
    for name in strange {
        engine.report_once(&format!(
            "disk '{}': {} is no journal that this qmpfs knows; it is left alone",
            guard.name(),
            place.directory().join(name).display()
        ));
    }
    let mut guard = guard;
    for journal in journals {
        let job = JobId::new(journal.job.as_str())
            .map_err(|error| Failure::new(Errno::EIO, error.to_string()))?;
        let mut making = Making {
            guard,
            place: place.clone(),
            journal,
            job,
            room: None,
        };
        if let Some(job) = one(engine, bridge, &mut making).await? {
            let engine = Rc::clone(engine);
            tokio::task::spawn_local(follow::run(engine, making, job));
            return Ok(());
        }
        engine.backups_changed(making.guard.name());
        guard = making.guard;
    }
    Ok(())
}

/// One journal. Some: its job runs.
async fn one(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<Option<qmpbridge::JobHandle>, Failure> {
    let name = making.journal.manifest.name.clone();
    let note = |what: &str| {
        engine
            .log
            .note(&format!("disk '{}': {what} '{name}'", making.guard.name()));
    };
    match making.journal.stage {
        Stage::Removing => {
            note("finishing the removal of the backup");
            let (journal, place) = (making.journal.clone(), making.place.clone());
            blocking(move || journal.remove_backup(&place)).await?;
            return Ok(None);
        }
        Stage::Copied => {
            if together::others(engine, bridge, making).await? != Others::TakenBack {
                note("finishing the backup");
                return follow::finish(engine, bridge, making).await.map(|()| None);
            }
        }
        Stage::Running => {}
    }
    let jobs = bridge.jobs().await?;
    match jobs.into_iter().find(|job| job.id == making.job) {
        Some(job)
            if job.status == JobStatus::Concluded
                && job.error.is_none()
                && together::others(engine, bridge, making).await? != Others::TakenBack =>
        {
            note("finishing the backup");
            follow::write_copied(making).await?;
            follow::finish(engine, bridge, making).await?;
            Ok(None)
        }
        Some(job) if job.status != JobStatus::Concluded => {
            note("taking up the backup");
            engine.show_backup(&making.guard, making.shown());
            engine.announce(&making.guard, making.entry("running"));
            let handle = bridge.attach_job(making.job.clone()).await?;
            if job.paused {
                // whoever paused it told a daemon that is gone
                bridge.resume_job(&making.job).await?;
            }
            let manifest = &making.journal.manifest;
            let path = making.place.unfinished(&manifest.name, &manifest.id);
            let size = manifest.virtual_size;
            // what it takes is not known any more: what there is must do until the first look
            making.room = blocking(move || Ok(super::Room::take(&path, 0, size).ok())).await?;
            Ok(Some(handle))
        }
        ended => {
            note("taking back the backup that was not completed,");
            if ended.is_some() {
                bridge.dismiss_job(&making.job).await?;
            }
            try_undo(engine, bridge, making).await?;
            Ok(None)
        }
    }
}
