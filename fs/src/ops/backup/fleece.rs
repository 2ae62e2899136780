//! Backups with `-o fleecing`: the guest waits for a scratch file, and never for the backup directory. Before the instant
//! QEMU gets a node on the disk that shows what an instant held (`snapshot-access`). At the instant one job begins to save
//! what the guest writes over (`blockdev-backup sync=none`), and the backup's own job copies from that node.
//! Invariants: the scratch has room for all before the instant; the backup's job ends first, then the node, then what saves.
//! A backup of the top layer is not made so: that node has no layers.

use crate::backups::Journal;
use crate::errno::{Errno, Failure};
use crate::model::{BackupKind, Disk};
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::scratch::{self, Called};
use crate::ops::settle;
use crate::sys;
use qmpbridge::command::{
    Backing, BitmapSource, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockdevAdd,
    BlockdevOptions, TransactionAction,
};
use qmpbridge::{Bridge, JobId, JobInfo, JobStatus, NodeName};
use std::path::PathBuf;

/// What its nodes and its job are called, before the backup's id.
const OURS: &str = "qmpfs-fleece-";
/// The bitmap of what is to be copied, as it was at the instant.
const TAG: &str = "copied";

/// Whether a node belongs to one, and is no disk.
pub(in crate::ops) fn is_node(node: &NodeName) -> bool {
    node.as_str().starts_with(OURS)
}

fn called(id: &str) -> Result<Called, Failure> {
    Ok(Called {
        file: format!(".{OURS}{id}.qcow2"),
        node: NodeName::new(format!("{OURS}{id}"))?,
        file_node: NodeName::new(format!("{OURS}{id}-f"))?,
        job: JobId::new(format!("{OURS}{id}"))?,
    })
}

/// What shows the instant.
fn access(id: &str) -> Result<NodeName, Failure> {
    Ok(NodeName::new(format!("{OURS}{id}-a"))?)
}

/// Where the scratch file of a backup is to be, if it has one.
pub(super) fn scratch(
    engine: &Engine,
    kind: BackupKind,
    disk: &Disk,
    id: &str,
) -> Result<Option<PathBuf>, Failure> {
    let is_made_so = matches!(kind, BackupKind::Full | BackupKind::Incremental);
    if !engine.config.backup.fleecing || !is_made_so {
        return Ok(None);
    }
    let directory = scratch::directory(engine, disk)?;
    Ok(Some(directory.join(called(id)?.file)))
}

/// Makes the scratch file, and what will show the instant. A QEMU that cannot (before 7.0) refuses it here.
pub(super) async fn prepare(
    engine: &Engine,
    bridge: &Bridge,
    (disk, root): (&Disk, &NodeName),
    journal: &Journal,
) -> Result<Option<Fleece>, Failure> {
    if journal.scratch.is_none() {
        return Ok(None);
    }
    let id = &journal.manifest.id;
    let called = called(id)?;
    let file = scratch::create(engine, disk, &called).await?;
    let size = disk.active.virtual_size;
    file.open(engine, bridge, (&called, size), Backing::Nothing)
        .await?;
    let access = access(id)?;
    // what saves will stand between the two
    let options = BlockdevOptions::over("snapshot-access", access.clone(), root.clone());
    bridge.run(BlockdevAdd(options)).await?;
    Ok(Some(Fleece { called, access }))
}

/// What is ready.
pub(super) struct Fleece {
    called: Called,
    /// What the backup's job copies from.
    pub(super) access: NodeName,
}

impl Fleece {
    /// What begins at the instant, before the backup's job.
    pub(super) fn save(&self, root: &NodeName) -> TransactionAction {
        self.called.save(root.clone())
    }

    /// Takes what a bitmap of the disk marks at the instant for what is to be copied.
    pub(super) fn mark(
        &self,
        root: &NodeName,
        bitmap: &str,
        granularity: Option<u64>,
    ) -> [TransactionAction; 2] {
        [
            TransactionAction::BlockDirtyBitmapAdd(BlockDirtyBitmapAdd {
                node: self.access.clone(),
                name: TAG.to_owned(),
                granularity: granularity.and_then(|it| u32::try_from(it).ok()),
                persistent: None,
                disabled: Some(true),
            }),
            TransactionAction::BlockDirtyBitmapMerge(BlockDirtyBitmapMerge {
                node: self.access.clone(),
                target: TAG.to_owned(),
                bitmaps: vec![BitmapSource::External {
                    node: root.clone(),
                    name: bitmap.to_owned(),
                }],
            }),
        ]
    }

    /// The name of what [`Fleece::mark`] makes.
    pub(super) fn bitmap() -> String {
        TAG.to_owned()
    }
}

/// Why a backup's job has failed: without what saves there is no instant to be read.
pub(super) async fn why(bridge: &Bridge, journal: &Journal, failure: Failure) -> Failure {
    if journal.scratch.is_none() || !failure.outcome_known() {
        return failure;
    }
    let saving = called(&journal.manifest.id).map(|called| called.job);
    let saves = |job: &JobInfo, id: &JobId| job.id == *id && job.status != JobStatus::Concluded;
    match (saving, bridge.jobs().await) {
        (Ok(saving), Ok(jobs)) if !jobs.iter().any(|job| saves(job, &saving)) => Failure::new(
            Errno::EIO,
            "the job that saves what the guest writes over has ended: somebody cancelled it",
        )
        .next("see who else uses this QEMU, then make the backup again"),
        _ => failure,
    }
}

/// The backup's job has ended: what is there of it goes. Doing it twice changes nothing.
pub(super) async fn end(bridge: &Bridge, journal: &Journal) -> Result<(), Failure> {
    let Some(path) = journal.scratch.clone() else {
        return Ok(());
    };
    let id = &journal.manifest.id;
    scratch::close(bridge, [&access(id)?]).await?;
    called(id)?.let_go(bridge).await?;
    blocking(move || match sys::file_id(&path) {
        Ok(file) => settle::remove_file(&path, file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::io(format!("look at {}", path.display()), &error)),
    })
    .await
}
