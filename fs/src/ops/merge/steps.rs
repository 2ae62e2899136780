//! The steps of a merge before its job and beside it: what QEMU is told, and which file then has
//! which name. The order is the proven one (docs/SEMANTICS.md): at every moment each node's file
//! name names the node's own inode, and D boots the right disk. Each step looks whether it was
//! done already, so that recovery can start again from any of them.

use super::plan::Verb;
use super::{Merge, node};
use crate::errno::Failure;
use crate::layer_file;
use crate::model::Format;
use crate::ops::durable;
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Carried, Role};
use crate::ops::settle;
use qmpbridge::command::{BlockCommit, BlockStream};
use qmpbridge::{Bridge, JobHandle, JobStage, JobStatus};
use std::path::Path;

/// Gets the job going, or takes up the one that already runs.
pub(super) async fn start(
    engine: &Engine,
    bridge: &Bridge,
    merge: &mut Merge,
    carried: &Carried,
) -> Result<JobHandle, Failure> {
    if let Some(job) = bridge
        .jobs()
        .await?
        .into_iter()
        .find(|job| job.id == merge.job)
    {
        if job.paused {
            // whoever paused it told a daemon that is gone; a job that nobody watches must not stand
            bridge.resume_job(&merge.job).await?;
        }
        return Ok(bridge.attach_job(merge.job.clone()).await?);
    }
    match merge.verb {
        Verb::Stream | Verb::Release => stream(bridge, merge).await,
        Verb::Commit => commit(engine, bridge, merge, carried).await,
        Verb::CommitActive => commit_active(engine, bridge, merge, carried).await,
    }
}

async fn stream(bridge: &Bridge, merge: &Merge) -> Result<JobHandle, Failure> {
    let mut command = BlockStream::new(merge.job.clone(), node(merge.up().node.as_ref())?);
    if let Some(below) = merge.below() {
        command.base_node = Some(node(below.node.as_ref())?);
        // of what only QEMU can read a path does not say how to open it: it writes down its own name for that
        let is_read_here = !matches!(below.format, Format::Other(_));
        command.backing_file = is_read_here.then(|| below.path.clone());
    }
    Ok(bridge.start_job(merge.job.clone(), command).await?)
}

async fn commit(
    engine: &Engine,
    bridge: &Bridge,
    merge: &mut Merge,
    carried: &Carried,
) -> Result<JobHandle, Failure> {
    own_all(engine, bridge, merge, carried).await?;
    let up = merge.up();
    if let Some(file) = up.file {
        // QEMU unshares "consistent read" on what it commits: our lock there would refuse the job
        engine.cache.unlock(file);
    }
    let root = node(merge.disk.root.as_ref())?;
    let command = BlockCommit {
        top_node: Some(node(up.node.as_ref())?),
        base_node: Some(node(merge.here().node.as_ref())?),
        backing_file: Some(merge.sealed_path()),
        ..BlockCommit::new(merge.job.clone(), root)
    };
    Ok(bridge.start_job(merge.job.clone(), command).await?)
}

async fn commit_active(
    engine: &Engine,
    bridge: &Bridge,
    merge: &mut Merge,
    carried: &Carried,
) -> Result<JobHandle, Failure> {
    own_all(engine, bridge, merge, carried).await?;
    let sealed = merge.sealed_path();
    if merge.here().path == sealed {
        // the node that will be the root must not be known as S: that name goes
        let alias = layer_file::alias_path(&merge.disk.active_path);
        layer_file::link_new(&sealed, &alias)?;
        if let Err(failure) = move_below_root(engine, bridge, merge, &alias, carried).await {
            if remove_unused(bridge, &alias, &failure).await.is_err() {
                engine.settle_later(&merge.disk.name);
            }
            return Err(failure);
        }
    }
    let root = node(merge.disk.root.as_ref())?;
    let command = BlockCommit {
        base_node: Some(node(merge.here().node.as_ref())?),
        ..BlockCommit::new(merge.job.clone(), root)
    };
    match bridge.start_job(merge.job.clone(), command).await {
        Ok(job) => Ok(job),
        Err(error) => {
            let refused = Failure::from(error);
            // where QEMU did not answer the job may be at work: the nodes stay as it knows them
            if refused.outcome_known() {
                let alias = merge.here().path.clone();
                move_below_root(engine, bridge, merge, &sealed, carried).await?;
                settle::remove_name(&alias)?;
            }
            Err(refused)
        }
    }
}

/// A hidden name goes only where QEMU surely has nothing open by it: without its name a layer would not be known for
/// what it is, and its file would be taken for one that nobody needs.
async fn remove_unused(bridge: &Bridge, alias: &Path, failure: &Failure) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    let used = graph
        .nodes()
        .any(|node| node.path.as_deref() == Some(alias));
    if used || !failure.outcome_known() {
        return Err(failure.clone());
    }
    settle::remove_name(alias)
}

/// Makes every node of the chain one of ours, and looks at the disk again if that changed it.
async fn own_all(
    engine: &Engine,
    bridge: &Bridge,
    merge: &mut Merge,
    carried: &Carried,
) -> Result<(), Failure> {
    nodes::adopt(bridge, &merge.disk, carried).await?;
    merge.disk = engine.observe_again(&merge.disk.name).await?;
    Ok(())
}

/// Puts a fresh node on the same file under another name in the place right below the root.
async fn move_below_root(
    engine: &Engine,
    bridge: &Bridge,
    merge: &mut Merge,
    to: &Path,
    carried: &Carried,
) -> Result<(), Failure> {
    let root = node(merge.disk.root.as_ref())?;
    let old = node(merge.here().node.as_ref())?;
    let below = merge
        .below()
        .map(|below| node(below.node.as_ref()))
        .transpose()?;
    let graph = bridge.graph().await?;
    let fresh = nodes::add_sealed(bridge, to, "qcow2", below, carried).await?;
    if let Err(failure) = nodes::set_backing(
        bridge,
        &graph,
        &root,
        Some(fresh.clone()),
        Role::Active,
        carried,
    )
    .await
    {
        if let Ok(graph) = bridge.graph().await {
            let _ = nodes::drop_layer(bridge, &graph, &fresh).await;
        }
        return Err(failure);
    }
    if let Err(failure) = nodes::drop_layer(bridge, &graph, &old).await {
        let graph = bridge.graph().await?;
        if failure.outcome_known() && graph.node(&old).is_some() {
            // as it was
            let role = Role::Active;
            nodes::set_backing(bridge, &graph, &root, Some(old), role, carried).await?;
            let graph = bridge.graph().await?;
            nodes::drop_layer(bridge, &graph, &fresh).await?;
        }
        return Err(failure);
    }
    merge.disk = engine.observe_again(&merge.disk.name).await?;
    Ok(())
}

/// What a merge waits for.
pub(super) enum Stage {
    /// A stream has copied all, and waits to be finalized.
    Copied,
    /// An active commit waits for its pivot.
    Ready,
    /// The job is over.
    Concluded,
}

/// Waits for it. Where `finalizes`, a stream that has copied all is brought to its end.
pub(super) async fn next_stage(
    job: &mut JobHandle,
    finalizes: bool,
) -> Result<Stage, qmpbridge::Error> {
    if !finalizes && job.wait_pending_or_concluded().await? == JobStatus::Pending {
        return Ok(Stage::Copied);
    }
    Ok(match job.wait_ready_or_concluded().await? {
        JobStage::Ready => Stage::Ready,
        JobStage::Concluded => Stage::Concluded,
    })
}

/// What a stream has copied is on stable storage before the header above says that it is there.
pub(super) async fn make_durable(
    engine: &Engine,
    bridge: &Bridge,
    merge: &Merge,
) -> Result<(), Failure> {
    let up = merge.up();
    let path = up.path.clone();
    // most of it, without QEMU standing still for it
    crate::ops::blocking::blocking(move || layer_file::fsync_file(&path)).await?;
    let role = match merge.index + 1 == merge.disk.layers.len() {
        true => Role::Active,
        false => Role::Sealed,
    };
    let node = node(up.node.as_ref())?;
    durable::flush_under_a_job(bridge, &node, role, &engine.carried(&merge.disk)).await
}

/// Whether names can be changed beside D, by a further name of the layer that becomes active: seen
/// while the guest still runs.
pub(super) async fn rehearse(merge: &Merge, name: &Path) -> Result<(), Failure> {
    let (layer, name) = (merge.here().path.clone(), name.to_owned());
    crate::ops::blocking::blocking(move || {
        // what an attempt before this one could not take away
        settle::remove_name(&name)?;
        layer_file::link_new(&layer, &name)?;
        settle::remove_name(&name)
    })
    .await
}

/// The guest stands still from just before the pivot until D names the new active layer.
pub(super) async fn stop_before_pivot(engine: &Engine, merge: &mut Merge) -> Result<(), Failure> {
    merge.alone = Some(engine.alone().await?);
    if engine.running().await? {
        merge.journal.resume = true;
        layer_file::write_merge(&merge.here().path, &merge.journal)?;
        engine.stop_guest().await?;
    } else if merge.disk.tuning.exported {
        merge.journal.moving = true;
        layer_file::write_merge(&merge.here().path, &merge.journal)?;
    }
    Ok(())
}

/// The pivot does not come now: the guest goes on where it stood, and others may stop it.
pub(super) async fn go_on_before_pivot(engine: &Engine, merge: &mut Merge) -> Result<(), Failure> {
    // without the right to it another verb may need the guest to stand still
    if merge.journal.resume && merge.alone.is_some() {
        engine.let_go_on().await?;
        merge.journal.resume = false;
        layer_file::write_merge(&merge.here().path, &merge.journal)?;
    }
    if merge.journal.moving {
        merge.journal.moving = false;
        layer_file::write_merge(&merge.here().path, &merge.journal)?;
    }
    merge.alone = None;
    Ok(())
}

/// Whether the chain no longer needs the point (or, after a commit, the layer above it).
pub(super) async fn point_left(engine: &Engine, merge: &Merge) -> Result<bool, Failure> {
    let now = engine.observe_again(&merge.disk.name).await?;
    let gone = match merge.verb {
        Verb::Stream | Verb::Release => merge.here().file,
        Verb::Commit | Verb::CommitActive => merge.up().file,
    };
    Ok(now.chain().all(|layer| layer.file != gone))
}
