//! A disk that was unplugged. Since it was first sealed its nodes are ours, so that who plugged it in has no name to close it
//! by, and QEMU would keep its files, and their locks, until it ends.

use super::check;
use super::engine::{DiskGuard, Engine};
use crate::errno::{Errno, Failure};
use qmpbridge::command::BlockdevDel;
use qmpbridge::{BlockGraph, NodeName};
use std::collections::HashSet;

/// Closes the nodes of a disk that nobody uses, from the top down; nodes that are not ours stay. QEMU refuses to close one
/// that somebody has begun to use.
pub(super) async fn close(engine: &Engine, guard: &DiskGuard) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let disk = engine.observe_disk(guard).await?;
    if !disk.tuning.unplugged {
        return Err(Failure::new(
            Errno::EBUSY,
            format!("disk '{}' is in use again", disk.name),
        ));
    }
    let root = check::root_of(&disk)?;
    let nodes = ours_of(&bridge.graph().await?, &root);
    let left = loop {
        let graph = bridge.graph().await?;
        let unused =
            |node: &&NodeName| graph.node(node).is_some() && graph.parents(node).is_empty();
        let Some(node_name) = nodes.iter().find(unused).cloned() else {
            break graph;
        };
        bridge.run(BlockdevDel { node_name }).await?;
    };
    match left.node(&root) {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            Errno::EBUSY,
            format!("another node stands on '{root}' of disk '{}'", disk.name),
        )
        .next("see which: query-named-block-nodes; blockdev-del it, then rmdir again")),
    }
}

/// The nodes of the disk's chain that are ours, with those that open the files.
fn ours_of(graph: &BlockGraph, root: &NodeName) -> HashSet<NodeName> {
    let chain = graph.chain(root);
    let files = chain.iter().filter_map(|node| node.file.as_ref());
    let nodes = chain.iter().map(|node| &node.name).chain(files);
    nodes.filter(|node| node.is_ours()).cloned().collect()
}
