//! `rmdir disks/D/snapshots/N`: a block-stream or block-commit, and afterwards the names put right.
//! The call returns when QEMU has accepted the job, or the queue behind another one has; the rest
//! runs on, holding the disk, and is what `recover` takes up again after a kill. All other points stay readable through maps of the
//! chain made before the job (`LayerCache::pin`).

pub mod plan;
mod queue;
pub(super) mod steps;
mod text;

pub(super) use text::Which;
pub use text::plan_text;

use super::Answer;
use super::engine::{Alone, DiskGuard, Engine, Turn};
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, MergeJournal};
use crate::model::{Disk, FileId, Job, Layer, PointRecord};
use crate::tree::layer_identity;
use crate::view::LayerSpec;
use plan::{Plan, Verb, above};
use qmpbridge::{Cancel, JobHandle, JobId};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use steps::Stage;

/// Whether a merge that was begun with this verb has left the point's own state undefined.
pub(crate) fn mixes(verb: &str) -> bool {
    matches!(
        Verb::from_word(verb),
        Some(Verb::Commit | Verb::CommitActive)
    )
}

/// How often a running job's progress is looked at.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Between two looks whether D can be given to the new active layer.
const PIVOT_RETRY: Duration = Duration::from_secs(1);

/// So long: then who waits for the job is told, and it is begun again a little later.
const PIVOT_PATIENCE: Duration = Duration::from_secs(20);

/// Everything a merge needs to know, taken before it starts.
pub(super) struct Merge {
    pub(super) disk: Disk,
    pub(super) index: usize,
    pub(super) verb: Verb,
    /// Bytes to copy, at most.
    pub(super) copy: u64,
    pub(super) job: JobId,
    pub(super) journal: MergeJournal,
    /// Begun by an earlier daemon or before QEMU died.
    pub(super) resumed: bool,
    /// From before the pivot on: nobody else stops the guest, or lets it go on.
    pub(super) alone: Option<Alone>,
    /// It stood in the queue, and may be taken back until it begins.
    queued: bool,
    /// Bytes a second, if somebody said so while it waited.
    speed: Option<u64>,
}

impl Merge {
    /// One that was begun by an earlier daemon or before QEMU died.
    pub(super) fn resumed(
        disk: Disk,
        index: usize,
        verb: Verb,
        job: JobId,
        journal: MergeJournal,
    ) -> Self {
        Merge {
            disk,
            index,
            verb,
            // nobody asks any more
            copy: 0,
            job,
            journal,
            resumed: true,
            alone: None,
            queued: false,
            speed: None,
        }
    }

    /// Whether the point still is what it was as long as its layer is in the chain: nothing was
    /// begun, or only a stream, which changes no state of any layer.
    fn point_intact(&self) -> bool {
        !mixes(&self.journal.verb)
    }

    pub(super) fn here(&self) -> &Layer {
        &self.disk.layers[self.index]
    }

    pub(super) fn up(&self) -> &Layer {
        above(&self.disk, self.index)
    }

    /// The layer whose file grows.
    pub(super) fn target(&self) -> &Layer {
        match self.verb {
            Verb::Stream | Verb::Release => self.up(),
            Verb::Commit | Verb::CommitActive => self.here(),
        }
    }

    pub(super) fn below(&self) -> Option<&Layer> {
        self.index
            .checked_sub(1)
            .map(|below| &self.disk.layers[below])
    }

    /// The file that says what is under way: the point's own, or, where that is somebody else's,
    /// the one above.
    pub(super) fn journal_path(&self) -> &Path {
        match self.verb {
            Verb::Stream | Verb::Commit | Verb::CommitActive => &self.here().path,
            Verb::Release => &self.up().path,
        }
    }

    /// S of the point that goes.
    pub(super) fn sealed_path(&self) -> PathBuf {
        layer_file::sealed_path(&self.disk.active_path, &self.journal.point.name)
    }
}

/// A removal that was looked at, and may begin.
pub(super) enum Ready {
    /// At once.
    Now(DiskGuard, Box<Merge>),
    /// After the merge that is at work: it stands in the queue, as this job.
    Queued(JobId),
}

/// Removes a point. `answer` is called once QEMU has accepted the job, or the queue, or has not.
pub async fn remove(engine: Rc<Engine>, disk: &str, which: Which, answer: Answer<()>) {
    match ready(&engine, disk, &which).await {
        Ok(Ready::Now(guard, merge)) => run(engine, guard, *merge, Some(answer)).await,
        Ok(Ready::Queued(_)) => answer(Ok(())),
        Err(failure) => answer(Err(failure)),
    }
}

/// Everything that can be refused before anything is done.
pub(super) async fn ready(engine: &Engine, disk: &str, which: &Which) -> Result<Ready, Failure> {
    loop {
        match engine.turn(disk).await? {
            Turn::Now(guard) => {
                let merge = begin(engine, &guard, which, None).await?;
                return Ok(Ready::Now(guard, Box::new(merge)));
            }
            Turn::AtWork => {
                // without a job what was at work has ended meanwhile
                if let Some(job) = queue::accept(engine, disk, which).await? {
                    return Ok(Ready::Queued(job));
                }
            }
        }
    }
}

/// Looks at the disk and decides. A queued point keeps the job it is shown by.
async fn begin(
    engine: &Engine,
    guard: &DiskGuard,
    which: &Which,
    job: Option<JobId>,
) -> Result<Merge, Failure> {
    let disk = engine.observe_disk(guard).await?;
    let index = which.index_in(&disk).ok_or_else(|| which.missing())?;
    let name = &text::listed_name(&disk, index);
    let here = &disk.layers[index];
    let file = here.file.ok_or_else(|| {
        Failure::new(
            Errno::EOPNOTSUPP,
            format!("{} cannot be seen from here", here.path.display()),
        )
        .next("run qmpfs where QEMU's paths lead to the same files: on its host, in its container")
    })?;
    refuse_if_read(engine, file, name)?;
    let facts_of = disk.clone();
    let measure = text::Measure::Exactly;
    let facts =
        super::blocking::blocking(move || text::facts(&facts_of, index, measure, &[])).await?;
    let Plan {
        verb,
        copy,
        because,
    } = plan::choose(&disk, index, &facts, engine.merge_policy())?;
    let up = above(&disk, index);
    let mut point = here.record.clone().unwrap_or_else(|| PointRecord {
        id: layer_identity(here),
        name: name.clone(),
        inode: file.ino,
        ..PointRecord::default()
    });
    // it stands on the file itself, and there is not much room for attributes
    point.group = None;
    let (inode, below) = match verb {
        Verb::Stream | Verb::Commit | Verb::CommitActive => {
            let below = index.checked_sub(1).map(|below| &disk.layers[below]);
            (file.ino, below.map(|below| below.path.clone()))
        }
        Verb::Release => (released_into(up)?, Some(here.path.clone())),
    };
    let queued = job.is_some();
    let job = match job {
        Some(job) => job,
        None => JobId::fresh(verb.word())
            .map_err(|error| Failure::new(Errno::EIO, error.to_string()))?,
    };
    tracing::info!(
        disk = disk.name,
        point = name,
        verb = verb.word(),
        because,
        "merge"
    );
    let journal = MergeJournal {
        version: 1,
        verb: verb.word().into(),
        job: job.as_str().into(),
        point,
        // of the active layer the name QEMU knows: an alias that has to go after the pivot
        upper: up.path.clone(),
        upper_record: up.record.clone(),
        below,
        resume: false,
        inode,
    };
    Ok(Merge {
        disk,
        index,
        verb,
        copy,
        job,
        journal,
        resumed: false,
        alone: None,
        queued,
        speed: None,
    })
}

/// The inode of the layer above, which must have no merge of its own written down.
fn released_into(up: &Layer) -> Result<u64, Failure> {
    if layer_file::read_merge(&up.path)?.is_some() {
        return Err(Failure::new(
            Errno::EBUSY,
            format!(
                "{} is part of a merge that has not ended",
                up.path.display()
            ),
        )
        .next("restart the VM, or take a snapshot, and try again"));
    }
    up.file.map(|file| file.ino).ok_or_else(|| {
        Failure::new(
            Errno::EOPNOTSUPP,
            format!("{} cannot be seen from here", up.path.display()),
        )
        .next("run qmpfs where QEMU's paths lead to the same files: on its host, in its container")
    })
}

fn refuse_if_read(engine: &Engine, file: FileId, name: &str) -> Result<(), Failure> {
    let readers = engine.leases.readers(file);
    let Some(reader) = readers.first() else {
        return Ok(());
    };
    Err(Failure::new(
        Errno::EBUSY,
        format!(
            "'{name}' is open: pid {}{}",
            reader.pid,
            more(readers.len())
        ),
    )
    .next(format!("close it (ps -p {}), then rmdir again", reader.pid)))
}

fn more(readers: usize) -> String {
    if readers > 1 {
        format!(" and {} more", readers - 1)
    } else {
        String::new()
    }
}

/// Runs a merge and whatever was queued behind it meanwhile.
pub(super) async fn run(
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
async fn one(engine: &Rc<Engine>, guard: &DiskGuard, mut merge: Merge, answer: Option<Answer<()>>) {
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
    let pin = super::blocking::blocking(move || cache.pin(&chain, source)).await?;
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
    if let Some(file) = merge.here().file.filter(|_| !merge.resumed) {
        // it may have been opened since the plan was made; from here on nobody finds it
        refuse_if_read(engine, file, &merge.journal.point.name)?;
    }
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
        engine.resume_guest().await?;
        merge.journal.resume = false;
    }
    if !matches!(&outcome, Err(failure) if failure.errno == Errno::ENOTCONN) {
        // a concluded commit still holds its nodes; a stream has dismissed itself
        let _ = bridge.dismiss_job(&merge.job).await;
    }
    match outcome {
        Ok(()) => {
            let finished = steps::finish(engine, bridge, merge, &carried).await;
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
    let mut ready = None;
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
        match stage {
            Stage::Copied => {
                if let Err(failure) = steps::make_durable(engine, bridge, merge).await {
                    if failure.outcome_known() {
                        // before its last step it has changed nothing
                        bridge.cancel_job(&merge.job, Cancel::Force).await?;
                        let _ = job.wait_concluded().await;
                    }
                    return Err(failure);
                }
                finalizes = true;
            }
            Stage::Concluded => return Ok(()),
            Stage::Ready => {
                engine.show_progress(guard.name(), merge.job.as_str()).await;
                let not_yet = match steps::rehearse(merge, &rehearsal).await {
                    Err(failure) => failure.next("make that directory writable: the VM runs on, and the merge goes on by itself"),
                    Ok(()) if !engine.begin_pivot(guard.name(), &merge.job).await? => {
                        // a person holds it: the guest is not stopped for a pivot that does not come
                        tokio::time::sleep(PROGRESS_EVERY).await;
                        continue;
                    }
                    Ok(()) => match pivot(engine, merge, &mut job).await? {
                        Pivot::Done => return Ok(()),
                        Pivot::Refused(failure) => {
                            engine.end_pivot(guard.name());
                            failure.next("the VM runs on, and the merge goes on by itself as soon as QEMU lets it")
                        }
                    },
                };
                if *ready.get_or_insert_with(Instant::now) + PIVOT_PATIENCE < Instant::now() {
                    return Err(not_moved(engine, guard, merge, &mut job, not_yet).await?);
                }
                engine.report_once(&format!(
                    "disk '{}': the VM cannot be moved yet: {not_yet}",
                    guard.name()
                ));
                tokio::time::sleep(PIVOT_RETRY).await;
            }
        }
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
    let told = match steps::stop_before_pivot(engine, merge).await {
        Err(failure) => Err(failure),
        Ok(()) => match bridge.complete_job(&merge.job).await {
            // a slow QEMU still does it: the guest waits until that is known
            Err(qmpbridge::Error::TimedOut { .. }) => Ok(()),
            told => told.map_err(Failure::from),
        },
    };
    match told {
        Ok(()) => {
            job.wait_concluded().await?;
            Ok(Pivot::Done)
        }
        Err(failure) if failure.outcome_known() => {
            steps::go_on_before_pivot(engine, merge).await?;
            Ok(Pivot::Refused(failure))
        }
        Err(failure) => Err(failure),
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
    engine.settle_later(guard.name());
    Ok(failure)
}

pub(super) fn entry(merge: &Merge, state: &str) -> Job {
    Job {
        id: merge.job.as_str().into(),
        verb: merge.verb.job().into(),
        point: merge.journal.point.name.clone(),
        state: state.into(),
        progress: (0, 0),
        rate: None,
        limit: None,
        error: None,
    }
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
