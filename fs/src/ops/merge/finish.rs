//! A merge after its job: which nodes go, and which file then has which name. The order is the proven
//! one (docs/SEMANTICS.md): at every moment each node's file name names the node's own inode, and D
//! boots the right disk. Each step looks whether it was done already, so that recovery can start again
//! from any of them.

use super::plan::Verb;
use super::{Merge, node};
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, MergeJournal};
use crate::model::{Disk, FileId, PointRecord};
use crate::ops::blocking::blocking;
use crate::ops::durable;
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Carried, Role};
use crate::ops::settle;
use crate::sys;
use qmpbridge::command::ChangeBackingFile;
use qmpbridge::{BlockGraph, Bridge, NodeName};
use std::path::{Path, PathBuf};

/// What is left to do when the job has concluded without error.
pub(super) async fn after(
    engine: &Engine,
    bridge: &Bridge,
    merge: &Merge,
    carried: &Carried,
) -> Result<(), Failure> {
    let here = merge.here();
    let file = here.file.ok_or_else(|| {
        Failure::new(Errno::EIO, "the point's file is not known").next(
            "run qmpfs where QEMU's paths lead to the same files: on its host, in its container",
        )
    })?;
    match merge.verb {
        Verb::Stream => {
            stream(
                engine,
                bridge,
                here.node.as_ref(),
                &here.path,
                file,
                Upper::of(&merge.disk, &merge.up().path),
            )
            .await
        }
        Verb::Release => {
            let up = merge.up().path.clone();
            release(engine, bridge, &merge.disk.name, &here.path, file, &up).await
        }
        Verb::Commit => {
            let over = merge
                .disk
                .layers
                .get(merge.index + 2)
                .unwrap_or(&merge.disk.active);
            let committed = Committed {
                disk: merge.disk.name.clone(),
                root: node(merge.disk.root.as_ref())?,
                over: node(over.node.as_ref())?,
                over_role: if merge.index + 2 < merge.disk.layers.len() {
                    Role::Sealed
                } else {
                    Role::Active
                },
                over_path: over.path.clone(),
                upper_node: merge.up().node.clone(),
                upper_path: merge.journal.upper.clone(),
                upper_record: merge.journal.upper_record.clone(),
                sealed: merge.sealed_path(),
                file,
                journal: merge.journal.clone(),
            };
            commit(engine, bridge, &committed, carried).await
        }
        Verb::CommitActive => {
            let up = merge.up();
            let pivoted = Pivoted {
                active: merge.disk.active_path.clone(),
                opened_as: here.path.clone(),
                sealed: merge.sealed_path(),
                file,
                resume: merge.journal.resume,
                old_node: up.node.clone(),
                old_alias: (up.path != merge.disk.active_path).then(|| up.path.clone()),
            };
            pivot(engine, bridge, &pivoted).await
        }
    }
}

/// The layer that a stream went into.
pub(in crate::ops) struct Upper<'a> {
    disk: &'a Disk,
    path: &'a Path,
    is_active: bool,
}

impl<'a> Upper<'a> {
    pub(in crate::ops) fn of(disk: &'a Disk, path: &'a Path) -> Self {
        let is_active = disk.active.path == path;
        Upper {
            disk,
            path,
            is_active,
        }
    }
}

/// After a stream: the point's nodes and then its file go.
pub(in crate::ops) async fn stream(
    engine: &Engine,
    bridge: &Bridge,
    point: Option<&NodeName>,
    path: &Path,
    file: FileId,
    upper: Upper<'_>,
) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    drop_if_there(bridge, &graph, point).await?;
    let graph = bridge.graph().await?;
    refuse_if_open(engine, &graph, file, path)?;
    if let (true, Some(root)) = (upper.is_active, &upper.disk.root) {
        durable::flush(bridge, root, &engine.carried(upper.disk)).await?;
    }
    let name = &upper.disk.name;
    let chain: Vec<FileId> = upper.disk.files().collect();
    // the header of the layer above no longer names it; that must be on disk before the file goes
    let (upper, gone) = (upper.path.to_owned(), path.to_owned());
    let others = blocking(move || {
        layer_file::fsync_file(&upper)?;
        let directory = gone.parent().unwrap_or(Path::new("/"));
        layer_file::dependents(directory, file, &chain)
    });
    // somebody may have made one while the job ran
    if let Some(other) = others.await?.first() {
        engine.report_once(&format!(
            "disk '{name}': {} is in its chain no more, but {} stands on it; it is left alone",
            path.display(),
            other.display()
        ));
        return Ok(());
    }
    settle::remove_file(path, file)
}

/// After a stream of somebody else's layer: its nodes go where nothing else uses them, its file
/// stays.
pub(in crate::ops) async fn release(
    engine: &Engine,
    bridge: &Bridge,
    disk: &str,
    path: &Path,
    file: FileId,
    upper: &Path,
) -> Result<(), Failure> {
    let sight = engine.sight(bridge);
    let graph = bridge.graph().await?;
    let idle = graph.nodes().find(|node| {
        let opened = node.path.as_deref().and_then(|path| sight.resolve(path));
        node.file.is_some()
            && !node.name.is_generated()
            && graph.parents(&node.name).is_empty()
            && opened.is_some_and(|path| sys::file_id(&path).ok() == Some(file))
    });
    drop_if_there(bridge, &graph, idle.map(|node| &node.name)).await?;
    let above = upper.to_owned();
    blocking(move || layer_file::fsync_file(&above)).await?;
    layer_file::clear_merge(upper)?;
    engine.log.note(&format!(
        "disk '{disk}': {} is in its chain no more; qmpfs did not make it and leaves it alone",
        path.display()
    ));
    Ok(())
}

/// What a journal says when all is done but the old name, which QEMU still knows the file by.
pub(in crate::ops) const RENAME: &str = "rename";

/// A commit of one sealed layer into another.
pub(in crate::ops) struct Committed {
    pub(in crate::ops) disk: String,
    pub(in crate::ops) root: NodeName,
    /// V: the layer whose backing file it was.
    pub(in crate::ops) over: NodeName,
    pub(in crate::ops) over_role: Role,
    pub(in crate::ops) over_path: PathBuf,
    /// U's node, if it is still there.
    pub(in crate::ops) upper_node: Option<NodeName>,
    /// S_U: the name that the receiving file takes.
    pub(in crate::ops) upper_path: PathBuf,
    pub(in crate::ops) upper_record: Option<PointRecord>,
    /// S_N: the name that goes.
    pub(in crate::ops) sealed: PathBuf,
    /// The receiving file.
    pub(in crate::ops) file: FileId,
    pub(in crate::ops) journal: MergeJournal,
}

/// After a commit: the file that received the layer above takes its name and its record.
pub(in crate::ops) async fn commit(
    engine: &Engine,
    bridge: &Bridge,
    done: &Committed,
    carried: &Carried,
) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    drop_if_there(bridge, &graph, done.upper_node.as_ref()).await?;
    if let Some(upper) = sys::file_id(&done.upper_path)
        .ok()
        .filter(|upper| *upper != done.file)
    {
        engine.leases.became(&done.disk, upper, done.file);
        if let Some(record) = &done.upper_record {
            let record = PointRecord {
                inode: done.file.ino,
                ..record.clone()
            };
            layer_file::write_point(&done.sealed, &record)?;
        }
        layer_file::replace(&done.sealed, &done.upper_path)?;
    }
    // a kill in the middle of that leaves the name in between
    for (between, _) in layer_file::strays(&done.upper_path)?
        .into_iter()
        .filter(|(_, file)| *file == done.file)
    {
        settle::remove_name(&between)?;
    }
    bridge
        .run(ChangeBackingFile {
            device: done.root.as_str().into(),
            image_node_name: done.over.clone(),
            backing_file: done.upper_path.clone(),
        })
        .await?;
    if !done.over.is_ours() {
        // QEMU was restarted and opened the layers by itself, under the old name: it stays until
        // QEMU opens them anew
        let journal = MergeJournal {
            verb: RENAME.into(),
            ..done.journal.clone()
        };
        return layer_file::write_merge(&done.upper_path, &journal);
    }
    let graph = bridge.graph().await?;
    let below_over = graph.node(&done.over).and_then(|over| over.backing.clone());
    if let Some(receiver) = below_over.as_ref().and_then(|name| graph.node(name))
        && receiver.path.as_deref() != Some(done.upper_path.as_path())
    {
        let fresh = nodes::add_sealed(
            bridge,
            &done.upper_path,
            "qcow2",
            receiver.backing.clone(),
            carried,
        )
        .await?;
        nodes::set_backing(
            bridge,
            &graph,
            &done.over,
            Some(fresh),
            done.over_role,
            carried,
        )
        .await?;
        nodes::drop_layer(bridge, &graph, &receiver.name).await?;
    }
    let over = done.over_path.clone();
    blocking(move || layer_file::fsync_file(&over)).await?;
    settle::remove_file(&done.sealed, done.file)?;
    layer_file::clear_merge(&done.upper_path)
}

/// A commit of the active layer, after the pivot.
pub(in crate::ops) struct Pivoted {
    /// D.
    pub(in crate::ops) active: PathBuf,
    /// The alias under which QEMU has the new active layer open.
    pub(in crate::ops) opened_as: PathBuf,
    /// S_N: the name that goes.
    pub(in crate::ops) sealed: PathBuf,
    /// The new active layer's file.
    pub(in crate::ops) file: FileId,
    /// The guest was stopped for the pivot.
    pub(in crate::ops) resume: bool,
    /// The old active layer's node and alias.
    pub(in crate::ops) old_node: Option<NodeName>,
    pub(in crate::ops) old_alias: Option<PathBuf>,
}

/// After the pivot: D names the new active layer before the guest goes on.
pub(in crate::ops) async fn pivot(
    engine: &Engine,
    bridge: &Bridge,
    done: &Pivoted,
) -> Result<(), Failure> {
    if sys::file_id(&done.active).ok() != Some(done.file) {
        layer_file::replace(&done.opened_as, &done.active)
            .map_err(|failure| failure.next(settle::STANDS_STILL))?;
    }
    if done.resume {
        engine.let_go_on().await?;
    }
    layer_file::clear_point(&done.active)?;
    settle::remove_file(&done.sealed, done.file)?;
    let graph = bridge.graph().await?;
    drop_if_there(bridge, &graph, done.old_node.as_ref()).await?;
    if let Some(alias) = &done.old_alias {
        settle::remove_name(alias)?;
    }
    layer_file::clear_merge(&done.active)
}

async fn drop_if_there(
    bridge: &Bridge,
    graph: &BlockGraph,
    node: Option<&NodeName>,
) -> Result<(), Failure> {
    match node.filter(|node| graph.node(node).is_some()) {
        Some(node) => nodes::drop_layer(bridge, graph, node).await,
        None => Ok(()),
    }
}

/// By the file, not by its name: another disk may have it open under another one.
fn refuse_if_open(
    engine: &Engine,
    graph: &BlockGraph,
    file: FileId,
    path: &Path,
) -> Result<(), Failure> {
    let sight = engine.sight(engine.bridge()?);
    let is_it = |name: PathBuf| sys::file_id(&name).is_ok_and(|found| found == file);
    // a name that is gone may have been this file's
    let mut names = graph.nodes().filter_map(|node| node.path.as_deref());
    let beside = |name: &&Path| name.parent() == path.parent();
    if let Some(gone) = names.find(|name| beside(name) && sight.resolve(name).is_none()) {
        return Err(Failure::new(
            Errno::EBUSY,
            format!(
                "QEMU has a file open as {}, which is not there: {} is not removed",
                gone.display(),
                path.display()
            ),
        )
        .next(
            "see which file QEMU has open (ls -l /proc/PID/fd), and give it that name again (ln)",
        ));
    }
    if graph
        .nodes()
        .filter_map(|node| sight.resolve(node.path.as_deref()?))
        .any(is_it)
    {
        return Err(Failure::new(
            Errno::EBUSY,
            format!("QEMU still has {} open; it is not removed", path.display()),
        )
        .next("mount again when whatever uses it has ended"));
    }
    Ok(())
}
