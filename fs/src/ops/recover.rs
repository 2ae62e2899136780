//! What a killed daemon, a dead QEMU or a power cut left: finished or undone, from what the graph
//! and the files themselves say (the marks `user.qmpfs.seal` and `user.qmpfs.merge`). Run at every
//! mount, at every new connection, and after a verb whose outcome was not known. Doing it twice
//! changes nothing; what it does not understand it leaves alone and says so.

use super::engine::{DiskGuard, Engine};
use super::merge::{self, plan::Verb, steps};
use super::nodes::{self, Role};
use super::quiesce;
use super::{rollback, settle};
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, MergeJournal, SealMarker};
use crate::model::{Disk, FileId, Format};
use crate::sys;
use crate::view::{LayerSpec, layer_allocated};
use qmpbridge::{Bridge, JobId, JobInfo, JobStatus, NodeName};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// More idle nodes than any verb or chain of ours leaves behind.
const IDLE_ROUNDS: u32 = 1024;
/// A job can end once between two looks.
const ROUNDS: u32 = 4;

/// What is left to do after the quick repairs.
enum Resume {
    Nothing,
    /// A job ended between two looks.
    LookAgain,
    Merge(Box<merge::Merge>),
}

/// Everything for one disk, beginning with an unfinished seal and ending with a merge that is
/// taken up again (which then holds the disk).
pub(super) async fn disk(engine: Rc<Engine>, guard: DiskGuard) -> Result<(), Failure> {
    for _ in 0..ROUNDS {
        files_and_graph(&engine, &guard).await?;
        match merge_to_resume(&engine, &guard).await? {
            Resume::Nothing => return Ok(()),
            Resume::LookAgain => {}
            Resume::Merge(merge) => {
                engine.log.note(&format!(
                    "disk '{}': taking up the merge of '{}' again",
                    guard.name(),
                    merge.journal.point.name
                ));
                engine.announce(&guard, merge::entry(&merge, "created"));
                tokio::task::spawn_local(merge::run(engine, guard, *merge, None));
                return Ok(());
            }
        }
    }
    Err(Failure::new(
        Errno::EBUSY,
        "the chain changes faster than it can be looked at",
    )
    .next("try again when the other tool has ended"))
}

/// An unfinished seal, a pivot without its rename, merges whose job has done its work, strays, and a
/// guest that was left frozen.
pub(super) async fn files_and_graph(engine: &Engine, guard: &DiskGuard) -> Result<(), Failure> {
    let repaired = repair(engine, guard).await;
    // only now: a guest that was left stopped runs, and the files have the names QEMU knows them by;
    // but it thaws also where something else cannot be repaired
    if !engine.config.verbs.read_only {
        quiesce::thaw_leftover(engine, &engine.observe_disk(guard).await?).await;
    }
    repaired
}

async fn repair(engine: &Engine, guard: &DiskGuard) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let disk = engine.observe_disk(guard).await?;
    if disk.active.file.is_none()
        || disk.active.format != Format::Qcow2
        || engine.config.verbs.read_only
    {
        return Ok(());
    }
    let ended = dismiss_ended(bridge, &disk).await?;
    idle_nodes(engine, bridge, &disk, Whose::Ours).await?;
    unfinished_seal(engine, bridge, &disk).await?;
    rollback::settle(engine, bridge, &disk).await?;
    let disk = engine.observe_disk(guard).await?;
    ended_merges(engine, bridge, &disk, &ended).await?;
    let disk = engine.observe_disk(guard).await?;
    idle_nodes(engine, bridge, &disk, Whose::Ours).await?;
    stray_names(engine, bridge, &disk).await
}

async fn unfinished_seal(engine: &Engine, bridge: &Bridge, disk: &Disk) -> Result<(), Failure> {
    let Some(root_file) = disk.active.file else {
        return Ok(());
    };
    let active = &disk.active_path;
    if let Some(marker) = layer_file::read_seal(&disk.active.path)? {
        // the snapshot did not happen: QEMU still writes the file that was to be sealed
        engine.log.note(&format!(
            "disk '{}': taking back an unfinished snapshot",
            disk.name
        ));
        // a storage daemon may have written there before it died and came back without it
        let written = settle::holds_data(&marker.overlay).unwrap_or(false);
        let overlay = (!written).then_some(marker.overlay.as_path());
        settle::undo_seal(active, &marker.sealed, overlay, root_file);
        if sys::file_id(active).ok() != Some(root_file) {
            return Err(lost_active(disk));
        }
        layer_file::clear_point(active)?;
        resume(engine, disk, &marker).await?;
        return layer_file::clear_seal(active);
    }
    let Some((below, marker)) = sealed_with_mark(disk)? else {
        return Ok(());
    };
    engine.log.note(&format!(
        "disk '{}': finishing the snapshot '{}'",
        disk.name,
        marker.sealed.display()
    ));
    let root = disk.root.clone().ok_or_else(|| lost_active(disk))?;
    let sealed_node = disk.layers[below].node.clone();
    if disk.layers[below].path != marker.sealed && root.is_ours() {
        let carried = engine.carried(disk);
        let under = below
            .checked_sub(1)
            .and_then(|under| disk.layers[under].node.clone());
        let graph = bridge.graph().await?;
        let fresh = nodes::add_sealed(bridge, &marker.sealed, "qcow2", under, &carried).await?;
        nodes::set_backing(bridge, &graph, &root, Some(fresh), Role::Active, &carried).await?;
        if let Some(old) = sealed_node {
            nodes::drop_layer(bridge, &graph, &old).await?;
        }
    }
    // the VM's own node of the sealed layer, of which a part may be left, knows the file as D
    idle_nodes(engine, bridge, disk, Whose::Anybodys).await?;
    if sys::file_id(active).ok() != Some(root_file) {
        layer_file::replace(&disk.active.path, active)?;
    }
    resume(engine, disk, &marker).await?;
    layer_file::clear_seal(&marker.sealed)
}

/// The layer below the active one, if its seal is not finished.
fn sealed_with_mark(disk: &Disk) -> Result<Option<(usize, SealMarker)>, Failure> {
    let Some(below) = disk.layers.len().checked_sub(1) else {
        return Ok(None);
    };
    let here = &disk.layers[below];
    if here.path != disk.active_path {
        let marker = match here.file {
            Some(_) => layer_file::read_seal(&here.path)?,
            None => None,
        };
        return Ok(marker.map(|marker| (below, marker)));
    }
    // D was given to the overlay, and QEMU still knows the sealed file by it: the mark is on another name
    for path in layer_file::siblings(&disk.active_path)? {
        let of_this_disk = |marker: &SealMarker| {
            let active = layer_file::active_of_alias(&marker.overlay);
            marker.sealed == path && active.as_ref() == Some(&disk.active_path)
        };
        if let Some(marker) = layer_file::read_seal(&path)?.filter(of_this_disk) {
            return Ok(Some((below, marker)));
        }
    }
    Ok(None)
}

/// Lets a guest go on that a snapshot had stopped: when the last disk of that snapshot is settled,
/// for the names of the others are not right before.
async fn resume(engine: &Engine, disk: &Disk, marker: &SealMarker) -> Result<(), Failure> {
    if !marker.resume {
        return Ok(());
    }
    let _alone = engine.alone().await?;
    if !engine.paused().await? {
        return Ok(());
    }
    for other in engine.observe().await? {
        if other.name != disk.name && waits_for_resume(&other)? {
            return Ok(());
        }
    }
    engine
        .log
        .note("the VM was left stopped in the middle of a snapshot; it goes on");
    engine.resume_guest().await
}

fn waits_for_resume(disk: &Disk) -> Result<bool, Failure> {
    if disk.active.file.is_none() {
        return Ok(false);
    }
    let marker = match layer_file::read_seal(&disk.active.path)? {
        Some(marker) => Some(marker),
        None => sealed_with_mark(disk)?.map(|(_, marker)| marker),
    };
    Ok(marker.is_some_and(|marker| marker.resume))
}

fn lost_active(disk: &Disk) -> Failure {
    Failure::new(
        Errno::EIO,
        format!(
            "{} is not the file that QEMU writes",
            disk.active_path.display()
        ),
    )
    .next(format!(
        "QEMU has {} open; put it back under that name before the VM is switched off",
        disk.active.path.display()
    ))
}

/// Files of this disk that carry the journal of a merge.
fn journals(disk: &Disk) -> Result<Vec<(PathBuf, FileId, MergeJournal)>, Failure> {
    let namesakes = layer_file::namesakes(&disk.active_path)?;
    let mut found: Vec<(PathBuf, FileId, MergeJournal)> = Vec::new();
    for path in layer_file::siblings(&disk.active_path)? {
        let Ok(file) = sys::file_id(&path) else {
            continue;
        };
        if found.iter().any(|(_, known, _)| *known == file) {
            continue;
        }
        let Some(journal) = layer_file::read_merge(&path)? else {
            continue;
        };
        let of = |other: &PathBuf| layer_file::is_name_of(&journal.upper, other);
        let in_chain = disk
            .layers
            .iter()
            .any(|layer| layer.file == Some(file) || layer.path == journal.upper);
        if in_chain || !namesakes.iter().any(of) {
            found.push((path, file, journal));
        }
    }
    Ok(found)
}

/// The jobs of this disk that have ended, dismissed. Those of other disks are their verbs' business.
async fn dismiss_ended(bridge: &Bridge, disk: &Disk) -> Result<Vec<JobInfo>, Failure> {
    let mut of_this_disk: Vec<String> = journals(disk)?
        .into_iter()
        .map(|(_, _, journal)| journal.job)
        .collect();
    for (alias, _) in layer_file::strays(&disk.active_path)? {
        of_this_disk.push(super::overlay::create_job(&alias)?.as_str().to_owned());
    }
    let mut ended = bridge.jobs().await?;
    ended.retain(|job| {
        job.status == JobStatus::Concluded && of_this_disk.iter().any(|id| job.id.as_str() == id)
    });
    for job in &ended {
        // a concluded job still holds its nodes
        bridge.dismiss_job(&job.id).await?;
    }
    Ok(ended)
}

async fn ended_merges(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    ended: &[JobInfo],
) -> Result<(), Failure> {
    let at_work = bridge.jobs().await?;
    for (path, file, journal) in journals(disk)? {
        if at_work.iter().any(|job| job.id.as_str() == journal.job) {
            continue;
        }
        let failed = ended
            .iter()
            .find(|job| job.id.as_str() == journal.job)
            .and_then(|job| job.error.clone());
        end_merge(engine, bridge, disk, &path, file, &journal, failed).await?;
    }
    Ok(())
}

async fn end_merge(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    path: &Path,
    file: FileId,
    journal: &MergeJournal,
    failed: Option<String>,
) -> Result<(), Failure> {
    let in_chain = disk
        .layers
        .iter()
        .position(|layer| layer.file == Some(file));
    let is_root = disk.active.file == Some(file);
    let upper_in_chain = names_active(disk, &journal.upper)
        || disk
            .layers
            .iter()
            .any(|layer| layer.path == journal.upper && layer.file != Some(file));
    let name = &journal.point.name;
    let sealed = layer_file::sealed_path(&disk.active_path, name);
    if journal.verb == steps::RENAME {
        return end_rename(disk, in_chain, &sealed, file, journal);
    }
    match (Verb::from_word(&journal.verb), in_chain) {
        (Some(Verb::Release), _) => end_release(engine, bridge, disk, path, journal, failed).await,
        (Some(Verb::Stream), Some(_)) => {
            engine.log.note(&format!(
                "disk '{}': the merge of '{name}' did not end{}; the point stays",
                disk.name,
                because(failed)
            ));
            layer_file::clear_merge(path)
        }
        // a commit that was cut short may have been ended by a stream
        (Some(Verb::Stream | Verb::Commit | Verb::CommitActive), None)
            if !is_root && upper_in_chain =>
        {
            engine.log.note(&format!(
                "disk '{}': the merge of '{name}' has ended",
                disk.name
            ));
            let directory = path.parent().unwrap_or(Path::new("/"));
            if let Some(other) =
                layer_file::dependents(directory, file, &chain_files(disk))?.first()
            {
                engine.report_once(&format!(
                    "disk '{}': {} is in its chain no more, but {} stands on it; it is left alone",
                    disk.name,
                    path.display(),
                    other.display()
                ));
                return Ok(());
            }
            let graph = bridge.graph().await?;
            let node = graph
                .nodes()
                .find(|node| node.path.as_deref() == Some(path) && node.driver == "qcow2")
                .map(|node| node.name.clone());
            steps::finish_stream(
                engine,
                bridge,
                node.as_ref(),
                path,
                file,
                steps::Upper::of(disk, &upper_file(disk, journal)),
            )
            .await
        }
        (Some(Verb::CommitActive), None) if is_root => {
            engine.log.note(&format!(
                "disk '{}': finishing the pivot to '{name}'",
                disk.name
            ));
            let _alone = engine.alone().await?;
            let pivoted = steps::Pivoted {
                active: disk.active_path.clone(),
                opened_as: disk.active.path.clone(),
                sealed,
                file,
                resume: journal.resume && engine.paused().await?,
                old_node: None,
                old_alias: old_alias(disk, &journal.upper),
            };
            steps::finish_pivot(engine, bridge, &pivoted).await
        }
        (Some(Verb::Commit), Some(index)) if !upper_still_there(disk, index, journal) => {
            engine.log.note(&format!(
                "disk '{}': finishing the merge of '{name}'",
                disk.name
            ));
            let over = disk.layers.get(index + 1).unwrap_or(&disk.active);
            let (Some(root), Some(over_node)) = (disk.root.clone(), over.node.clone()) else {
                return Err(lost_active(disk));
            };
            let committed = steps::Committed {
                root,
                over: over_node,
                over_role: if index + 1 < disk.layers.len() {
                    Role::Sealed
                } else {
                    Role::Active
                },
                over_path: over.path.clone(),
                upper_node: None,
                upper_path: journal.upper.clone(),
                upper_record: journal.upper_record.clone(),
                sealed,
                file,
                journal: journal.clone(),
            };
            steps::finish_commit(bridge, &committed, &engine.carried(disk)).await
        }
        // begun and not ended: merge_to_resume takes it up again
        (Some(Verb::Commit | Verb::CommitActive), Some(_)) => Ok(()),
        (Some(Verb::Stream | Verb::Commit | Verb::CommitActive) | None, _) => {
            engine.report_once(&format!(
                "disk '{}': {} was part of a merge and is in no chain now; it is left alone (next: look at it with qemu-img info, remove it by hand when it is not needed)",
                disk.name,
                path.display()
            ));
            Ok(())
        }
    }
}

/// Somebody else's layer was on its way out of the chain, as the file above it says.
async fn end_release(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    upper: &Path,
    journal: &MergeJournal,
    failed: Option<String>,
) -> Result<(), Failure> {
    let left = journal.below.as_ref();
    let file = left.and_then(|left| Some((left, sys::file_id(left).ok()?)));
    match file {
        Some((left, file)) if !chain_files(disk).contains(&file) => {
            steps::finish_release(engine, bridge, &disk.name, left, file, upper).await
        }
        Some(_) | None => {
            engine.log.note(&format!(
                "disk '{}': the merge of '{}' did not end{}; the layer stays",
                disk.name,
                journal.point.name,
                because(failed)
            ));
            layer_file::clear_merge(upper)
        }
    }
}

/// The old name of a file goes as soon as QEMU has opened the file under the new one.
fn end_rename(
    disk: &Disk,
    in_chain: Option<usize>,
    sealed: &Path,
    file: FileId,
    journal: &MergeJournal,
) -> Result<(), Failure> {
    if in_chain.is_none_or(|index| disk.layers[index].path != journal.upper) {
        return Ok(());
    }
    settle::remove_file(sealed, file)?;
    layer_file::clear_merge(&journal.upper)
}

/// Whether a path is D or an alias of it.
fn names_active(disk: &Disk, path: &Path) -> bool {
    path == disk.active_path
        || layer_file::active_of_alias(path).as_ref() == Some(&disk.active_path)
}

/// The alias of the layer that was active before the pivot, if it had one.
fn old_alias(disk: &Disk, upper: &Path) -> Option<PathBuf> {
    (upper != disk.active_path && names_active(disk, upper)).then(|| upper.to_owned())
}

fn because(failed: Option<String>) -> String {
    failed.map_or_else(String::new, |error| format!(" ({error})"))
}

/// The file above, under the name QEMU knows it by.
fn upper_file(disk: &Disk, journal: &MergeJournal) -> PathBuf {
    if names_active(disk, &journal.upper) {
        disk.active.path.clone()
    } else {
        journal.upper.clone()
    }
}

/// Whether the layer that was to be committed still stands on the one it was committed into.
fn upper_still_there(disk: &Disk, index: usize, journal: &MergeJournal) -> bool {
    let up = merge::plan::above(disk, index);
    let here = disk.layers[index].file;
    up.file != here
        && sys::file_id(&journal.upper)
            .ok()
            .is_some_and(|upper| up.file == Some(upper))
}

/// A merge whose job still runs, or a commit that has to be begun again because it cannot be undone.
async fn merge_to_resume(engine: &Engine, guard: &DiskGuard) -> Result<Resume, Failure> {
    let bridge = engine.bridge()?;
    let jobs = bridge.jobs().await?;
    let disk = engine.observe_disk(guard).await?;
    if engine.config.verbs.read_only {
        return Ok(Resume::Nothing);
    }
    for (path, file, mut journal) in journals(&disk)? {
        if engine.was_refused(&journal.job) {
            // it was told so, and nothing was begun
            layer_file::clear_merge(&path)?;
            continue;
        }
        let Some(verb) = Verb::from_word(&journal.verb) else {
            continue;
        };
        let running = jobs.iter().find(|job| job.id.as_str() == journal.job);
        let index = match verb {
            Verb::Stream | Verb::Commit | Verb::CommitActive => disk
                .layers
                .iter()
                .position(|layer| layer.file == Some(file)),
            Verb::Release if running.is_some() => below(&disk, file),
            Verb::Release => None,
        };
        let Some(index) = index.filter(|index| stands_as_it_did(&disk, *index, verb, &journal))
        else {
            if running.is_some() {
                return Ok(Resume::LookAgain);
            }
            continue;
        };
        // where commit cannot re-arrange the nodes, a stream ends it as well: the layer above,
        // read through the mixed one, is right at every moment
        let verb = match running {
            _ if verb == Verb::Release => verb,
            Some(job) if job.is_stream() => Verb::Stream,
            None if !merge::plan::may_commit(&disk) => Verb::Stream,
            Some(_) | None => verb,
        };
        let job = match running {
            Some(_) => JobId::new(journal.job.clone()),
            None => JobId::fresh(verb.word()),
        };
        let job = job.map_err(|error| Failure::new(Errno::EIO, error.to_string()))?;
        journal.job = job.as_str().into();
        return Ok(Resume::Merge(Box::new(merge::Merge::resumed(
            disk, index, verb, job, journal,
        ))));
    }
    Ok(Resume::Nothing)
}

/// The layer below a file.
fn below(disk: &Disk, file: FileId) -> Option<usize> {
    let above = |layer: &crate::model::Layer| layer.file == Some(file);
    let place = disk.layers.iter().position(above);
    let place = place.or_else(|| above(&disk.active).then_some(disk.layers.len()));
    place?.checked_sub(1)
}

/// Whether the two layers of a merge are still neighbours, which they are until its job has ended.
fn stands_as_it_did(disk: &Disk, index: usize, verb: Verb, journal: &MergeJournal) -> bool {
    match verb {
        Verb::CommitActive => index + 1 == disk.layers.len(),
        Verb::Release => journal.below.as_ref() == Some(&disk.layers[index].path),
        Verb::Commit => upper_still_there(disk, index, journal),
        Verb::Stream => names_active(disk, &journal.upper) == (index + 1 == disk.layers.len()),
    }
}

/// Which idle nodes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Ours,
    /// Also those of the VM's command line: what a seal takes out of the chain.
    Anybodys,
}

/// Nodes on files of this disk that nothing uses and that are no disk. Other disks may be in the
/// middle of a verb: theirs are not touched.
pub(super) async fn idle_nodes(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    whose: Whose,
) -> Result<(), Failure> {
    let sight = engine.sight(bridge);
    let namesakes = layer_file::namesakes(&disk.active_path)?;
    let is_name = |path: &Path| {
        let of = |active: &PathBuf| layer_file::is_name_of(path, active);
        of(&disk.active_path) && !namesakes.iter().any(of)
    };
    // a chain of idle nodes goes from its top down, one a round
    for _ in 0..IDLE_ROUNDS {
        let graph = bridge.graph().await?;
        let used = |name: &NodeName| !graph.parents(name).is_empty();
        if !disk.root.as_ref().is_some_and(used) {
            // nobody uses the disk itself: it cannot be told from what is left of it
            return Ok(());
        }
        let idle = graph
            .nodes()
            .filter(|node| !used(&node.name) && !node.name.is_generated())
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
async fn stray_names(engine: &Engine, bridge: &Bridge, disk: &Disk) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    let sight = engine.sight(bridge);
    let in_use: Vec<PathBuf> = graph
        .nodes()
        .filter_map(|node| sight.resolve(node.path.as_deref()?))
        .collect();
    remove_strays(&disk.active_path, &in_use, &chain_files(disk), &|text| {
        engine.report_once(text)
    })
}

fn chain_files(disk: &Disk) -> Vec<FileId> {
    disk.layers
        .iter()
        .chain([&disk.active])
        .filter_map(|layer| layer.file)
        .collect()
}

/// Removes aliases that nobody uses: other names of files of the chain, and overlays never written.
fn remove_strays(
    active: &Path,
    in_use: &[PathBuf],
    chain: &[FileId],
    report: &dyn Fn(&str),
) -> Result<(), Failure> {
    for (path, file) in layer_file::strays(active)? {
        if in_use.contains(&path) {
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

/// The files of a disk whose QEMU is gone, before our own daemon opens them.
pub(super) fn offline(active: &Path, chain: &[FileId]) -> Result<(), Failure> {
    let Ok(file) = sys::file_id(active) else {
        return Ok(());
    };
    if let Some(marker) = layer_file::read_seal(active)? {
        if settle::holds_data(&marker.overlay)? {
            // the guest wrote into the overlay before D could name it
            layer_file::replace(&marker.overlay, active)?;
            layer_file::clear_seal(&marker.sealed)?;
        } else {
            settle::undo_seal(active, &marker.sealed, Some(&marker.overlay), file);
            layer_file::clear_point(active)?;
            layer_file::clear_seal(active)?;
        }
    }
    rollback::settle_names(active, file)?;
    let mut chain = chain.to_vec();
    chain.extend(sys::file_id(active).ok());
    remove_strays(active, &[], &chain, &|text| tracing::warn!("{text}"))
}
