//! What nobody uses any more: idle nodes on files of a disk, hidden names beside its active path.

use crate::errno::Failure;
use crate::layer_file;
use crate::model::{Disk, FileId, Format};
use crate::ops::backup;
use crate::ops::engine::Engine;
use crate::ops::settle;
use crate::sys;
use crate::view::{LayerSpec, layer_allocated};
use qmpbridge::{Bridge, NodeName};
use std::path::{Path, PathBuf};

/// More idle nodes than any verb or chain of ours leaves behind.
const IDLE_ROUNDS: u32 = 1024;

/// Which idle nodes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Whose {
    Ours,
    /// Also those of the VM's command line: what a seal takes out of the chain.
    Anybodys,
}

/// Nodes on files of this disk that nothing uses and that are no disk. Other disks may be in the
/// middle of a verb: theirs are not touched.
pub(in crate::ops) async fn idle_nodes(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    whose: Whose,
) -> Result<(), Failure> {
    let sight = engine.sight(bridge);
    let namesakes = layer_file::namesakes(&disk.active_path)?;
    // one of the mount's own disks may be called like a layer of another one
    let others = sight.embedded.iter().map(|(path, _)| path);
    let others: Vec<&PathBuf> = others.filter(|path| **path != disk.active_path).collect();
    let is_name = |path: &Path| {
        let of = |active: &PathBuf| path == active || layer_file::is_name_of(path, active);
        of(&disk.active_path) && !namesakes.iter().chain(others.iter().copied()).any(of)
    };
    // a chain of idle nodes goes from its top down, one a round
    for _ in 0..IDLE_ROUNDS {
        let graph = bridge.graph().await?;
        let used = |name: &NodeName| !graph.parents(name).is_empty();
        let root = disk.root.as_ref();
        if !engine.switched_off() && !root.is_some_and(used) {
            // nobody uses the disk itself: it cannot be told from what is left of it
            return Ok(());
        }
        let idle = graph
            .nodes()
            .filter(|node| !used(&node.name) && !node.name.is_generated())
            .filter(|node| Some(&node.name) != root)
            // that a backup of an instant is none any more is told by it
            .filter(|node| !backup::is_fleece_node(&node.name))
            .filter(|node| whose == Whose::Anybodys || node.name.is_ours())
            .find(|node| {
                let path = node.path.as_deref().and_then(|path| sight.named(path));
                path.is_some_and(|path| is_name(&path))
            })
            .map(|node| node.name.clone());
        let Some(idle) = idle else {
            return Ok(());
        };
        tracing::info!(node = %idle, "an idle node goes");
        bridge
            .run(qmpbridge::command::BlockdevDel { node_name: idle })
            .await?;
    }
    Ok(())
}

/// Hidden names beside the active path that QEMU does not use.
pub(super) async fn names(engine: &Engine, bridge: &Bridge, disk: &Disk) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    let sight = engine.sight(bridge);
    let in_use: Vec<PathBuf> = graph
        .nodes()
        .filter_map(|node| sight.resolve(node.path.as_deref()?))
        .collect();
    remove(
        &disk.active_path,
        &in_use,
        &disk.files().collect::<Vec<_>>(),
        &|text| engine.report_once(text),
    )
}

/// Removes aliases that nobody uses: other names of files of the chain, and overlays never written.
pub(super) fn remove(
    active: &Path,
    in_use: &[PathBuf],
    chain: &[FileId],
    report: &dyn Fn(&str),
) -> Result<(), Failure> {
    let mut kept: Vec<FileId> = Vec::new();
    for (path, file) in layer_file::strays(active)? {
        if in_use.contains(&path) {
            continue;
        }
        if kept.contains(&file) {
            // the name in between of an exchange that was cut short: the file has another one
            settle::remove_file(&path, file)?;
            continue;
        }
        let another_name = chain.contains(&file) || is_sealed(active, file);
        let spec = LayerSpec {
            path: path.clone(),
            file: Some(file),
            format: Format::Qcow2,
        };
        // a half-made overlay has no header yet
        let empty = path.metadata().is_ok_and(|metadata| metadata.len() == 0)
            || layer_allocated(&spec).is_ok_and(|bytes| bytes == 0);
        if another_name || empty {
            settle::remove_file(&path, file)?;
        } else {
            kept.push(file);
            report(&format!(
                "{} holds data and is in no chain; it is left alone",
                path.display()
            ));
        }
    }
    Ok(())
}

/// Whether a file has the name of a sealed layer, beside the hidden one; in the chain or beside it.
fn is_sealed(active: &Path, file: FileId) -> bool {
    let sealed = |path: &PathBuf| {
        path != active
            && layer_file::active_of_alias(path).is_none()
            && sys::file_id(path).ok() == Some(file)
    };
    layer_file::siblings(active).is_ok_and(|names| names.iter().any(sealed))
}
