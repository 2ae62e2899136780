//! What a mkdir, an rmdir or a line written means: the one table from a place in the tree and a
//! name or words to an [`Intent`], or a refusal. Pure: it looks at the model, asks nobody and changes nothing.

mod backup;
mod checkpoint;
mod group;
mod manager;
mod rollback;
mod verb;
mod words;

pub use backup::unlink;
pub(crate) use checkpoint::{
    complete as checkpoint_complete, free as checkpoint_free, loadable as checkpoint_loadable,
    removable as checkpoint_removable,
};
pub(crate) use group::{none_can, taken_on, unable};
pub use manager::{Reach, suits_the_manager};
pub(crate) use rollback::to_internal as rollback_to_internal;
pub use verb::Intent;
pub use words::JobCommand;

use crate::errno::{Errno, Failure};
use crate::model::{ConnectionState, Contents, Disk, Model};
use crate::tree::{
    Control, Found, NodeKey, Section, checkpoint_of, exists, find_group, find_point,
    layer_dir_name, layer_identity, valid_name,
};

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
    /// `--backup-dir`: there is a place for backups.
    pub backups: bool,
}

/// What `mkdir parent/name` means.
pub fn mkdir(model: &Model, verbs: Verbs, parent: &NodeKey, name: &str) -> Result<Intent, Failure> {
    if model.vm.contents == Contents::Backups {
        return Err(Failure::new(
            Errno::EROFS,
            "these are backups, without their VM: nothing is made here",
        )
        .next("mount the VM's QMP socket with --backup-dir to make some"));
    }
    if let NodeKey::Groups(kind) = parent {
        return group::mkdir(model, verbs, *kind, name);
    }
    if *parent == NodeKey::Checkpoints {
        return checkpoint::mkdir(model, verbs, name);
    }
    let NodeKey::Section(disk, section) = parent else {
        return Err(no_verb("mkdir"));
    };
    let disk = model.disk(disk).ok_or_else(|| {
        Failure::new(Errno::ENOENT, format!("there is no disk '{disk}'"))
            .next("see which there are: ls disks")
    })?;
    if let Section::Backup(kind) = section {
        return backup::mkdir(model, verbs, disk, *kind, name);
    }
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
        Section::Live => (
            Intent::TakeLive {
                disk: disk_name,
                name: point,
            },
            disk.live(name).is_some(),
        ),
        Section::Layers | Section::Jobs | Section::Bitmaps | Section::Backup(_) => {
            return Err(no_verb("mkdir"));
        }
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
    let why_not = match section {
        Section::Live => None,
        Section::Snapshots => disk.no_seal(),
        Section::Internal
        | Section::Layers
        | Section::Jobs
        | Section::Bitmaps
        | Section::Backup(_) => disk.no_snapshots.as_ref(),
    };
    if let Some(why) = why_not {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("no snapshots of disk '{}': {why}", disk.name),
        ));
    }
    Ok(intent)
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
            Some(Found::Internal { disk, internal, .. }) => {
                if let Some(found) = checkpoint_of(model, &disk.name, internal) {
                    return Err(checkpoint::part_of(&found));
                }
                Intent::DeleteInternal {
                    disk: disk.name.clone(),
                    name: internal.name.clone(),
                }
            }
            Some(Found::Live { disk, live }) => Intent::DeleteLive {
                disk: disk.name.clone(),
                id: live.record.id.clone(),
                name: live.record.name.clone(),
            },
            Some(Found::Backup { disk, backup }) => Intent::DeleteBackup {
                disk: disk.name.clone(),
                kind: backup.manifest.kind,
                name: backup.manifest.name.clone(),
                id: backup.manifest.id.clone(),
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
        NodeKey::Disk(name) => let_go(model, name)?,
        NodeKey::Job(disk, id) => {
            not_of_others(model, disk, id)?;
            Intent::CancelJob {
                disk: disk.clone(),
                id: id.clone(),
            }
        }
        NodeKey::Group(key) => {
            let group = find_group(model, key)
                .ok_or_else(|| Failure::new(Errno::ENOENT, "the snapshot is gone"))?;
            group::rmdir(group)?
        }
        NodeKey::Checkpoint(name) => checkpoint::rmdir(model, name)?,
        NodeKey::Root
        | NodeKey::RootFile(_)
        | NodeKey::Groups(_)
        | NodeKey::Checkpoints
        | NodeKey::CheckpointJson(_)
        | NodeKey::CheckpointLink(..)
        | NodeKey::GroupJson(_)
        | NodeKey::GroupLink(..)
        | NodeKey::GroupFiles(_)
        | NodeKey::GroupNote(..)
        | NodeKey::Disks
        | NodeKey::Vm(_)
        | NodeKey::VmDisks(_)
        | NodeKey::DiskFile(..)
        | NodeKey::Section(..)
        | NodeKey::Backups(_)
        | NodeKey::Bitmap(..)
        | NodeKey::PointFile(..)
        | NodeKey::Inside(..)
        | NodeKey::JobFile(..) => return Err(no_verb("rmdir")),
    };
    allowed(verbs, Effect::Destroys)?;
    match model.vm.contents {
        Contents::Machine => connected(model)?,
        // files are enough
        Contents::Backups => {}
    }
    Ok(intent)
}

/// What QEMU has open of a disk is closed when nobody uses it any more.
fn let_go(model: &Model, name: &str) -> Result<Intent, Failure> {
    let disk = model
        .disk(name)
        .filter(|_| model.vm.contents == Contents::Machine && !model.vm.switched_off)
        .ok_or_else(|| no_verb("rmdir"))?;
    if !disk.tuning.unplugged {
        return Err(Failure::new(
            Errno::EBUSY,
            format!("disk '{name}' is in use: its directory goes when it is unplugged"),
        )
        .next("device_del of its device, or block-export-del of its export; then rmdir again"));
    }
    let root = disk.root.as_ref();
    match root.filter(|root| !root.is_ours()) {
        Some(root) => Err(Failure::new(
            Errno::EPERM,
            format!("'{root}' is the node of who plugged the disk in"),
        )
        .next(format!("blockdev-del {root}"))),
        None => Ok(Intent::CloseDisk {
            disk: name.to_owned(),
        }),
    }
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
        // nothing is destroyed: what was active stays as a point, or as a checkpoint
        Control::Checkpoint => (checkpoint::write(model, verbs, line)?, Effect::Makes),
        Control::Rollback { disk } => (rollback::write(model, verbs, disk, line)?, Effect::Makes),
    };
    allowed(verbs, effect)?;
    match model.vm.contents {
        Contents::Machine => connected(model)?,
        Contents::Backups => {}
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
    Failure::new(Errno::EPERM, format!("{verb} has no meaning here")).next(
        "points are made in snapshots, live, checkpoints and backups/*, and of one disk in its snapshots, internal, live and backups/*",
    )
}

#[cfg(test)]
mod tests;
