//! A merge from its first step to its last: the job is begun and followed, an active commit is brought
//! over its READY, and whatever was queued behind it comes next.

use super::plan::Verb;
use super::steps::{self, Stage};
use super::{Merge, entry, finish, node, queue, text};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::leases::Closed;
use crate::model::FileId;
use crate::ops::Answer;
use crate::ops::backup::bitmaps;
use crate::ops::blocking::blocking;
use crate::ops::check;
use crate::ops::engine::{DiskGuard, Engine};
use crate::ops::migration;
use crate::ops::nodes::Carried;
use crate::view::LayerSpec;
use qmpbridge::{Bridge, Cancel, JobHandle};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a running job's progress is looked at.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Between two looks whether D can be given to the new active layer.
const PIVOT_RETRY: Duration = Duration::from_secs(1);

/// So long: then who waits for the job is told, and it is begun again a little later.
const PIVOT_PATIENCE: Duration = Duration::from_secs(20);

/// Runs a merge and whatever was queued behind it meanwhile.
pub(in crate::ops) async fn run(
    engine: Rc<Engine>,
    guard: DiskGuard,
    merge: Merge,
    answer: Option<Answer<()>>,
) {
    one(&engine, &guard, merge, answer).await;
    queue::go_on(&engine, &guard).await;
}

/// Runs a merge from its first step to its last. Also how recovery takes one up again: every step
/// looks first whether it was done.
pub(super) async fn one(
    engine: &Rc<Engine>,
    guard: &DiskGuard,
    mut merge: Merge,
    answer: Option<Answer<()>>,
) {
    let path = text::listed_path(&merge.disk, merge.index);
    let mut answer = Once(answer);
    let started = Instant::now();
    let outcome = work(engine, guard, &mut merge, &mut answer).await;
    let failed = outcome.as_ref().err().cloned();
    let accepted = answer.used();
    if accepted {
        // a refusal is told as the answer of the rmdir
        engine
            .log
            .record("merge", &path, 0, &outcome, started.elapsed());
    }
    if let Some(failure) = &failed {
        answer.give(Err(failure.clone()));
    }
    let unsettled = failed
        .as_ref()
        .is_some_and(|failure| !failure.outcome_known());
    engine
        .thaw(guard, merge.job.as_str(), failed.filter(|_| accepted))
        .await;
    if unsettled {
        engine.settle_later(guard.name());
    }
}

async fn work(
    engine: &Rc<Engine>,
    guard: &DiskGuard,
    merge: &mut Merge,
    answer: &mut Once,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let chain: Vec<LayerSpec> = merge
        .disk
        .layers
        .iter()
        .filter(|layer| layer.file.is_some())
        .map(LayerSpec::from)
        .collect();
    let cache = engine.cache.clone();
    let runs = bridge.jobs().await?.iter().any(|job| job.id == merge.job);
    let source = (runs && merge.verb == Verb::Commit)
        .then(|| merge.up().file)
        .flatten();
    // held until the new chain is shown: what is opened meanwhile reads the chain as it was
    let pin = blocking(move || cache.pin(&chain, source)).await?;
    let mut pause = false;
    if merge.queued {
        // nothing waits between this and the freeze, which hides the point in the queue's place
        let job = engine.job(guard.name(), merge.job.as_str());
        pause = job.is_some_and(|job| job.state == "paused");
        let queued = engine
            .take_queued(guard.name(), merge.job.as_str())
            .ok_or_else(|| Failure::new(Errno::ENOENT, "taken back before it began"))?;
        merge.speed = queued.speed;
    }
    engine.freeze(
        guard,
        &merge.disk,
        merge.index,
        entry(merge, "created"),
        pin,
    );
    // it may have been opened since the plan was made; from here on nobody finds it, nor opens a guest's file of it
    let name = &merge.journal.point.name;
    let closed = match merge.here().file {
        Some(file) => match close(engine, merge.verb, file, name) {
            Err(open) if !merge.resumed => return Err(open),
            closed => closed.unwrap_or(None),
        },
        None => None,
    };
    let carried = engine.carried(&merge.disk);
    if let Err(failure) = layer_file::write_merge(merge.journal_path(), &merge.journal) {
        if !merge.resumed {
            forget(engine, guard, merge);
        }
        return Err(failure);
    }
    let started = match steps::start(engine, bridge, merge, &carried).await {
        Ok(started) => started,
        Err(failure) => {
            if failure.outcome_known() && (merge.point_intact() || !merge.resumed) {
                // refused before a byte was copied: the point is what it was
                forget(engine, guard, merge);
            }
            return Err(failure);
        }
    };
    answer.give(Ok(()));
    if let Some(speed) = merge.speed
        && let Err(error) = bridge.set_job_speed(&merge.job, speed).await
    {
        tracing::debug!(%error, "speed of a queued job");
    }
    if pause && let Err(error) = bridge.pause_job(&merge.job).await {
        tracing::debug!(%error, "pause of a queued job");
    }
    let outcome = follow(engine, guard, merge, started).await;
    if outcome.is_err() && merge.journal.resume {
        // the pivot did not happen; the guest goes on where it stood
        engine.let_go_on().await?;
        merge.journal.resume = false;
    }
    if !matches!(&outcome, Err(failure) if failure.errno == Errno::ENOTCONN) {
        // a concluded commit still holds its nodes; a stream has dismissed itself
        let _ = bridge.dismiss_job(&merge.job).await;
    }
    match outcome {
        Ok(()) => {
            // what its file holds now is another point, which may be read
            drop(closed);
            let finished = put_right(engine, bridge, merge, &carried).await;
            if finished.is_err() {
                // QEMU has done its part: names are put right as soon as that is possible
                engine.settle_later(guard.name());
            }
            finished
        }
        Err(failure) => {
            if failure.outcome_known() && merge.point_intact() {
                // a stream that failed or was cancelled
                forget(engine, guard, merge);
            }
            Err(failure)
        }
    }
}

/// The nodes and names after the job. What leaves the chain may be open in a QEMU that the VM is just moving to; but
/// after a pivot the guest stands still for its disk's name.
async fn put_right(
    engine: &Engine,
    bridge: &Bridge,
    merge: &Merge,
    carried: &Carried,
) -> Result<(), Failure> {
    if merge.verb != Verb::CommitActive {
        migration::refuse(bridge).await?;
    }
    finish::after(engine, bridge, merge, carried).await
}

/// Lets nobody open what goes. Somebody else's layer stays as it is, and other disks may stand on it.
pub(super) fn close(
    engine: &Engine,
    verb: Verb,
    file: FileId,
    name: &str,
) -> Result<Option<Closed>, Failure> {
    match verb {
        Verb::Release => check::refuse_if_read(engine, file, name).map(|()| None),
        Verb::Stream | Verb::Commit | Verb::CommitActive => {
            check::close(engine, check::state_of(file), &format!("'{name}'")).map(Some)
        }
    }
}

/// A merge that leaves everything as it was is written down no more, at the latest when the file can be written again.
fn forget(engine: &Engine, guard: &DiskGuard, merge: &Merge) {
    if let Err(failure) = layer_file::clear_merge(merge.journal_path()) {
        tracing::warn!(%failure, "a mark stays behind for now");
        engine.remember_refused(merge.job.as_str());
        engine.settle_later(guard.name());
    }
}

/// Waits for the job, showing its progress; brings an active commit over its READY.
async fn follow(
    engine: &Rc<Engine>,
    guard: &DiskGuard,
    merge: &mut Merge,
    mut job: JobHandle,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let rehearsal = layer_file::alias_path(&merge.disk.active_path);
    let mut waits = None;
    let mut durable = false;
    let mut finalizes = merge.verb.job() != "stream";
    loop {
        let stage = tokio::select! {
            stage = steps::next_stage(&mut job, finalizes) => match stage {
                Ok(stage) => stage,
                // it ended while nobody listened: the graph tells how
                Err(qmpbridge::Error::JobVanished { .. }) if steps::point_left(engine, merge).await? => return Ok(()),
                Err(error) => return Err(error.into()),
            },
            () = tokio::time::sleep(PROGRESS_EVERY) => {
                engine.show_progress(guard.name(), merge.job.as_str()).await;
                continue;
            }
        };
        let (what, not_yet) = match stage {
            Stage::Concluded => return Ok(()),
            Stage::Copied => {
                if !durable {
                    make_durable(engine, merge, &mut job).await?;
                    durable = true;
                }
                match not_while_it_moves(bridge).await? {
                    None => {
                        finalizes = true;
                        continue;
                    }
                    Some(failure) => ("the merge cannot end yet", failure),
                }
            }
            Stage::Ready => {
                engine.show_progress(guard.name(), merge.job.as_str()).await;
                let not_yet = match steps::rehearse(merge, &rehearsal).await {
                    Err(failure) => failure.next("make that directory writable: the VM runs on, and the merge goes on by itself"),
                    Ok(()) => match not_while_it_moves(bridge).await? {
                        Some(failure) => failure,
                        None if !engine.begin_pivot(guard.name(), &merge.job).await? => {
                            // a person holds it: the guest is not stopped for a pivot that does not come
                            tokio::time::sleep(PROGRESS_EVERY).await;
                            continue;
                        }
                        None => match pivot(engine, merge, &mut job).await? {
                            Pivot::Done => return Ok(()),
                            Pivot::Refused(failure) => {
                                engine.end_pivot(guard.name());
                                failure.next("the VM runs on, and the merge goes on by itself as soon as QEMU lets it")
                            }
                        },
                    },
                };
                ("the VM cannot be moved yet", not_yet)
            }
        };
        if *waits.get_or_insert_with(Instant::now) + PIVOT_PATIENCE < Instant::now() {
            return Err(not_moved(engine, guard, merge, &mut job, not_yet).await?);
        }
        engine.report_once(&format!("disk '{}': {what}: {not_yet}", guard.name()));
        tokio::time::sleep(PIVOT_RETRY).await;
    }
}

/// What a stream has copied, on stable storage; a stream that cannot have that ends.
async fn make_durable(engine: &Engine, merge: &Merge, job: &mut JobHandle) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let Err(failure) = steps::make_durable(engine, bridge, merge).await else {
        return Ok(());
    };
    if failure.outcome_known() {
        // before its last step it has changed nothing
        bridge.cancel_job(&merge.job, Cancel::Force).await?;
        let _ = job.wait_concluded().await;
    }
    Err(failure)
}

/// Why the chain stays as it is for now: another QEMU is about to have the VM, or has it.
async fn not_while_it_moves(bridge: &Bridge) -> Result<Option<Failure>, Failure> {
    match migration::refuse(bridge).await {
        Ok(()) => Ok(None),
        Err(failure) if failure.outcome_known() => Ok(Some(failure)),
        Err(failure) => Err(failure),
    }
}

/// What came of moving the VM.
enum Pivot {
    Done,
    /// QEMU would not stop the guest, or not end the job: the guest runs as before.
    Refused(Failure),
}

/// Stops the guest and has the job end with it on the new active layer.
async fn pivot(
    engine: &Rc<Engine>,
    merge: &mut Merge,
    job: &mut JobHandle,
) -> Result<Pivot, Failure> {
    let bridge = engine.bridge()?;
    let (upper, lower) = (
        node(merge.up().node.as_ref())?,
        node(merge.here().node.as_ref())?,
    );
    if let Err(failure) = bitmaps::before_pivot(bridge, &upper, &lower).await {
        if !failure.outcome_known() {
            return Err(failure);
        }
        engine.log.note(&format!(
            "disk '{}': the dirty bitmaps of backups go with the layer that is committed ({failure}): the next incremental backup copies the whole disk",
            merge.disk.name
        ));
    }
    let told = match steps::stop_before_pivot(engine, merge).await {
        Err(failure) => Err(failure),
        Ok(()) => complete(bridge, merge).await,
    };
    match told {
        Ok(()) => {
            job.wait_concluded().await?;
            Ok(Pivot::Done)
        }
        Err(failure) if failure.outcome_known() => {
            steps::go_on_before_pivot(engine, merge).await?;
            if let Err(left) = bitmaps::after_no_pivot(bridge, &lower).await {
                tracing::debug!(%left, "bitmaps stay on a layer below for now");
            }
            Ok(Pivot::Refused(failure))
        }
        Err(failure) => Err(failure),
    }
}

/// Has the job end with the guest on the layer that was committed into.
async fn complete(bridge: &Bridge, merge: &Merge) -> Result<(), Failure> {
    // what was begun elsewhere meanwhile
    migration::refuse(bridge).await?;
    match bridge.complete_job(&merge.job).await {
        // a slow QEMU still does it: the guest waits until that is known
        Err(qmpbridge::Error::TimedOut { .. }) => Ok(()),
        told => told.map_err(Failure::from),
    }
}

/// Ends a job that could move the VM, and must not: nothing is changed by that but time lost.
async fn not_moved(
    engine: &Rc<Engine>,
    guard: &DiskGuard,
    merge: &Merge,
    job: &mut JobHandle,
    failure: Failure,
) -> Result<Failure, Failure> {
    let bridge = engine.bridge()?;
    bridge.cancel_job(&merge.job, Cancel::Force).await?;
    let _ = job.wait_concluded().await;
    if !merge.point_intact() {
        // it is begun again
        engine.settle_later(guard.name());
    }
    Ok(failure)
}

/// The answer of the system call: given once, whatever happens.
struct Once(Option<Answer<()>>);

impl Once {
    fn give(&mut self, outcome: Result<(), Failure>) {
        if let Some(answer) = self.0.take() {
            answer(outcome);
        }
    }

    fn used(&self) -> bool {
        self.0.is_none()
    }
}
