//! Nodes of ours in QEMU's graph: fresh nodes on sealed files, overlays, and what lies below them.
//! Invariant I2: nothing but `backing` is ever changed by blockdev-reopen, and only on nodes that
//! we added; a node under a new name is a fresh node. Knows QMP and paths, no verb and no point.

use super::blocking::blocking;
use super::check;
use super::observe::is_libvirts;
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{Disk, Layer};
use crate::sys;
use qmpbridge::command::{
    BlockdevAdd, BlockdevCreate, BlockdevCreateOptions, BlockdevDel, BlockdevOptions,
    BlockdevReopen, CacheOptions,
};
use qmpbridge::{BlockGraph, Bridge, JobId, NodeName};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long QEMU may take to format a file, for milliseconds as a rule; the caller's directory is locked until then.
const CREATE_DEADLINE: Duration = Duration::from_secs(30);

/// Options of the VM's own node that the nodes in its place must have too.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Carried {
    /// Cache mode of the format node, as QEMU tells it.
    pub cache: Option<CacheOptions>,
    /// Cache mode of the protocol node.
    pub file_cache: Option<CacheOptions>,
    /// detect-zeroes, as QEMU tells it; only on the active layer.
    pub detect_zeroes: Option<String>,
    /// `discard`, from the VM's command line.
    pub discard: Option<String>,
    /// `aio`, from the VM's command line.
    pub aio: Option<String>,
}

/// Whether a format node is written by the guest or sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The guest writes it.
    Active,
    /// Nobody does, but for a merge.
    Sealed,
}

/// The protocol node of a file. Never `read-only`: commit and stream would refuse it later.
pub(super) async fn add_protocol(
    bridge: &Bridge,
    path: &Path,
    carried: &Carried,
) -> Result<NodeName, Failure> {
    let name = NodeName::fresh();
    let mut options = BlockdevOptions::file(name.clone(), path);
    options.auto_read_only = Some(true);
    options.cache = carried.file_cache;
    options.discard = carried.discard.clone();
    options.aio = carried.aio.clone();
    bridge.run(BlockdevAdd(options)).await?;
    Ok(name)
}

fn format_options(
    driver: &str,
    node: NodeName,
    file: NodeName,
    backing: Option<NodeName>,
    role: Role,
    carried: &Carried,
) -> BlockdevOptions {
    let mut options = BlockdevOptions::over(driver, node, file);
    if driver == "qcow2" {
        options.backing = backing.into();
    }
    options.cache = carried.cache;
    match role {
        Role::Active => {
            options.discard = carried.discard.clone();
            options.detect_zeroes = carried.detect_zeroes.clone();
        }
        Role::Sealed => options.read_only = Some(true),
    }
    options
}

/// A format node over a protocol node that is there already.
pub(super) async fn add_format(
    bridge: &Bridge,
    driver: &str,
    file: NodeName,
    backing: Option<NodeName>,
    role: Role,
    carried: &Carried,
) -> Result<NodeName, Failure> {
    let name = NodeName::fresh();
    bridge
        .run(BlockdevAdd(format_options(
            driver,
            name.clone(),
            file,
            backing,
            role,
            carried,
        )))
        .await?;
    Ok(name)
}

/// The job that formats a new file is named after it: so recovery knows whose it is.
pub(super) fn create_job(digits: &str) -> Result<JobId, Failure> {
    Ok(JobId::new(format!("qmpfs-create-{digits}"))?)
}

/// Formats an empty file that QEMU has open.
pub(super) async fn create(
    bridge: &Bridge,
    job_id: JobId,
    options: BlockdevCreateOptions,
) -> Result<(), Failure> {
    let command = BlockdevCreate {
        job_id: job_id.clone(),
        options,
    };
    let mut job = bridge.start_job(job_id.clone(), command).await?;
    let outcome = job.wait_concluded_within(CREATE_DEADLINE).await;
    if let Err(late @ qmpbridge::Error::JobAtWork { .. }) = outcome {
        // a QEMU that hangs is asked no more: whoever settles this finds the job by its name
        return Err(late.into());
    }
    bridge.dismiss_job(&job_id).await?;
    Ok(outcome?)
}

/// Formats the empty file `path`, which a power cut does not take away again, and opens it with
/// nothing below: what it stands on is in its header alone.
pub(super) async fn add_created(
    bridge: &Bridge,
    path: &Path,
    job_id: JobId,
    options: BlockdevCreateOptions,
    carried: &Carried,
) -> Result<NodeName, Failure> {
    let protocol = options.file.clone();
    create(bridge, job_id, options).await?;
    let made = path.to_owned();
    blocking(move || layer_file::fsync_file(&made)).await?;
    add_format(bridge, "qcow2", protocol, None, Role::Active, carried).await
}

/// A fresh node on a sealed file: the only way a file comes to be known under another name.
pub(super) async fn add_sealed(
    bridge: &Bridge,
    path: &Path,
    driver: &str,
    backing: Option<NodeName>,
    carried: &Carried,
) -> Result<NodeName, Failure> {
    let protocol = add_protocol(bridge, path, carried).await?;
    match add_format(
        bridge,
        driver,
        protocol.clone(),
        backing,
        Role::Sealed,
        carried,
    )
    .await
    {
        Ok(node) => Ok(node),
        Err(failure) => {
            discard_node(bridge, &protocol).await;
            Err(failure)
        }
    }
}

/// Puts another node below `node`, which must be one of ours.
pub(super) async fn set_backing(
    bridge: &Bridge,
    graph: &BlockGraph,
    node: &NodeName,
    backing: Option<NodeName>,
    role: Role,
    carried: &Carried,
) -> Result<(), Failure> {
    let file = file_of(graph, node).ok_or_else(|| {
        Failure::new(
            Errno::EIO,
            format!("node {node} has no file in QEMU's graph"),
        )
        .next("look again: ls disks; another tool may have changed it in this moment")
    })?;
    let options = format_options("qcow2", node.clone(), file, backing, role, carried);
    bridge
        .run(BlockdevReopen {
            options: vec![options],
        })
        .await?;
    Ok(())
}

/// The protocol node below a format node.
pub(super) fn file_of(graph: &BlockGraph, node: &NodeName) -> Option<NodeName> {
    graph.node(node)?.file.clone()
}

/// Lets go of a layer's nodes. Those that the monitor does not own (QEMU opened them from a header,
/// or by `blockdev-snapshot-sync`) go by themselves when nobody uses them.
pub(super) async fn drop_layer(
    bridge: &Bridge,
    graph: &BlockGraph,
    node: &NodeName,
) -> Result<(), Failure> {
    let file = file_of(graph, node);
    for name in [Some(node.clone()), file].into_iter().flatten() {
        if name.is_generated() {
            continue;
        }
        if is_libvirts(&name) {
            return Err(libvirts(&name));
        }
        let delete = || BlockdevDel {
            node_name: name.clone(),
        };
        let Err(error) = bridge.run(delete()).await else {
            continue;
        };
        if matches!(error, qmpbridge::Error::Disconnected) {
            return Err(error.into());
        }
        // what was still in use for a moment is free in the next
        if bridge.graph().await?.node(&name).is_some() {
            bridge.run(delete()).await?;
        }
    }
    Ok(())
}

/// libvirt asks for its nodes by name as long as the VM runs.
fn libvirts(node: &NodeName) -> Failure {
    Failure::new(
        Errno::EPERM,
        format!("node {node} is libvirt's and is never let go of"),
    )
    .next("change the disk with virsh")
}

/// Lets go of a node on the way back from a failure, which is the one worth telling.
pub(super) async fn discard_node(bridge: &Bridge, node: &NodeName) {
    if let Err(error) = bridge
        .run(BlockdevDel {
            node_name: node.clone(),
        })
        .await
    {
        tracing::warn!(%node, %error, "a node stays behind");
    }
}

/// Gives every sealed layer below a root of ours a node of ours, base first, so that commit can
/// re-arrange them. Nodes that QEMU opened by itself from headers cannot be reopened. What is below
/// the layers that we read stays as it is: nothing there is ever merged, and only QEMU may have its key.
pub(super) async fn adopt(bridge: &Bridge, disk: &Disk, carried: &Carried) -> Result<(), Failure> {
    let root = check::root_of(disk)?;
    let ours = |layer: &Layer| layer.format.is_read_here();
    let kept = disk.layers.iter().rposition(|layer| !ours(layer));
    let (kept, layers) = disk.layers.split_at(kept.map_or(0, |at| at + 1));
    if layers
        .iter()
        .all(|layer| layer.node.as_ref().is_some_and(NodeName::is_ours))
    {
        return Ok(());
    }
    let nodes = layers.iter().filter_map(|layer| layer.node.as_ref());
    if let Some(node) = nodes.chain([&root]).find(|node| is_libvirts(node)) {
        return Err(libvirts(node));
    }
    let before = bridge.graph().await?;
    let mut made = Vec::new();
    let mut below = match kept.last() {
        None => None,
        Some(Layer {
            node: Some(node), ..
        }) => Some(node.clone()),
        Some(Layer { path, .. }) => {
            return Err(Failure::new(
                Errno::ENOTCONN,
                format!("{} has no node in QEMU", path.display()),
            )
            .next("look again: ls disks; another tool may have changed it in this moment"));
        }
    };
    for layer in layers {
        match add_sealed(
            bridge,
            &lasting_name(disk, layer),
            layer.format.name(),
            below.clone(),
            carried,
        )
        .await
        {
            Ok(node) => {
                made.push(node.clone());
                below = Some(node);
            }
            Err(failure) => {
                undo_made(bridge, &made).await;
                return Err(failure);
            }
        }
    }
    let graph = bridge.graph().await?;
    if let Err(failure) = set_backing(bridge, &graph, &root, below, Role::Active, carried).await {
        undo_made(bridge, &made).await;
        return Err(failure);
    }
    for node in layers.iter().rev().filter_map(|layer| layer.node.as_ref()) {
        if !node.is_generated() {
            drop_layer(bridge, &before, node).await?;
        }
    }
    Ok(())
}

/// The name a layer keeps: after a merge QEMU may still know it by the name of the point that went.
pub(super) fn lasting_name(disk: &Disk, layer: &Layer) -> PathBuf {
    let sealed = layer
        .record
        .as_ref()
        .map(|record| layer_file::sealed_path(&disk.active_path, &record.name));
    sealed
        .filter(|sealed| sys::file_id(sealed).ok() == layer.file)
        .unwrap_or_else(|| layer.path.clone())
}

/// Lets go of layers that were added for nothing, the last one first.
pub(super) async fn undo_made(bridge: &Bridge, made: &[NodeName]) {
    let Ok(graph) = bridge.graph().await else {
        return;
    };
    for node in made.iter().rev() {
        if let Err(failure) = drop_layer(bridge, &graph, node).await {
            tracing::warn!(%node, %failure, "a node stays behind");
        }
    }
}

/// Opens a whole chain, base first, in a storage daemon that has none of it yet. Gives its nodes.
pub(super) async fn add_chain(
    bridge: &Bridge,
    layers: &[(PathBuf, crate::model::Format)],
) -> Result<Vec<NodeName>, Failure> {
    let carried = Carried::default();
    let mut made: Vec<NodeName> = Vec::new();
    for (index, (path, format)) in layers.iter().enumerate() {
        let (name, below) = (format.name(), made.last().cloned());
        let node = if index + 1 < layers.len() {
            add_sealed(bridge, path, name, below, &carried).await?
        } else {
            let protocol = add_protocol(bridge, path, &carried).await?;
            add_format(bridge, name, protocol, below, Role::Active, &carried).await?
        };
        made.push(node);
    }
    Ok(made)
}
