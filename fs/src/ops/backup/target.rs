//! The file that a backup is written to, as QEMU sees it: formatted, open, and let go of. It does not
//! know what is copied into it.

use super::end_mark;
use crate::backups::Place;
use crate::errno::Failure;
use crate::model::Previous;
use crate::ops::durable;
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Carried};
use qmpbridge::command::{BlockdevCreateOptions, BlockdevDel};
use qmpbridge::{Bridge, JobStatus, NodeName};
use std::path::Path;

/// What is copied into a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A disk, or a layer of it.
    Disk,
    /// The node that shows an instant. It does not tell holes from data where a disk has layers, so they are found in what
    /// is written. The guest is not to wait for the target: its requests are not made by QEMU's pool of threads, as
    /// the guest's own are, but by others if it can (io_uring).
    Instant,
}

/// Formats the empty file `path` and opens it.
pub(super) async fn open(
    bridge: &Bridge,
    path: &Path,
    id: &str,
    virtual_size: u64,
    previous: Option<&Previous>,
    source: Source,
) -> Result<NodeName, Failure> {
    let mut carried = Carried::default();
    if source == Source::Instant {
        carried.aio = Some("io_uring".into());
        carried.detect_zeroes = Some("on".into());
    }
    let protocol = match nodes::add_protocol(bridge, path, &carried).await {
        // a host, or a QEMU, without it: then they share the threads
        Err(failure) if failure.outcome_known() && carried.aio.take().is_some() => {
            tracing::debug!(%failure, "a target's requests are made by QEMU's threads");
            nodes::add_protocol(bridge, path, &carried).await?
        }
        added => added?,
    };
    let size = virtual_size;
    let options = match previous {
        None => BlockdevCreateOptions::qcow2(protocol.clone(), size),
        Some(previous) => {
            let below = Place::file_name(&previous.name);
            BlockdevCreateOptions::qcow2_overlay(protocol.clone(), size, &below, "qcow2")
        }
    };
    nodes::add_created(bridge, path, nodes::create_job(id)?, options, &carried).await
}

/// The file holds all that was copied: a job that has ended has left tables in QEMU's memory, and a QEMU
/// that is killed then takes them along. Nobody writes to it any more.
pub(super) async fn put_away(
    engine: &Engine,
    bridge: &Bridge,
    path: &Path,
    id: &str,
) -> Result<(), Failure> {
    let nodes = nodes_on(engine, bridge, path, id).await?;
    for node in &nodes.formats {
        durable::flush(bridge, node, &Carried::default()).await?;
    }
    let_go(bridge, nodes).await
}

/// Our nodes on a file.
struct Nodes {
    /// Of its format.
    formats: Vec<NodeName>,
    /// Of its bytes.
    protocols: Vec<NodeName>,
}

async fn nodes_on(
    engine: &Engine,
    bridge: &Bridge,
    path: &Path,
    id: &str,
) -> Result<Nodes, Failure> {
    let graph = bridge.graph().await?;
    end_mark::clear(bridge, &graph, id).await?;
    let sight = engine.sight(bridge);
    let is_it = |node: &&qmpbridge::Node| {
        // the name as QEMU was given it holds, too, where the file and its directory are gone
        let here = |called: &Path| called == path || sight.named(called).as_deref() == Some(path);
        node.name.is_ours() && node.path.as_deref().is_some_and(here)
    };
    let (formats, protocols): (Vec<_>, Vec<_>) = graph
        .nodes()
        .filter(is_it)
        .partition(|node| node.file.is_some());
    let names = |nodes: Vec<&qmpbridge::Node>| nodes.iter().map(|it| it.name.clone()).collect();
    Ok(Nodes {
        formats: names(formats),
        protocols: names(protocols),
    })
}

/// QEMU lets go of a file: of every node on it, the top one first, whoever began it.
pub(super) async fn release(
    engine: &Engine,
    bridge: &Bridge,
    path: &Path,
    id: &str,
) -> Result<(), Failure> {
    let create = nodes::create_job(id)?;
    let jobs = bridge.jobs().await?;
    let ended = |status| status == JobStatus::Concluded;
    if jobs.iter().any(|job| job.id == create && ended(job.status)) {
        bridge.dismiss_job(&create).await?;
    }
    let_go(bridge, nodes_on(engine, bridge, path, id).await?).await
}

/// Our node of a file's format, if QEMU has it open.
pub(super) async fn node_on(
    engine: &Engine,
    bridge: &Bridge,
    path: &Path,
    id: &str,
) -> Result<Option<NodeName>, Failure> {
    let nodes = nodes_on(engine, bridge, path, id).await?;
    Ok(nodes.formats.into_iter().next())
}

/// Whether our QEMU has the file open, by nodes of ours.
pub(super) async fn is_open(
    engine: &Engine,
    bridge: &Bridge,
    path: &Path,
    id: &str,
) -> Result<bool, Failure> {
    let nodes = nodes_on(engine, bridge, path, id).await?;
    Ok(!nodes.formats.is_empty() || !nodes.protocols.is_empty())
}

/// The top ones first.
async fn let_go(bridge: &Bridge, nodes: Nodes) -> Result<(), Failure> {
    for node_name in nodes.formats.into_iter().chain(nodes.protocols) {
        bridge.run(BlockdevDel { node_name }).await?;
    }
    Ok(())
}
