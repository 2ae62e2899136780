//! Merges that were under way: those that ended while nobody looked are finished, those that did
//! not are taken up again or forgotten, as the journal on the file and the graph say.

use super::lost_active;
use crate::errno::Failure;
use crate::layer_file::{self, MergeJournal};
use crate::model::{Disk, FileId};
use crate::ops::engine::{DiskGuard, Engine};
use crate::ops::merge::{self, finish, plan::Verb};
use crate::ops::nodes::Role;
use crate::ops::settle;
use crate::sys;
use qmpbridge::{Bridge, JobId, JobInfo, Node};
use std::path::{Path, PathBuf};

/// What is left to do after the quick repairs.
pub(super) enum Resume {
    Nothing,
    /// A job ended between two looks.
    LookAgain,
    Merge(Box<merge::Merge>),
}

/// Files of this disk that carry the journal of a merge.
pub(super) fn journals(
    engine: &Engine,
    disk: &Disk,
) -> Result<Vec<(PathBuf, FileId, MergeJournal)>, Failure> {
    let namesakes = layer_file::namesakes(&disk.active_path)?;
    let mut found: Vec<(PathBuf, FileId, MergeJournal)> = Vec::new();
    for path in layer_file::siblings(&disk.active_path)? {
        let Ok(file) = sys::file_id(&path) else {
            continue;
        };
        if found.iter().any(|(_, known, _)| *known == file) {
            continue;
        }
        let journal = match layer_file::read_merge(&path) {
            Err(failure)
                if layer_file::is_kept_from_us(&failure) && disk.files().all(|its| its != file) =>
            {
                engine.report_once(&format!(
                    "disk '{}': a file that is named like one of its layers is passed over: {failure}",
                    disk.name
                ));
                continue;
            }
            told => told?,
        };
        let Some(journal) = journal else {
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

/// Merges that ended while nobody looked.
pub(super) async fn ended(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    ended: &[JobInfo],
) -> Result<(), Failure> {
    let at_work = bridge.jobs().await?;
    for (path, file, journal) in journals(engine, disk)? {
        if at_work.iter().any(|job| job.id.as_str() == journal.job) {
            continue;
        }
        let failed = ended
            .iter()
            .find(|job| job.id.as_str() == journal.job)
            .and_then(|job| job.error.clone());
        end(engine, bridge, disk, &path, file, &journal, failed).await?;
    }
    Ok(())
}

async fn end(
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
    if journal.verb == finish::RENAME {
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
            let graph = bridge.graph().await?;
            let on_it = || {
                let nodes = graph.nodes();
                nodes.filter(|node| node.path.as_deref() == Some(path))
            };
            // where the one of its format went, and the one below was refused to
            let left = |node: &&Node| node.name.is_ours() && graph.parents(&node.name).is_empty();
            let node = on_it()
                .find(|node| node.driver == "qcow2")
                .or_else(|| on_it().find(left))
                .map(|node| node.name.clone());
            finish::stream(
                engine,
                bridge,
                node.as_ref(),
                path,
                file,
                finish::Upper::of(disk, &upper_file(disk, journal)),
            )
            .await
        }
        (Some(Verb::CommitActive), None) if is_root => {
            engine.log.note(&format!(
                "disk '{}': finishing the pivot to '{name}'",
                disk.name
            ));
            let _alone = engine.alone().await?;
            let pivoted = finish::Pivoted {
                active: disk.active_path.clone(),
                opened_as: disk.active.path.clone(),
                sealed,
                file,
                resume: journal.resume && engine.paused().await?,
                old_node: None,
                old_alias: old_alias(disk, &journal.upper),
            };
            finish::pivot(engine, bridge, &pivoted).await
        }
        (Some(Verb::Commit), Some(index))
            if Upper::find(disk, index, journal) == Upper::Committed =>
        {
            engine.log.note(&format!(
                "disk '{}': finishing the merge of '{name}'",
                disk.name
            ));
            let over = disk.layers.get(index + 1).unwrap_or(&disk.active);
            let (Some(root), Some(over_node)) = (disk.root.clone(), over.node.clone()) else {
                return Err(lost_active(disk));
            };
            let committed = finish::Committed {
                disk: disk.name.clone(),
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
            finish::commit(engine, bridge, &committed, &engine.carried(disk)).await
        }
        // begun and not ended: [`to_resume`] takes it up again
        (Some(Verb::CommitActive), Some(_)) if journal.moving => {
            was_moving(engine, disk, path, journal)
        }
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

/// Clients were to be moved onto this file when somebody died, and D still names the layer they were on. QEMU that
/// has it open as D was started since: it may have been on the other one before.
fn was_moving(
    engine: &Engine,
    disk: &Disk,
    path: &Path,
    journal: &MergeJournal,
) -> Result<(), Failure> {
    if disk.active.path == disk.active_path {
        engine.log.note(&format!(
            "disk '{}': qmpfs and the storage daemon ended while its clients were moved onto '{}': what they wrote from that moment on may be LOST IN PART, and the disk a mixture of two moments (next: check its filesystems before you trust it, or go back to a point or a backup)",
            disk.name, journal.point.name
        ));
    }
    let journal = MergeJournal {
        moving: false,
        ..journal.clone()
    };
    layer_file::write_merge(path, &journal)
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
        Some((left, file)) if !disk.files().any(|its| its == file) => {
            finish::release(engine, bridge, &disk.name, left, file, upper).await
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

/// Where the layer is that was to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upper {
    /// It stands on the one it was to be committed into.
    Stands,
    /// In the chain no more, because it was committed: its name is still its own, or that of the file that received it.
    Committed,
    /// It went in another way: its name is gone.
    Gone,
}

impl Upper {
    fn find(disk: &Disk, index: usize, journal: &MergeJournal) -> Self {
        let receiver = disk.layers[index].file;
        let above = merge::plan::above(disk, index).file;
        match sys::file_id(&journal.upper).ok() {
            Some(upper) if above == Some(upper) && above != receiver => Upper::Stands,
            Some(upper) if receiver == Some(upper) || disk.files().all(|its| its != upper) => {
                Upper::Committed
            }
            Some(_) | None => Upper::Gone,
        }
    }
}

/// A merge whose job still runs, or a commit that has to be begun again because it cannot be undone.
pub(super) async fn to_resume(engine: &Engine, guard: &DiskGuard) -> Result<Resume, Failure> {
    let bridge = engine.bridge()?;
    let jobs = bridge.jobs().await?;
    let disk = engine.observe_disk(guard).await?;
    if engine.config.verbs.read_only || disk.tuning.replaced {
        return Ok(Resume::Nothing);
    }
    for (path, file, mut journal) in journals(engine, &disk)? {
        if engine.was_refused(&journal.job) {
            // it was told so, and nothing was begun
            layer_file::clear_merge(&path)?;
            continue;
        }
        let Some(verb) = Verb::from_word(&journal.verb) else {
            continue;
        };
        let running = jobs.iter().find(|job| job.id.as_str() == journal.job);
        let here = disk
            .layers
            .iter()
            .position(|layer| layer.file == Some(file));
        let verb = match (verb, here) {
            // what was to be committed left in another way: the layer above is right, read through this one
            (Verb::Commit, Some(index)) if Upper::find(&disk, index, &journal) == Upper::Gone => {
                Verb::Stream
            }
            (verb, _) => verb,
        };
        let index = match verb {
            Verb::Stream | Verb::Commit | Verb::CommitActive => here,
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
        if let (None, Some(name)) = (running, merge::plan::internal_in_upper(&disk, index)) {
            engine.report_once(&format!(
                "disk '{}': the merge of '{}' waits: the layer above holds internal snapshot '{name}', which would change or be lost (next: rmdir disks/{}/internal/{name}, then mount again)",
                disk.name, journal.point.name, disk.name
            ));
            continue;
        }
        // where commit cannot re-arrange the nodes, a stream ends it as well: the layer above,
        // read through the mixed one, is right at every moment
        let verb = match running {
            _ if verb == Verb::Release => verb,
            Some(job) if job.is_stream() => Verb::Stream,
            None if !merge::plan::may_commit(&disk) => Verb::Stream,
            Some(_) | None => verb,
        };
        let job = match running {
            Some(_) => JobId::new(journal.job.clone())?,
            None => JobId::fresh(verb.word())?,
        };
        journal.job = job.as_str().into();
        return Ok(Resume::Merge(Box::new(merge::Merge::resumed(
            disk, index, verb, job, journal,
        ))));
    }
    Ok(Resume::Nothing)
}

/// The layer below a file.
fn below(disk: &Disk, file: FileId) -> Option<usize> {
    let place = disk.chain().position(|layer| layer.file == Some(file));
    place?.checked_sub(1)
}

/// Whether the two layers of a merge are still neighbours, which they are until its job has ended.
fn stands_as_it_did(disk: &Disk, index: usize, verb: Verb, journal: &MergeJournal) -> bool {
    match verb {
        Verb::CommitActive => index + 1 == disk.layers.len(),
        Verb::Release => journal.below.as_ref() == Some(&disk.layers[index].path),
        Verb::Commit => Upper::find(disk, index, journal) == Upper::Stands,
        Verb::Stream => names_active(disk, &journal.upper) == (index + 1 == disk.layers.len()),
    }
}
