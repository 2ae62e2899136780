//! A backup from its instant to its end: its progress is shown, room is kept ahead of it, and when QEMU
//! has copied all the file gets its name. It holds the disk all the time; merges wait in the queue.

use super::room::State;
use super::{Making, below, end_mark, fleece, mirror, recover, remove, target, together, undo};
use crate::backups::{Stage, Unfinished};
use crate::errno::{Errno, Failure};
use crate::model::BackupKind;
use crate::ops::blocking::blocking;
use crate::ops::engine::{Cancelled, Engine};
use crate::ops::merge;
use qmpbridge::{Bridge, Cancel, JobHandle};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a running job is looked at: `room::AHEAD` lasts longer.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Brings a backup to its end, and then does what was queued behind it. Without a job its copy is complete already.
pub(super) async fn run(engine: Rc<Engine>, mut making: Making, job: Option<JobHandle>) {
    let (disk, path) = (making.guard.name().to_owned(), making.path());
    let started = Instant::now();
    let outcome = work(&engine, &mut making, job).await;
    // a cancelled one has not failed: it was taken back
    let cancelled = engine.cancelled(&disk) != Cancelled::No;
    let told = match &outcome {
        Err(_) if cancelled => Err(Failure::new(Errno::EIO, "cancelled, and taken back")),
        other => other.clone(),
    };
    engine
        .log
        .record(making.verb(), &path, 0, &told, started.elapsed());
    let id = making.journal.manifest.id.clone();
    engine.backups_changed(&disk);
    let well = outcome.is_ok() || cancelled;
    if well {
        engine.hide_backup(&disk, &id);
    }
    // who waits for it finds the tree as it is after it
    let failed = outcome.err();
    let job = making.job.as_str().to_owned();
    engine.thaw(&making.guard, &job, failed.clone()).await;
    if failed.is_some_and(|failure| !failure.outcome_known()) {
        engine.settle_later(&disk);
    }
    merge::go_on(&engine, &making.guard).await;
    drop(making);
    if well {
        // one that failed, and waited for this
        recover::go_on_with_a_merge(&engine, &disk).await;
    }
}

async fn work(
    engine: &Rc<Engine>,
    making: &mut Making,
    job: Option<JobHandle>,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    if let Err(failure) = clear_end_mark(bridge, making).await {
        // it is tried again when the file's nodes go
        tracing::debug!(%failure, "what an end mark was made with is still there");
    }
    let copied = match job {
        Some(job) => copy(engine, bridge, making, job).await,
        None => Ok(()),
    };
    let complete = match copied {
        Ok(()) => together::all_copied(engine, bridge, making).await,
        Err(failure) => Err(match making.journal.manifest.group {
            None => failure,
            Some(_) => failure
                .next("backups of all disks end together: see the other disks' in the log, too"),
        }),
    };
    match complete {
        // what is complete gets its name as soon as it can
        Ok(()) => {
            let name = making.journal.manifest.name.clone();
            finish(engine, bridge, making).await.inspect_err(|_| {
                engine.try_later(
                    making.guard.name(),
                    &format!("the copy of the backup '{name}' is complete; that it gets its name is tried again until it has it"),
                );
            })
        }
        Err(failure) => {
            if failure.outcome_known() {
                together::end_others(bridge, &making.journal.manifest).await;
                // first: with its file open and without its job it would be begun again
                below::abandon(engine, bridge, making).await;
                bridge.dismiss_job(&making.job).await?;
                undo(engine, bridge, making).await;
            }
            Err(failure)
        }
    }
}

/// The mark is on the disk now.
async fn clear_end_mark(bridge: &Bridge, making: &Making) -> Result<(), Failure> {
    end_mark::clear(bridge, &bridge.graph().await?, &making.journal.manifest.id).await
}

/// Until all of it is copied and written down: its own file, and what that is to stand on.
async fn copy(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
    job: JobHandle,
) -> Result<(), Failure> {
    let own = making.journal.stage == Stage::Running;
    let ended = copied(engine, bridge, making, job).await;
    fleece::confirm(bridge, &making.journal, ended).await?;
    if own && let Some(job) = below::begin(engine, bridge, making).await? {
        copied(engine, bridge, making, job).await?;
    }
    below::put_away(engine, bridge, making).await?;
    write_copied(engine, bridge, making).await
}

/// Waits until a job has copied all.
async fn copied(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
    mut job: JobHandle,
) -> Result<(), Failure> {
    let disk = making.guard.name().to_owned();
    let id = making.job.clone();
    let mut held = false;
    let mut slowed = false;
    loop {
        tokio::select! {
            ended = job.wait_concluded() => return ended.map_err(Failure::from),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        engine.show_progress(&disk, id.as_str()).await;
        if engine.cancelled(&disk) == Cancelled::Yes {
            // told when QEMU had no job that takes the word
            ignore_if_ended(bridge.cancel_job(&id, Cancel::Force).await)?;
        }
        match look_at_room(making).await? {
            State::Enough if held => {
                held = false;
                engine.explain_job(&disk, id.as_str(), None);
                engine.log.note(&format!(
                    "disk '{disk}': there is room again; the backup goes on"
                ));
                if !engine.asked_to_wait(&disk) {
                    ignore_if_ended(bridge.resume_job(&id).await)?;
                }
            }
            State::Enough if slowed => {
                slowed = false;
                let speed = engine.backup_speed(&disk).unwrap_or(0);
                ignore_if_ended(bridge.set_job_speed(&id, speed).await)?;
            }
            State::Enough => {}
            State::Slow(speed) => {
                slowed = true;
                let asked = engine.backup_speed(&disk).unwrap_or(u64::MAX);
                ignore_if_ended(bridge.set_job_speed(&id, speed.min(asked)).await)?;
            }
            State::Short => {
                let paused = bridge
                    .jobs()
                    .await?
                    .iter()
                    .any(|job| job.id == id && job.paused);
                if !paused {
                    ignore_if_ended(bridge.pause_job(&id).await)?;
                }
                if !held {
                    held = true;
                    let why = format!(
                        "the backup directory {} is nearly full: the backup is held; make room there, and it goes on by itself (or: rmdir disks/{disk}/jobs/{id})",
                        making.place.directory().display()
                    );
                    engine.explain_job(&disk, id.as_str(), Some(&why));
                    engine.log.note(&format!("disk '{disk}': {why}"));
                }
            }
            State::Removed => {
                ignore_if_ended(bridge.cancel_job(&id, Cancel::Force).await)?;
                // however it ends, nobody can have what was copied
                let _ = job.wait_concluded().await;
                return Err(Failure::new(
                    Errno::EIO,
                    format!(
                        "somebody removed the file from {} while it was written",
                        making.place.directory().display()
                    ),
                )
                .next("see what tidies that directory up, then make the backup again"));
            }
            State::None => {
                bridge.cancel_job(&id, Cancel::Force).await?;
                let _ = job.wait_concluded().await;
                return Err(Failure::new(
                    Errno::ENOSPC,
                    format!(
                        "the backup directory {} is full: the backup was ended before the guest could meet that",
                        making.place.directory().display()
                    ),
                )
                .next("make room there, and make the backup again"));
            }
        }
    }
}

/// One that ended between the look and the word is what we want.
fn ignore_if_ended(told: Result<(), qmpbridge::Error>) -> Result<(), Failure> {
    match told {
        Ok(()) | Err(qmpbridge::Error::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Room is looked after beside the engine: the filesystem may be slow.
async fn look_at_room(making: &mut Making) -> Result<State, Failure> {
    let Some(mut room) = making.room.take() else {
        return Ok(State::Enough);
    };
    let (room, state) = blocking(move || {
        let state = room.tend();
        Ok((room, state))
    })
    .await?;
    making.room = Some(room);
    Ok(state)
}

/// The copy is complete: that is written down before QEMU forgets the job, and after all of it is in the file.
pub(super) async fn write_copied(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<(), Failure> {
    making.room = None;
    let Unfinished { id, path } = making.journal.own(&making.place);
    target::put_away(engine, bridge, &path, &id).await?;
    if let Err(failure) = fleece::end(bridge, &making.journal).await {
        // it costs the guest a little until the file has its name
        tracing::debug!(%failure, "what the guest writes over is still saved");
    }
    if making.journal.manifest.kind == BackupKind::Mirror {
        // its instant is its end
        making.journal.manifest.time = mirror::instant(engine, making).await?;
    }
    making.journal.stage = Stage::Copied;
    let (journal, place) = (making.journal.clone(), making.place.clone());
    blocking(move || journal.write(&place)).await
}

/// And then the file is named.
pub(super) async fn finish(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<(), Failure> {
    bridge.dismiss_job(&making.job).await?;
    if let Err(failure) = fleece::end(bridge, &making.journal).await {
        // the next mount takes it down
        tracing::warn!(%failure, "what the guest writes over is still saved");
    }
    for Unfinished { id, path } in making.journal.unfinished(&making.place) {
        target::release(engine, bridge, &path, &id).await?;
    }
    let (mut journal, place) = (making.journal.clone(), making.place.clone());
    blocking(move || journal.finish(&place)).await?;
    // those of older backups have done their duty; what cannot be removed is no harm
    if let Err(failure) = remove::drop_older_bitmaps(engine, bridge, making).await {
        tracing::warn!(%failure, "a dirty bitmap stays behind");
    }
    Ok(())
}
