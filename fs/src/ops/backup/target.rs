//! The file that a backup is written to, as QEMU sees it: formatted, open, and let go of. It does not
//! know what is copied into it.

use crate::backups::Place;
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::Previous;
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Carried, Role};
use qmpbridge::command::{BlockdevCreate, BlockdevCreateOptions, BlockdevDel};
use qmpbridge::{Bridge, JobId, JobStatus, NodeName};
use std::path::Path;

/// The job that formats the file of a backup.
fn create_job(id: &str) -> Result<JobId, Failure> {
    JobId::new(format!("qmpfs-create-{id}"))
        .map_err(|error| Failure::new(Errno::EIO, error.to_string()))
}

/// Formats the empty file `path` and opens it, with nothing below: what it stands on is in its
/// header alone.
pub(super) async fn open(
    bridge: &Bridge,
    path: &Path,
    id: &str,
    virtual_size: u64,
    previous: Option<&Previous>,
) -> Result<NodeName, Failure> {
    let carried = Carried::default();
    let protocol = nodes::add_protocol(bridge, path, &carried).await?;
    let size = virtual_size;
    let options = match previous {
        None => BlockdevCreateOptions::qcow2(protocol.clone(), size),
        Some(previous) => {
            let below = Place::file_name(&previous.name);
            BlockdevCreateOptions::qcow2_overlay(protocol.clone(), size, &below, "qcow2")
        }
    };
    let job_id = create_job(id)?;
    let command = BlockdevCreate {
        job_id: job_id.clone(),
        options,
    };
    let mut job = bridge.start_job(job_id.clone(), command).await?;
    let outcome = job.wait_concluded().await;
    bridge.dismiss_job(&job_id).await?;
    outcome?;
    let made = path.to_owned();
    blocking(move || layer_file::fsync_file(&made)).await?;
    nodes::add_format(bridge, "qcow2", protocol, None, Role::Active, &carried).await
}

/// QEMU lets go of a file: of every node on it, the top one first, whoever began it.
pub(super) async fn release(
    engine: &Engine,
    bridge: &Bridge,
    path: &Path,
    id: &str,
) -> Result<(), Failure> {
    let create = create_job(id)?;
    let jobs = bridge.jobs().await?;
    let ended = |status| status == JobStatus::Concluded;
    if jobs.iter().any(|job| job.id == create && ended(job.status)) {
        bridge.dismiss_job(&create).await?;
    }
    let graph = bridge.graph().await?;
    let sight = engine.sight(bridge);
    let is_it = |node: &&qmpbridge::Node| {
        let named = node.path.as_deref().and_then(|path| sight.named(path));
        named.as_deref() == Some(path) && node.name.is_ours()
    };
    let (formats, protocols): (Vec<_>, Vec<_>) = graph
        .nodes()
        .filter(is_it)
        .partition(|node| node.file.is_some());
    for node in formats.into_iter().chain(protocols) {
        let node_name = node.name.clone();
        bridge.run(BlockdevDel { node_name }).await?;
    }
    Ok(())
}
