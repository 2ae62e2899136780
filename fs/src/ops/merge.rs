//! `rmdir disks/D/snapshots/N`: a block-stream or block-commit, and afterwards the names put right.
//! The call returns when QEMU has accepted the job, or the queue behind another one has; the rest
//! runs on, holding the disk, and is what `recover` takes up again after a kill. All other points stay readable through maps of the
//! chain made before the job (`LayerCache::pin`).

pub(super) mod finish;
pub mod plan;
mod queue;
mod run;
mod steps;
mod text;

pub(super) use queue::go_on;
pub(super) use run::run;
pub(super) use text::Which;
pub use text::plan_text;

use super::Answer;
use super::check;
use super::engine::{Alone, DiskGuard, Engine, Turn};
use super::migration;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, MergeJournal};
use crate::model::{Disk, Job, Layer, PointRecord};
use crate::tree::layer_identity;
use plan::{Plan, Verb, above};
use qmpbridge::{JobId, NodeName};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Whether a merge that was begun with this verb has left the point's own state undefined.
pub(crate) fn mixes(verb: &str) -> bool {
    matches!(
        Verb::from_word(verb),
        Some(Verb::Commit | Verb::CommitActive)
    )
}

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
    migration::refuse(engine.bridge()?).await?;
    let disk = engine.observe_disk(guard).await?;
    check::refuse_if_replaced(&disk)?;
    let index = which.index_in(&disk).ok_or_else(|| which.missing())?;
    let name = &text::listed_name(&disk, index);
    let here = &disk.layers[index];
    let file = check::file_of(here)?;
    let neighbours = [index.checked_sub(1), index.checked_add(1)];
    let neighbours = neighbours.into_iter().flatten();
    let neighbours = neighbours.filter_map(|index| disk.layers.get(index));
    check::refuse_if_mixed(&disk.name, neighbours)?;
    check::refuse_if_read(engine, file, name)?;
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
        None => JobId::fresh(verb.word())?,
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
        moving: false,
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
    Ok(check::file_of(up)?.ino)
}

pub(super) fn entry(merge: &Merge, state: &str) -> Job {
    let point = &merge.journal.point.name;
    Job::new(&merge.job, merge.verb.job(), point, state)
}

fn node(name: Option<&NodeName>) -> Result<NodeName, Failure> {
    name.cloned().ok_or_else(|| {
        Failure::new(Errno::ENOTCONN, "the layer has no node in QEMU")
            .next("look again: ls disks; another tool may have changed it in this moment")
    })
}
