//! What a killed daemon, a dead QEMU or a power cut left: finished or undone, from what the graph
//! and the files themselves say (the marks `user.qmpfs.seal` and `user.qmpfs.merge`). Run at every
//! mount, at every new connection, and after a verb whose outcome was not known. Doing it twice
//! changes nothing; what it does not understand it leaves alone and says so.

mod merges;
mod seal;
mod strays;

pub(super) use strays::{Whose, idle_nodes};

use super::engine::{DiskGuard, Engine};
use super::{backup, checkpoint, live, merge, migration, quiesce, rollback, settle};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{Disk, FileId, Format};
use crate::sys;
use merges::Resume;
use qmpbridge::{Bridge, JobId, JobInfo, JobStatus};
use std::path::Path;
use std::rc::Rc;

/// A job can end once between two looks.
const ROUNDS: u32 = 4;

/// Everything for one disk, beginning with an unfinished seal and ending with a merge that is
/// taken up again (which then holds the disk).
pub(super) async fn disk(engine: Rc<Engine>, guard: DiskGuard) -> Result<(), Failure> {
    for _ in 0..ROUNDS {
        files_and_graph(&engine, &guard).await?;
        match merges::to_resume(&engine, &guard).await? {
            Resume::Nothing => return backup::settle(&engine, guard).await,
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
    // a verb of live/ may have left something
    let swept = match engine.is_unsettled(guard.name()) {
        true => live::sweep(engine).await,
        false => Ok(()),
    };
    let repaired = repair(engine, guard).await.and(swept);
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
    if disk.tuning.replaced {
        // what is written down is of another file; each verb of the chain refuses by itself
        return Ok(());
    }
    // the other QEMU has the files open by the names they have now
    migration::refuse(bridge).await?;
    let ended = dismiss_ended(engine, bridge, &disk).await?;
    idle_nodes(engine, bridge, &disk, Whose::Ours).await?;
    seal::unfinished(engine, bridge, &disk).await?;
    rollback::settle(engine, bridge, &disk).await?;
    checkpoint::settle(engine, bridge, &disk).await?;
    let disk = engine.observe_disk(guard).await?;
    merges::ended(engine, bridge, &disk, &ended).await?;
    let disk = engine.observe_disk(guard).await?;
    idle_nodes(engine, bridge, &disk, Whose::Ours).await?;
    strays::names(engine, bridge, &disk).await
}

/// The jobs of this disk that have ended, dismissed. Those of other disks are their verbs' business.
async fn dismiss_ended(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
) -> Result<Vec<JobInfo>, Failure> {
    let mut of_this_disk: Vec<String> = merges::journals(engine, disk)?
        .into_iter()
        .map(|(_, _, journal)| journal.job)
        .collect();
    for (alias, _) in layer_file::strays(&disk.active_path)? {
        of_this_disk.push(super::overlay::create_job(&alias)?.as_str().to_owned());
    }
    let mut ended = bridge.jobs().await?;
    let of_this_disk = |id: &JobId| of_this_disk.iter().any(|known| id.as_str() == known);
    ended.retain(|job| job.status == JobStatus::Concluded && of_this_disk(&job.id));
    for job in &ended {
        // a concluded job still holds its nodes
        bridge.dismiss_job(&job.id).await?;
    }
    Ok(ended)
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
    strays::remove(active, &[], &chain, &|text| tracing::warn!("{text}"))
}
