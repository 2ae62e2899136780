//! Removals that come while another merge is at work on the disk: they are looked at and accepted
//! at once, wait in their order, and are looked at again when their turn comes: what stream or
//! commit copies is known only then. Nothing was done to a point that waits: a daemon that dies
//! forgets the queue, and the points are there.

use super::run::{close, one};
use super::text::{self, Measure, Which};
use super::{begin, plan};
use crate::errno::{Errno, Failure};
use crate::model::{Disk, FileId, Job};
use crate::ops::blocking::blocking;
use crate::ops::check::refuse_if_read;
use crate::ops::engine::{DiskGuard, Engine, NextTurn as Turn, Queued};
use crate::ops::migration;
use crate::tree::layer_identity;
use qmpbridge::JobId;
use std::rc::Rc;
use std::time::Duration;

/// How long a queue that a person holds sleeps; a change of it wakes it at once.
const HELD_LOOK: Duration = Duration::from_secs(1);

/// Takes a removal into the queue of a disk at work. None when the work has ended meanwhile.
pub(super) async fn accept(
    engine: &Engine,
    disk: &str,
    which: &Which,
) -> Result<Option<JobId>, Failure> {
    let (shown, leaving) = shown(engine, disk)?;
    let index = which.index_in(&shown).ok_or_else(|| which.missing())?;
    let identity = layer_identity(&shown.layers[index]);
    let name = text::listed_name(&shown, index);
    if let Some(file) = shown.layers[index].file {
        refuse_if_read(engine, file, &name)?;
    }
    let looked_at = shown.clone();
    let facts =
        blocking(move || text::facts(&looked_at, index, Measure::Roughly, &leaving)).await?;
    let plan = plan::choose(&shown, index, &facts, engine.merge_policy())?;
    let job = JobId::fresh("merge")?;

    // from here on nothing waits: another caller may have been here meanwhile
    if !engine.is_merging(disk) {
        return Ok(None);
    }
    let (now, _) = self::shown(engine, disk)?;
    let index = Which::Layer(identity.clone())
        .index_in(&now)
        .ok_or_else(|| which.missing())?;
    let closed = match now.layers[index].file {
        Some(file) => close(engine, plan.verb, file, &name)?,
        None => None,
    };
    let path = text::listed_path(&now, index);
    let shown = Job::new(&job, "merge", &name, "");
    let queued = Queued {
        job,
        identity,
        path,
        speed: None,
        _closed: closed,
    };
    let job = queued.job.clone();
    engine.enqueue(disk, queued, shown);
    Ok(Some(job))
}

/// The disk without the points that leave already, and the files of those.
fn shown(engine: &Engine, disk: &str) -> Result<(Disk, Vec<FileId>), Failure> {
    let model = engine.current();
    let disk = model.disk(disk).ok_or_else(|| {
        Failure::new(Errno::ENOENT, format!("there is no disk '{disk}'"))
            .next("see which there are: ls disks")
    })?;
    let mut rest = disk.clone();
    let kept: Vec<usize> = (0..disk.layers.len())
        .filter(|index| disk.layers[*index].shown())
        .collect();
    let leaving = disk.layers.iter().filter(|layer| !layer.shown());
    let leaving = leaving.filter_map(|layer| layer.file).collect();
    rest.layers.retain(|layer| layer.shown());
    rest.internals.retain_mut(|internal| {
        let Some(holder) = internal.layer else {
            return true;
        };
        internal.layer = kept.iter().position(|index| *index == holder);
        internal.layer.is_some()
    });
    Ok((rest, leaving))
}

/// One after the other, until nothing waits any more. The disk is held all the time.
pub(in crate::ops) async fn go_on(engine: &Rc<Engine>, guard: &DiskGuard) {
    let disk = guard.name();
    let mut any = false;
    loop {
        while let Some(turn) = next(engine, disk).await {
            any = true;
            take_turn(engine, guard, turn).await;
        }
        if any {
            look(engine, guard).await;
        }
        if !engine.has_queue(disk) {
            return engine.rest(guard);
        }
    }
}

/// Whose turn it is; waits while a person holds all that are left.
async fn next(engine: &Engine, disk: &str) -> Option<Turn> {
    let mut changes = engine.work_changes();
    while engine.has_queue(disk) {
        changes.borrow_and_update();
        if let Some(turn) = engine.next_queued(disk) {
            return Some(turn);
        }
        // the sleep only bounds what a bug costs
        let _ = tokio::time::timeout(HELD_LOOK, changes.changed()).await;
    }
    None
}

async fn take_turn(engine: &Rc<Engine>, guard: &DiskGuard, turn: Turn) {
    let disk = guard.name();
    let job = turn.job.as_str();
    stay(engine, disk, job).await;
    let begun = if engine.is_unsettled(disk) {
        Err(Failure::new(
            Errno::EBUSY,
            "the merge before it is not settled yet; nothing was done",
        )
        .next("wait until the log says that the disk is settled, then rmdir again"))
    } else {
        let which = Which::Layer(turn.identity);
        begin(engine, guard, &which, Some(turn.job.clone())).await
    };
    if !engine.is_queued(disk, job) {
        // taken back while it was looked at
        return;
    }
    match begun {
        Ok(merge) => {
            one(engine, guard, merge, None).await;
            // it may have failed before it began
            drop(engine.take_queued(disk, job));
        }
        Err(failure) => {
            let outcome = Err(failure.clone());
            engine
                .log
                .record("merge", &turn.path, 0, &outcome, Duration::ZERO);
            drop(engine.take_queued(disk, job));
            // who waits for the job finds the name back
            look(engine, guard).await;
            engine.end_job(disk, job, Some(&failure));
        }
    }
}

/// While the VM is on its way to another QEMU nobody has a turn. What comes of it decides.
async fn stay(engine: &Engine, disk: &str, job: &str) {
    let mut changes = engine.work_changes();
    while engine.is_queued(disk, job) {
        changes.borrow_and_update();
        let under_way = match engine.bridge() {
            Ok(bridge) => migration::under_way(bridge).await,
            Err(failure) => Err(failure),
        };
        // who cannot be asked refuses what comes next, too
        let Ok(Some(word)) = under_way else {
            return;
        };
        engine.report_once(&format!(
            "disk '{disk}': the removals that wait begin when it is known where the VM stays ({word})"
        ));
        let _ = tokio::time::timeout(HELD_LOOK, changes.changed()).await;
    }
}

/// Nothing is frozen between two merges: the disk is shown as it is.
async fn look(engine: &Engine, guard: &DiskGuard) {
    if let Err(failure) = engine.refresh(&[guard]).await {
        tracing::debug!(%failure, "refresh in a queue");
    }
}
