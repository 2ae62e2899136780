//! Backups with `-o fleecing`: the guest waits for a scratch file, and never for the backup directory. Before the instant
//! QEMU gets a node on the disk that shows what an instant held (`snapshot-access`). At the instant one job begins to save
//! what the guest writes over (`blockdev-backup sync=none`), and the backup's own job copies from that node.
//! Invariants: the scratch has room for all before the instant; the backup's job ends first, then the node, then what saves.
//! A backup of the top layer is not made so: that node has no layers.

use super::prepare::job_id;
use crate::backups::Journal;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, Claim};
use crate::model::{BackupKind, Disk};
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::live;
use crate::ops::scratch::{self, Called};
use qmpbridge::command::{Backing, BlockdevAdd, BlockdevOptions, TransactionAction};
use qmpbridge::{Bridge, JobId, JobInfo, JobStatus, NodeName};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What its nodes and its job are called, before the backup's id.
const OURS: &str = "qmpfs-fleece-";

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

/// Keeps other mounts from what saves for a backup.
pub(super) fn claim(journal: &Journal) -> Result<Option<Claim>, Failure> {
    let id = &journal.manifest.id;
    let claimed = journal.scratch.as_ref().map(|_| layer_file::claim_kept(id));
    claimed.transpose()
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
}

/// What has come of the backup's job: without what saves for it, it has copied no instant, however it ended.
pub(super) async fn confirm(
    bridge: &Bridge,
    journal: &Journal,
    ended: Result<(), Failure>,
) -> Result<(), Failure> {
    let is_known = ended.as_ref().err().is_none_or(Failure::outcome_known);
    if journal.scratch.is_none() || !is_known {
        return ended;
    }
    let id = &journal.manifest.id;
    let saving = called(id)?.job;
    let saves = |job: &JobInfo| job.id == saving && job.status != JobStatus::Concluded;
    let is_shown = bridge.graph().await?.node(&access(id)?).is_some();
    // where nothing shows the instant any more a daemon before us has seen the end, and ended what saved
    if !is_shown || bridge.jobs().await?.iter().any(saves) {
        return ended;
    }
    Err(Failure::new(
        Errno::EIO,
        "the job that saves what the guest writes over has ended: somebody cancelled it",
    )
    .next("see who else uses this QEMU, then make the backup again"))
}

/// The backup's job has ended: what is there of it goes. Doing it twice changes nothing.
pub(super) async fn end(bridge: &Bridge, journal: &Journal) -> Result<(), Failure> {
    let Some(path) = journal.scratch.clone() else {
        return Ok(());
    };
    let called = take_down(bridge, &journal.manifest.id).await?;
    // whatever else a journal names is not ours
    if path.file_name() == Some(called.file.as_ref()) {
        blocking(move || {
            scratch::remove_unused(&path);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn take_down(bridge: &Bridge, id: &str) -> Result<Called, Failure> {
    scratch::close(bridge, [&access(id)?]).await?;
    let called = called(id)?;
    called.let_go(bridge).await?;
    Ok(called)
}

/// Takes down what a killed mount left and no journal here leads to: the backup's own job has ended, and nobody claims it.
/// It would save what the guest writes over for as long as QEMU runs.
pub(in crate::ops) async fn sweep(engine: &Engine) -> Result<(), Failure> {
    let Ok(bridge) = engine.bridge() else {
        return Ok(());
    };
    if engine.config.verbs.read_only {
        return Ok(());
    }
    let (graph, jobs) = (bridge.graph().await?, bridge.jobs().await?);
    let nodes = graph.nodes().map(|node| node.name.as_str());
    let named = nodes.chain(jobs.iter().map(|job| job.id.as_str()));
    let ids: BTreeSet<&str> = named.filter_map(id_of).collect();
    for id in ids {
        let Ok(_kept) = layer_file::claim_kept(id) else {
            continue;
        };
        let own = [BackupKind::Full, BackupKind::Incremental].map(|kind| job_id(kind, id));
        let at_work = |job: &JobInfo| {
            let is_own = own.iter().flatten().any(|own| *own == job.id);
            is_own && job.status != JobStatus::Concluded
        };
        if jobs.iter().any(at_work) {
            continue;
        }
        take_down(bridge, id).await?;
        engine.log.note(&format!(
            "{OURS}{id}: what a killed mount had saved for a backup is taken down"
        ));
    }
    scratch::sweep(engine, |name| {
        id_of(name.strip_prefix('.')?.strip_suffix(".qcow2")?)
    })
    .await
}

/// The backup that the name of a node or job is of.
fn id_of(name: &str) -> Option<&str> {
    let id = name.strip_prefix(OURS)?;
    let id = id.split_once('-').map_or(id, |(id, _)| id);
    live::is_digits(id).then_some(id)
}
