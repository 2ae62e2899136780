//! A mark on the end of a disk, kept beside the dirty bitmap of a backup in a second one that does not record. When a disk
//! is made smaller and then larger again QEMU marks nothing, though zeros are now where something was; but it cuts all
//! bitmaps, and with what was cut the mark is gone (docs/decisions/0025). The last bytes are marked in the bitmap itself,
//! too: what is cut inside of them is copied anyhow. Knows nodes; no backup, no file.

use crate::errno::Failure;
use qmpbridge::command::{
    BlockDirtyBitmapAdd, BlockdevAdd, BlockdevDel, BlockdevMirror, BlockdevOptions, Sync,
};
use qmpbridge::{BlockGraph, Bridge, Cancel, JobId, JobStage, NodeName};
use serde_json::{Map, Value};

/// The bitmap on the node that is written to in place of the disk.
pub(super) const TAG: &str = "end";
/// What its nodes and its job are called, before the backup's id.
const OURS: &str = "qmpfs-end-";
/// Bytes that are written there: QEMU counts a disk in such sectors.
const SECTOR: u64 = 512;
/// What one bit of it stands for: as much as of most disks' own bitmaps.
const GRANULARITY: u32 = 64 << 10;

/// The nodes: as large as the disk, its last sector, and what that is written from.
#[derive(Clone, Copy)]
enum Part {
    Whole,
    Last,
    Source,
}

impl Part {
    const ALL: [Part; 3] = [Part::Last, Part::Source, Part::Whole];

    fn node(self, id: &str) -> Result<NodeName, Failure> {
        let letter = match self {
            Part::Whole => 'w',
            Part::Last => 'l',
            Part::Source => 's',
        };
        Ok(NodeName::new(format!("{OURS}{id}-{letter}"))?)
    }
}

/// Whether a node is one of these: nobody uses it, and it is no disk.
pub(in crate::ops) fn is_node(node: &NodeName) -> bool {
    node.as_str().starts_with(OURS)
}

fn job(id: &str) -> Result<JobId, Failure> {
    Ok(JobId::new(format!("{OURS}{id}"))?)
}

fn node(driver: &str, name: NodeName, more: &[(&str, u64)]) -> BlockdevOptions {
    let more = more
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
    BlockdevOptions {
        driver: driver.into(),
        node_name: Some(name),
        extra: Map::from_iter(more),
        ..Default::default()
    }
}

/// A node that holds nothing, of the disk's size, whose bitmap [`TAG`] marks the end. It goes with [`clear`].
pub(super) async fn make(bridge: &Bridge, id: &str, size: u64) -> Result<NodeName, Failure> {
    let (whole, last, source) = (
        Part::Whole.node(id)?,
        Part::Last.node(id)?,
        Part::Source.node(id)?,
    );
    let all = node("null-co", whole.clone(), &[("size", size)]);
    bridge.run(BlockdevAdd(all)).await?;
    let bitmap = BlockDirtyBitmapAdd {
        node: whole.clone(),
        name: TAG.into(),
        granularity: Some(GRANULARITY),
        persistent: None,
        disabled: None,
    };
    bridge.run(bitmap).await?;
    let sector = [("offset", size.saturating_sub(SECTOR)), ("size", SECTOR)];
    let end = BlockdevOptions {
        file: Some(whole.clone()),
        ..node("raw", last.clone(), &sector)
    };
    bridge.run(BlockdevAdd(end)).await?;
    let nothing = node("null-co", source.clone(), &[("size", SECTOR)]);
    bridge.run(BlockdevAdd(nothing)).await?;
    write(bridge, job(id)?, source, last).await?;
    Ok(whole)
}

/// QEMU has no command that writes: a mirror does. A backup would warn of a target without clusters.
async fn write(bridge: &Bridge, id: JobId, from: NodeName, to: NodeName) -> Result<(), Failure> {
    let mirror = BlockdevMirror::new(id.clone(), from, to, Sync::Full);
    let mut job = bridge.start_job(id.clone(), mirror).await?;
    if job.wait_ready_or_concluded().await? == JobStage::Ready {
        bridge.cancel_job(&id, Cancel::Soft).await?;
        job.wait_concluded().await?;
    }
    bridge.dismiss_job(&id).await?;
    Ok(())
}

/// Whatever of it is there goes, whoever began it.
pub(super) async fn clear(bridge: &Bridge, graph: &BlockGraph, id: &str) -> Result<(), Failure> {
    let there = |node: &NodeName| graph.node(node).is_some();
    if !Part::ALL
        .iter()
        .any(|part| part.node(id).is_ok_and(|node| there(&node)))
    {
        return Ok(());
    }
    let job = job(id)?;
    if bridge.jobs().await?.iter().any(|known| known.id == job) {
        let mut handle = bridge.attach_job(job.clone()).await?;
        // one that has ended takes no such word
        let _ = bridge.cancel_job(&job, Cancel::Force).await;
        let _ = handle.wait_concluded().await;
        bridge.dismiss_job(&job).await?;
    }
    for part in Part::ALL {
        let node_name = part.node(id)?;
        if there(&node_name) {
            bridge.run(BlockdevDel { node_name }).await?;
        }
    }
    Ok(())
}
