//! What a mkdir, an rmdir or a line written means: the one table from a place in the tree and a
//! name or words to an [`Intent`], or a refusal. Pure: it looks at the model, asks nobody and changes nothing.

mod rollback;
mod words;

pub(crate) use rollback::to_internal as rollback_to_internal;
pub use words::JobCommand;

use crate::errno::{Errno, Failure};
use crate::model::{ConnectionState, Disk, Manager, Model};
use crate::tree::{
    Control, Found, NodeKey, PointKey, Section, exists, find_group, find_point, layer_dir_name,
    layer_identity, valid_name,
};
use std::collections::BTreeMap;

/// A verb, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// `mkdir snapshots/NAME`
    TakeGroup {
        /// The name of all its points.
        name: String,
    },
    /// `rmdir snapshots/NAME`
    DeleteGroup {
        /// Its identity: of two that have one name, the one that was meant.
        id: String,
        /// Its name in the tree.
        name: String,
    },
    /// `mkdir disks/DISK/snapshots/NAME`
    TakeExternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/snapshots/NAME`
    DeleteExternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/layers/NAME` of a layer that qmpfs did not make
    ReleaseLayer {
        /// The disk's name.
        disk: String,
        /// Which layer (`tree::layer_identity`).
        identity: String,
        /// What it is called in layers/.
        name: String,
    },
    /// `mkdir disks/DISK/internal/NAME`
    TakeInternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/internal/NAME`
    DeleteInternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `echo NAME > disks/DISK/rollback`
    Rollback {
        /// The disk's name.
        disk: String,
        /// The point's name, with the directory it stands in.
        name: String,
        /// The point.
        point: PointKey,
    },
    /// `rmdir disks/DISK/snapshots/NAME` of a point beside the chain
    DeleteBranch {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/jobs/ID`
    CancelJob {
        /// The disk's name.
        disk: String,
        /// QEMU's job id.
        id: String,
    },
    /// A line written to `disks/DISK/jobs/ID/ctl`
    ControlJob {
        /// The disk's name.
        disk: String,
        /// QEMU's job id.
        id: String,
        /// What the line says.
        command: JobCommand,
    },
}

impl Intent {
    /// The verb and the path it was asked of, for the log.
    pub fn describe(&self) -> (&'static str, String) {
        match self {
            Intent::TakeGroup { name } => ("mkdir", format!("/snapshots/{name}")),
            Intent::DeleteGroup { name, .. } => ("rmdir", format!("/snapshots/{name}")),
            Intent::TakeExternal { disk, name } => {
                ("mkdir", format!("/disks/{disk}/snapshots/{name}"))
            }
            Intent::Rollback { disk, name, .. } => {
                ("write", format!("/disks/{disk}/rollback '{name}'"))
            }
            Intent::DeleteExternal { disk, name } | Intent::DeleteBranch { disk, name } => {
                ("rmdir", format!("/disks/{disk}/snapshots/{name}"))
            }
            Intent::ReleaseLayer { disk, name, .. } => {
                ("rmdir", format!("/disks/{disk}/layers/{name}"))
            }
            Intent::TakeInternal { disk, name } => {
                ("mkdir", format!("/disks/{disk}/internal/{name}"))
            }
            Intent::DeleteInternal { disk, name } => {
                ("rmdir", format!("/disks/{disk}/internal/{name}"))
            }
            Intent::CancelJob { disk, id } => ("rmdir", format!("/disks/{disk}/jobs/{id}")),
            Intent::ControlJob { disk, id, command } => {
                ("write", format!("/disks/{disk}/jobs/{id}/ctl '{command}'"))
            }
        }
    }
}

/// Which verbs a mount has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verbs {
    /// `-o ro`: none at all.
    pub read_only: bool,
    /// `-o no_delete`: none that destroys.
    pub no_delete: bool,
    /// `-o live_rollback`: a running VM may be rolled back, for which it is reset.
    pub live_rollback: bool,
    /// `-o coexist`: also beside libvirt, those that do not mislead it.
    pub coexist: bool,
}

/// What a verb does to what libvirt believes of a VM.
enum Reach {
    /// Other files or nodes would be the disk than those libvirt knows: its next snapshot would
    /// stand on a layer that the guest has left.
    Chain,
    /// libvirt does not know of it and is not misled.
    Beside,
}

/// Whether a verb may be done to a VM that somebody else manages.
pub fn suits_the_manager(model: &Model, verbs: Verbs, intent: &Intent) -> Result<(), Failure> {
    let (reach, instead) = match intent {
        Intent::TakeGroup { name } | Intent::TakeExternal { name, .. } => (
            Reach::Chain,
            format!(
                "virsh snapshot-create-as {} {name} --disk-only",
                model.vm.name
            ),
        ),
        Intent::DeleteGroup { .. }
        | Intent::DeleteExternal { .. }
        | Intent::DeleteBranch { .. }
        | Intent::ReleaseLayer { .. } => (
            Reach::Chain,
            format!("virsh blockcommit or virsh blockpull {}", model.vm.name),
        ),
        Intent::TakeInternal { name, .. } => (
            Reach::Beside,
            format!("virsh snapshot-create-as {} {name}", model.vm.name),
        ),
        Intent::DeleteInternal { name, .. } => (
            Reach::Beside,
            format!("virsh snapshot-delete {} {name}", model.vm.name),
        ),
        Intent::Rollback { name, .. } => (
            Reach::Chain,
            format!("virsh snapshot-revert {} {name}", model.vm.name),
        ),
        // a mirror of ours cannot have begun: it would be of the chain
        Intent::CancelJob { .. } | Intent::ControlJob { .. } => (
            Reach::Beside,
            format!("virsh blockjob {} DISK --abort", model.vm.name),
        ),
    };
    match (model.vm.manager, verbs.coexist, reach) {
        (None, _, _) | (Some(Manager::Libvirt), true, Reach::Beside) => Ok(()),
        (Some(Manager::Libvirt), false, Reach::Beside) => Err(Failure::new(
            Errno::EPERM,
            "libvirt manages this VM, and the mount only shows it",
        )
        .next(format!("{instead}; or mount with -o coexist"))),
        (Some(Manager::Libvirt), _, Reach::Chain) => Err(Failure::new(
            Errno::EPERM,
            "libvirt manages this VM and would lose track of its disk",
        )
        .next(instead)),
    }
}

/// What `mkdir parent/name` means.
pub fn mkdir(model: &Model, verbs: Verbs, parent: &NodeKey, name: &str) -> Result<Intent, Failure> {
    if *parent == NodeKey::Snapshots {
        return mkdir_group(model, verbs, name);
    }
    let NodeKey::Section(disk, section) = parent else {
        return Err(no_verb("mkdir"));
    };
    let disk = model.disk(disk).ok_or_else(|| {
        Failure::new(Errno::ENOENT, format!("there is no disk '{disk}'"))
            .next("see which there are: ls disks")
    })?;
    let (disk_name, point) = (disk.name.clone(), name.to_owned());
    let (intent, taken) = match section {
        Section::Snapshots => (
            Intent::TakeExternal {
                disk: disk_name,
                name: point,
            },
            disk.has_point_called(name),
        ),
        Section::Internal => {
            let taken = disk
                .internals
                .iter()
                .any(|internal| internal.name == name || internal.tag == name);
            (
                Intent::TakeInternal {
                    disk: disk_name,
                    name: point,
                },
                taken,
            )
        }
        Section::Layers | Section::Jobs => return Err(no_verb("mkdir")),
    };
    allowed(verbs, Effect::Makes)?;
    fit(name)?;
    if taken {
        // A point that is being merged away keeps its name until its file is gone.
        return Err(
            Failure::new(Errno::EEXIST, format!("'{name}' is taken")).next(
                "choose another name, or wait until no job works on this disk (cat its wait file)",
            ),
        );
    }
    connected(model)?;
    if let Some(why) = &disk.no_snapshots {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("no snapshots of disk '{}': {why}", disk.name),
        ));
    }
    Ok(intent)
}

/// What `mkdir snapshots/name` means. Disks that cannot take part do not hinder the others.
fn mkdir_group(model: &Model, verbs: Verbs, name: &str) -> Result<Intent, Failure> {
    allowed(verbs, Effect::Makes)?;
    fit(name)?;
    if let Some(disk) = model.disks.iter().find(|disk| disk.has_point_called(name)) {
        return Err(taken_on(disk, name));
    }
    connected(model)?;
    if model.disks.iter().all(|disk| disk.no_snapshots.is_some()) {
        return Err(none_can(&unable(&model.disks)));
    }
    Ok(Intent::TakeGroup {
        name: name.to_owned(),
    })
}

/// A snapshot of all disks wants a name that is free on each.
pub(crate) fn taken_on(disk: &Disk, name: &str) -> Failure {
    Failure::new(
        Errno::EEXIST,
        format!("'{name}' is taken on disk '{}'", disk.name),
    )
    .next("choose another name, or remove that point first")
}

/// The disks that cannot be sealed, and why.
pub(crate) fn unable(disks: &[Disk]) -> BTreeMap<String, String> {
    let why = disks
        .iter()
        .filter_map(|disk| Some((disk, disk.no_snapshots.clone()?)));
    why.map(|(disk, why)| (disk.name.clone(), why)).collect()
}

/// No disk can take part in a snapshot of all.
pub(crate) fn none_can(unable: &BTreeMap<String, String>) -> Failure {
    if unable.is_empty() {
        return Failure::new(Errno::EOPNOTSUPP, "this VM has no disks");
    }
    let reasons: Vec<String> = unable
        .iter()
        .map(|(disk, why)| format!("{disk}: {why}"))
        .collect();
    Failure::new(
        Errno::EOPNOTSUPP,
        format!("no disk can take part: {}", reasons.join("; ")),
    )
}

fn fit(name: &str) -> Result<(), Failure> {
    if valid_name(name) {
        return Ok(());
    }
    Err(
        Failure::new(Errno::EINVAL, format!("'{name}' is no name for a point"))
            .next("use letters, digits, '.', '_' and '-', not first '.' or '-', at most 128 bytes"),
    )
}

/// What `rmdir` of the directory `key` means.
pub fn rmdir(model: &Model, verbs: Verbs, key: &NodeKey) -> Result<Intent, Failure> {
    let intent = match key {
        NodeKey::Point(point) => match find_point(model, point) {
            None => {
                return Err(Failure::new(Errno::ENOENT, "the point is gone")
                    .next("see which there are: ls the directory again"));
            }
            Some(Found::Internal { disk, internal, .. }) => Intent::DeleteInternal {
                disk: disk.name.clone(),
                name: internal.name.clone(),
            },
            Some(Found::Branch { disk, branch }) => Intent::DeleteBranch {
                disk: disk.name.clone(),
                name: branch.name().to_owned(),
            },
            Some(Found::Layer { disk, index, layer }) => match &layer.record {
                Some(record) => {
                    unambiguous(disk, &record.name)?;
                    Intent::DeleteExternal {
                        disk: disk.name.clone(),
                        name: record.name.clone(),
                    }
                }
                None => Intent::ReleaseLayer {
                    disk: disk.name.clone(),
                    identity: layer_identity(layer),
                    name: layer_dir_name(index, layer),
                },
            },
        },
        NodeKey::Job(disk, id) => {
            not_of_others(model, disk, id)?;
            Intent::CancelJob {
                disk: disk.clone(),
                id: id.clone(),
            }
        }
        NodeKey::Group(id) => {
            let group = find_group(model, id)
                .ok_or_else(|| Failure::new(Errno::ENOENT, "the snapshot is gone"))?;
            for (disk, _) in &group.members {
                unambiguous(disk, &group.point.name)?;
                if disk.branch(&group.point.name).is_some() {
                    return Err(beside(disk, &group.point.name));
                }
            }
            Intent::DeleteGroup {
                id: id.clone(),
                name: group.name,
            }
        }
        NodeKey::Root
        | NodeKey::RootFile(_)
        | NodeKey::Snapshots
        | NodeKey::GroupJson(_)
        | NodeKey::GroupLink(..)
        | NodeKey::Disks
        | NodeKey::Disk(_)
        | NodeKey::DiskFile(..)
        | NodeKey::Section(..)
        | NodeKey::PointFile(..)
        | NodeKey::JobFile(..) => return Err(no_verb("rmdir")),
    };
    allowed(verbs, Effect::Destroys)?;
    connected(model)?;
    Ok(intent)
}

/// What a line written to the file `key` means; `data` is what one write(2) brought.
pub fn write(model: &Model, verbs: Verbs, key: &NodeKey, data: &[u8]) -> Result<Intent, Failure> {
    let Some(control) = key.control() else {
        return Err(Failure::new(Errno::EROFS, "this file is only read")
            .next("README.txt says which files take lines"));
    };
    allowed(verbs, Effect::Makes)?;
    let line = words::line(data)?;
    let (intent, effect) = match control {
        Control::Job { disk, id } => {
            let command = words::job_command(line)?;
            if !exists(model, key) {
                return Err(Failure::new(
                    Errno::ENOENT,
                    format!("the job '{id}' has ended"),
                ));
            }
            not_of_others(model, disk, id)?;
            let effect = match command {
                JobCommand::Cancel => Effect::Destroys,
                JobCommand::Pause
                | JobCommand::Resume
                | JobCommand::Speed(_)
                | JobCommand::Finish
                | JobCommand::Pivot => Effect::Makes,
            };
            let (disk, id) = (disk.to_owned(), id.to_owned());
            (Intent::ControlJob { disk, id, command }, effect)
        }
        // nothing is destroyed: what was active stays as a point
        Control::Rollback { disk } => (roll_back(model, verbs, disk, line)?, Effect::Makes),
    };
    allowed(verbs, effect)?;
    connected(model)?;
    Ok(intent)
}

/// What a line written to `disks/DISK/rollback` means.
fn roll_back(model: &Model, verbs: Verbs, disk: &str, line: &str) -> Result<Intent, Failure> {
    let disk = model
        .disk(disk)
        .ok_or_else(|| Failure::new(Errno::ENOENT, format!("there is no disk '{disk}'")))?;
    connected(model)?;
    if let Some(why) = &disk.no_snapshots {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("disk '{}' is not rolled back: {why}", disk.name),
        ));
    }
    let intent = rollback::rollback(disk, line)?;
    if !model.vm.switched_off && !verbs.live_rollback {
        return Err(Failure::new(
            Errno::EPERM,
            "the VM is on, and a rollback takes its disk away from under it",
        )
        .next(format!(
            "switch the VM off, mount {} and write the name there; or mount with -o live_rollback, which resets the VM",
            disk.active_path.display()
        )));
    }
    Ok(intent)
}

/// A job that another monitor began is not ours to end, nor to hold up.
fn not_of_others(model: &Model, disk: &str, id: &str) -> Result<(), Failure> {
    let jobs = model.disk(disk).map_or(&[][..], |disk| &disk.jobs);
    match jobs.iter().find(|job| job.id == id) {
        Some(job) if job.by_others() => Err(Failure::new(
            Errno::EPERM,
            format!("the job '{id}' is another monitor's"),
        )
        .next("end it where it was begun")),
        Some(_) | None => Ok(()),
    }
}

/// A chain that was put together by hand may have two points of one name.
fn unambiguous(disk: &Disk, name: &str) -> Result<(), Failure> {
    let records = disk.layers.iter().filter_map(|layer| layer.record.as_ref());
    if records.filter(|record| record.name == name).count() <= 1 {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EPERM,
        format!(
            "two layers of disk '{}' are sealed as '{name}': which one is meant cannot be told",
            disk.name
        ),
    )
    .next("see their files in disk.json; the name stands in their attribute user.qmpfs.point"))
}

/// A disk was rolled back past its part of a snapshot of all disks: no merge removes that.
fn beside(disk: &Disk, name: &str) -> Failure {
    Failure::new(
        Errno::EBUSY,
        format!("disk '{}' was rolled back past '{name}'", disk.name),
    )
    .next(format!("rmdir disks/{}/snapshots/{name} first", disk.name))
}

/// What a verb does to the points that exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Makes,
    Destroys,
}

fn allowed(verbs: Verbs, effect: Effect) -> Result<(), Failure> {
    if verbs.read_only {
        return Err(Failure::new(Errno::EROFS, "mounted with -o ro").next("mount without -o ro"));
    }
    if effect == Effect::Destroys && verbs.no_delete {
        return Err(Failure::new(Errno::EPERM, "mounted with -o no_delete")
            .next("mount without -o no_delete"));
    }
    Ok(())
}

fn connected(model: &Model) -> Result<(), Failure> {
    match &model.vm.connection {
        ConnectionState::Up => Ok(()),
        ConnectionState::Down(reason) => Err(Failure::new(
            Errno::ENOTCONN,
            format!("QEMU does not answer: {reason}"),
        )
        .next("start the VM again; qmpfs reconnects by itself")),
        ConnectionState::Offline => Err(Failure::new(
            Errno::EROFS,
            "the images are mounted without a QEMU",
        )
        .next("mount without -o ro")),
    }
}

fn no_verb(verb: &str) -> Failure {
    Failure::new(Errno::EPERM, format!("{verb} has no meaning here"))
        .next("points are made in snapshots, disks/*/snapshots and disks/*/internal")
}

#[cfg(test)]
mod tests;
