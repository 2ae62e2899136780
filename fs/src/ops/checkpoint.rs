//! `mkdir` and `rmdir` in checkpoints/, and `load`, the way back: internal snapshots of all disks
//! with the RAM, which QEMU makes by itself. Who takes part is decided here and refused before QEMU is asked; `job` follows
//! it while it answers nobody. All disks are held to its end. What a killed daemon leaves is a job
//! that has ended, which the next one dismisses.

mod job;
mod load;

pub(super) use job::is_state_job;
pub(super) use load::{load, settle};

use super::Answer;
use super::check::{self, changed, refuse_if_mixed};
use super::engine::{DiskGuard, Engine};
use super::migration;
use crate::errno::{Errno, Failure};
use crate::intent;
use crate::layer_file;
use crate::leases::Closed;
use crate::model::{Disk, Model, Role, StateVerb};
use crate::sys;
use crate::tree::{Checkpoint, checkpoint};
use job::StateWork;
use qmpbridge::NodeName;
use qmpbridge::command::{QueryStatus, SnapshotDelete, SnapshotSave};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

/// Room beside the RAM itself: tables of the image, and the guest goes on writing.
const STATE_RESERVE: u64 = 16 << 20;

/// Saves the disks and the RAM. `answer` is called when QEMU is at work on it, or refuses.
pub(super) async fn take(engine: Rc<Engine>, name: &str, answer: Answer<()>) {
    let ready = async {
        let wanted = written(&engine.observe().await?);
        let guards = engine.hold_all(&wanted).await?;
        let model = look(&engine).await?;
        if written(&model.disks) != wanted {
            return Err(changed());
        }
        intent::checkpoint_complete(&model.disks)?;
        intent::checkpoint_free(&model, name)?;
        at_rest(&engine).await?;
        for disk in &model.disks {
            // it would go with the layer that is committed
            refuse_if_mixed(&disk.name, disk.layers.last())?;
        }
        let disks = model.disks.iter();
        let parts = parts(
            &engine,
            disks.filter(|disk| wanted.contains(&disk.name)).collect(),
        )?;
        let work = StateWork::new(&engine, guards, StateVerb::Save, name)?;
        let command = SnapshotSave {
            job_id: work.id().clone(),
            tag: name.to_owned(),
            vmstate: parts.first,
            devices: parts.devices,
        };
        // the guest stands still for it
        Ok((work, command, engine.alone().await?))
    };
    match ready.await {
        Ok((work, command, _alone)) => work.run(command, answer).await,
        Err(failure) => answer(Err(failure)),
    }
}

/// Removes a checkpoint from all its disks. `answer` is called when QEMU is at work on it, or refuses.
pub(super) async fn delete(engine: Rc<Engine>, name: &str, answer: Answer<()>) {
    let ready = async {
        let there = look(&engine).await?;
        let wanted = members(&found(&there, name)?);
        let guards = engine.hold_all(&wanted).await?;
        let model = look(&engine).await?;
        let found = found(&model, name)?;
        if members(&found) != wanted {
            return Err(changed());
        }
        intent::checkpoint_removable(&found)?;
        at_rest(&engine).await?;
        // nobody opens a part between this look and QEMU's answer
        let closed = close(&engine, &found)?;
        let disks: Vec<&Disk> = found.members.iter().map(|(disk, _)| *disk).collect();
        let work = StateWork::new(&engine, guards, StateVerb::Delete, name)?;
        let command = SnapshotDelete {
            job_id: work.id().clone(),
            tag: found.tag.to_owned(),
            devices: devices(&disks)?,
        };
        Ok((work, command, closed))
    };
    match ready.await {
        Ok((work, command, _closed)) => work.run(command, answer).await,
        Err(failure) => answer(Err(failure)),
    }
}

/// The disks as QEMU has them now, beside what is known of the VM.
async fn look(engine: &Engine) -> Result<Model, Failure> {
    let disks = engine.observe().await?;
    let vm = engine.current().vm.clone();
    Ok(Model { vm, disks })
}

fn written(disks: &[Disk]) -> BTreeSet<String> {
    let written = disks
        .iter()
        .filter(|disk| disk.state_part.role == Role::Written);
    written.map(|disk| disk.name.clone()).collect()
}

fn members(found: &Checkpoint<'_>) -> BTreeSet<String> {
    let members = found.members.iter();
    members.map(|(disk, _)| disk.name.clone()).collect()
}

fn found<'a>(model: &'a Model, name: &str) -> Result<Checkpoint<'a>, Failure> {
    checkpoint(model, name).ok_or_else(|| {
        Failure::new(Errno::ENOENT, format!("there is no checkpoint '{name}'"))
            .next("see which there are: ls checkpoints")
    })
}

/// The disks of a state that is to be saved.
struct Parts<'a> {
    devices: Vec<NodeName>,
    /// Where the RAM goes, and the disk that is.
    first: NodeName,
    holder: &'a Disk,
}

/// In the order of QEMU's devices, with room for the RAM.
fn parts<'a>(engine: &Engine, mut disks: Vec<&'a Disk>) -> Result<Parts<'a>, Failure> {
    // loadvm and -loadvm look for the RAM on the first device that has the snapshot
    disks.sort_by_key(|disk| disk.state_part.place);
    let devices = devices(&disks)?;
    let holder = *disks.first().ok_or_else(changed)?;
    let first = check::root_of(holder)?;
    room(engine, holder)?;
    Ok(Parts {
        devices,
        first,
        holder,
    })
}

fn devices(disks: &[&Disk]) -> Result<Vec<NodeName>, Failure> {
    disks.iter().map(|disk| check::root_of(disk)).collect()
}

/// Not in the middle of another verb that moves the state of the VM.
async fn at_rest(engine: &Engine) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    migration::refuse(bridge).await?;
    let status = bridge.run(QueryStatus).await?.status;
    match status.as_str() {
        "save-vm" | "restore-vm" => Err(Failure::new(
            Errno::EBUSY,
            format!("the VM is being saved or loaded ({status})"),
        )
        .next("wait for the other tool; a VM left in restore-vm goes on with cont, or better: is reset")),
        _ => Ok(()),
    }
}

/// The RAM that QEMU really has is the most it can write. Where that cannot be known QEMU finds out.
fn room(engine: &Engine, holder: &Disk) -> Result<(), Failure> {
    let pid = engine.bridge()?.peer_pid();
    let Some(resident) = pid.and_then(|pid| sys::process_memory(pid).ok()) else {
        return Ok(());
    };
    let directory = holder.active_path.parent().unwrap_or(Path::new("/"));
    let free = layer_file::free_bytes(directory)?;
    let needed = resident.saturating_add(STATE_RESERVE);
    if needed <= free {
        return Ok(());
    }
    Err(Failure::new(
        Errno::ENOSPC,
        format!(
            "the RAM may need {needed} bytes in {}, and {free} are free",
            directory.display()
        ),
    )
    .next("make room on that filesystem; mkdir snapshots/NAME saves the disks without the RAM"))
}

/// Closes all parts, or none.
fn close(engine: &Engine, found: &Checkpoint<'_>) -> Result<Vec<Closed>, Failure> {
    let parts = found.members.iter().map(|(disk, part)| {
        let key = check::internal_of(disk, part)?;
        let point = format!("disks/{}/internal/{}", disk.name, part.name);
        check::close(engine, key, &point)
    });
    parts.collect()
}

/// Whose disks a job is at work on.
fn names(guards: &[DiskGuard]) -> Vec<String> {
    guards.iter().map(|guard| guard.name().to_owned()).collect()
}
