//! point.json of a checkpoint, and what reading the VM's `rollback` shows.

use super::{json, rfc3339};
use crate::intent::Verbs;
use crate::model::{Model, Role};
use crate::tree::{Checkpoint, checkpoint, checkpoints, saving};
use serde::Serialize;
use std::collections::BTreeMap;

/// The object of it.
#[derive(Serialize)]
struct CheckpointJson<'a> {
    kind: &'static str,
    name: &'a str,
    /// `saving`, or `saved`.
    state: &'static str,
    time: String,
    /// Bytes of RAM and devices.
    vm_state_size: u64,
    /// The same, by the disk whose image holds them.
    vm_state_sizes: BTreeMap<&'a str, u64>,
    /// The disks that have a part of it.
    disks: Vec<&'a str>,
    /// Disks of today that have none and ought to.
    gone: Vec<&'a str>,
    /// Whether all disks have their part.
    complete: bool,
    /// Whether the VM can go back to it.
    loadable: bool,
    why_not: Option<String>,
    /// What of the machine at that instant is not in it.
    missing: Vec<String>,
}

pub(super) fn text(model: &Model, name: &str) -> Option<String> {
    if saving(model) == Some(name) {
        return model.vm.state_job.as_ref().map(|job| {
            json(&CheckpointJson {
                kind: "checkpoint",
                name,
                state: "saving",
                time: rfc3339(job.since),
                vm_state_size: 0,
                vm_state_sizes: BTreeMap::new(),
                disks: Vec::new(),
                gone: Vec::new(),
                complete: false,
                loadable: false,
                why_not: Some("it is just being saved".into()),
                missing: Vec::new(),
            })
        });
    }
    let found = checkpoint(model, name)?;
    let sizes = found.members.iter();
    let sizes = sizes.map(|(disk, part)| (disk.name.as_str(), part.vm_state_size));
    let why_not = found.why_not_loadable();
    Some(json(&CheckpointJson {
        kind: "checkpoint",
        name: &found.name,
        state: "saved",
        time: rfc3339(found.time),
        vm_state_size: found.state.1.vm_state_size,
        vm_state_sizes: sizes.collect(),
        disks: found
            .members
            .iter()
            .map(|(disk, _)| disk.name.as_str())
            .collect(),
        gone: found.absent.iter().map(|disk| disk.name.as_str()).collect(),
        complete: found.absent.is_empty(),
        loadable: why_not.is_none(),
        why_not,
        missing: missing(model, &found),
    }))
}

/// What of the machine is not in it: RAM and devices are.
pub(super) fn missing(model: &Model, found: &Checkpoint<'_>) -> Vec<String> {
    let mut missing = super::point::machine(model);
    missing.retain(|part| part != super::point::RAM);
    let absent = found.absent.iter();
    missing.extend(absent.map(|disk| format!("disk {}: has no part of it", disk.name)));
    let left_out = model.disks.iter().filter(|disk| {
        disk.state_part.role == Role::ReadOnly && found.member(&disk.name).is_none()
    });
    missing.extend(left_out.map(|disk| format!("disk {}: is read-only, and as it was", disk.name)));
    missing
}

/// What reading `rollback` shows: the checkpoints that the VM can go back to, and what would happen.
pub(super) fn rollback(model: &Model, verbs: Verbs) -> String {
    let mut text = String::from(
        "echo NAME > rollback: the VM goes on from that checkpoint, disks and RAM; what is now stays as a checkpoint\n",
    );
    text.push_str(match verbs {
        Verbs {
            read_only: true, ..
        } => "not here: mounted with -o ro\n",
        Verbs {
            live_rollback: true,
            ..
        } => "the VM stands still while both are saved and loaded\n",
        Verbs { .. } => "refused, unless mounted with -o live_rollback\n",
    });
    for found in checkpoints(model) {
        match found.why_not_loadable() {
            None => text.push_str(&format!("checkpoints/{}\n", found.name)),
            Some(why) => text.push_str(&format!("(not checkpoints/{}: {why})\n", found.name)),
        }
    }
    text
}
