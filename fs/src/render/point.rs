//! point.json.

use super::{Extra, estimated_sizes, instant, made_by, rfc3339};
use crate::guest::Described;
use crate::model::{BackupStage, Copied, Layer, Manifest, Model, PointRecord};
use crate::tree::{
    Checkpoint, Found, PointKey, PointKind, checkpoint_of, group_of, point_place, short_name,
};
use serde::Serialize;

/// What an internal snapshot may hold, and no other point.
pub(super) const RAM: &str = "ram";

/// The object of point.json.
#[derive(Serialize)]
pub(super) struct PointJson {
    kind: &'static str,
    name: String,
    disk: String,
    /// Whether the disk stands on it; a point that was rolled back past does not.
    in_chain: bool,
    time: Option<String>,
    /// "qmpfs" or "other"; None where nothing tells.
    made_by: Option<&'static str>,
    virtual_size: u64,
    allocated_size: u64,
    /// Base first.
    files: Vec<String>,
    /// "qmpfs", or "qemu" where a layer is in a format that only QEMU reads.
    read_by: &'static str,
    /// What is in its partitions; None where nobody could look yet.
    filesystems: Option<Vec<Described>>,
    consistency: String,
    /// The disks whose points show the same instant, this one included.
    same_instant: Vec<String>,
    /// The state of the whole VM that it is part of.
    checkpoint: Option<String>,
    frozen_ms: Option<u64>,
    quiesce_error: Option<String>,
    missing: Vec<String>,
    /// Why it cannot be read any more.
    error: Option<String>,
    /// What only a backup has.
    #[serde(flatten)]
    backup: Option<BackupJson>,
}

/// The part of a backup.
#[derive(Serialize)]
struct BackupJson {
    /// `full` or `changes`: what is in its own file.
    copied: Copied,
    /// Why an incremental one holds the whole disk.
    why_full: Option<String>,
    /// The backup it stands on.
    previous: Option<String>,
    /// The dirty bitmap that marks what was written since.
    bitmap: Option<String>,
    /// Why no further one may stand on it.
    doubt: Option<String>,
    /// Of what disk.raw shows: as `b3sum` gives it. None until it was read whole.
    digest: Option<String>,
    vm: String,
    qemu_version: String,
    qmpfs_version: String,
}

fn backup(found: &Found<'_>) -> Option<BackupJson> {
    let Found::Backup { backup, .. } = found else {
        return None;
    };
    let Manifest {
        copied,
        why_full,
        previous,
        bitmap,
        digest,
        vm,
        qemu_version,
        qmpfs_version,
        ..
    } = backup.manifest.clone();
    Some(BackupJson {
        copied,
        why_full,
        previous: previous.map(|previous| previous.name),
        bitmap,
        doubt: backup.doubt.clone(),
        digest,
        vm,
        qemu_version,
        qmpfs_version,
    })
}

pub(super) fn point(
    model: &Model,
    key: &PointKey,
    found: &Found<'_>,
    extra: &Extra<'_>,
) -> PointJson {
    let sizes = extra.sizes.unwrap_or_else(|| estimated_sizes(found));
    let how = instant_kind(found);
    PointJson {
        kind: match key.kind {
            PointKind::Layer => "layer",
            PointKind::External => "external",
            PointKind::Internal => "internal",
            PointKind::Live => "live",
            PointKind::Backup(kind) => kind.name(),
        },
        name: point_place(model, key)
            .map(|(_, _, name)| name)
            .unwrap_or_default(),
        disk: short_name(&found.disk().name).to_owned(),
        in_chain: match found {
            Found::Layer { .. } | Found::Internal { .. } => true,
            Found::Branch { .. } | Found::Backup { .. } | Found::Live { .. } => false,
        },
        time: instant(found).map(rfc3339),
        made_by: match found {
            Found::Layer { layer, .. } => Some(made_by(layer)),
            Found::Branch { branch, .. } => Some(made_by(&branch.layer)),
            Found::Live { .. } => Some("qmpfs"),
            Found::Backup { .. } => Some("qmpfs"),
            // a snapshot table does not say
            Found::Internal { .. } => None,
        },
        virtual_size: sizes.virtual_size,
        allocated_size: sizes.allocated,
        files: files(found),
        read_by: read_by(found),
        filesystems: extra.filesystems.clone(),
        consistency: how.consistency.to_owned(),
        same_instant: same_instant(model, found),
        checkpoint: checkpoint(model, found).map(|it| it.name),
        frozen_ms: how.frozen_ms,
        quiesce_error: how.quiesce_error.map(str::to_owned),
        missing: missing(model, found),
        error: match found {
            Found::Live { live, .. } => live.broken.clone(),
            Found::Backup { backup, .. } => match &backup.stage {
                BackupStage::Broken(why) => Some(why.clone()),
                BackupStage::Job(_) | BackupStage::Complete => None,
            },
            Found::Layer { .. } | Found::Branch { .. } | Found::Internal { .. } => None,
        },
        backup: backup(found),
    }
}

/// By the names that stay: QEMU may have the active layer open under an alias.
fn files(found: &Found<'_>) -> Vec<String> {
    let disk = found.disk();
    let paths =
        found
            .layers()
            .into_iter()
            .map(|layer| match std::ptr::eq(layer, &raw const disk.active) {
                true => &disk.active_path,
                false => &layer.path,
            });
    let scratch = match found {
        Found::Live { live, .. } => Some(&live.scratch),
        Found::Layer { .. }
        | Found::Branch { .. }
        | Found::Backup { .. }
        | Found::Internal { .. } => None,
    };
    paths
        .chain(scratch)
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

fn read_by(found: &Found<'_>) -> &'static str {
    let here = match found {
        Found::Live { .. } => false,
        Found::Layer { .. }
        | Found::Branch { .. }
        | Found::Backup { .. }
        | Found::Internal { .. } => found
            .layers()
            .iter()
            .all(|layer| layer.format.is_read_here()),
    };
    if here { "qmpfs" } else { "qemu" }
}

/// How well the guest was prepared.
struct InstantKind<'a> {
    consistency: &'a str,
    frozen_ms: Option<u64>,
    quiesce_error: Option<&'a str>,
}

fn instant_kind<'a>(found: &'a Found<'_>) -> InstantKind<'a> {
    let (consistency, frozen_ms, quiesce_error) = match found {
        Found::Layer { layer, .. } => recorded(layer),
        Found::Branch { branch, .. } => recorded(&branch.layer),
        Found::Live { live, .. } => told(&live.record),
        Found::Backup { backup, .. } => (
            backup.manifest.consistency.as_str(),
            backup.manifest.frozen_ms,
            backup.manifest.quiesce_error.as_deref(),
        ),
        Found::Internal { internal, .. } => match &internal.record {
            Some(record) => (
                record.consistency.as_str(),
                record.frozen_ms,
                record.quiesce_error.as_deref(),
            ),
            None => ("crash", None, None),
        },
    };
    InstantKind {
        consistency,
        frozen_ms,
        quiesce_error,
    }
}

fn recorded(layer: &Layer) -> (&str, Option<u64>, Option<&str>) {
    match &layer.record {
        Some(record) => told(record),
        // Nobody wrote down how it came to be.
        None => ("unknown", None, None),
    }
}

fn told(record: &PointRecord) -> (&str, Option<u64>, Option<&str>) {
    (
        record.consistency.as_str(),
        record.frozen_ms,
        record.quiesce_error.as_deref(),
    )
}

fn same_instant(model: &Model, found: &Found<'_>) -> Vec<String> {
    if let Some(checkpoint) = checkpoint(model, found) {
        let members = checkpoint.members.iter();
        return members.map(|(disk, _)| disk.name.clone()).collect();
    }
    match group_of(model, found) {
        Some(group) => group
            .members
            .iter()
            .map(|(disk, _)| disk.name.clone())
            .collect(),
        None => vec![short_name(&found.disk().name).to_owned()],
    }
}

/// What of the machine at that instant this point does not hold.
fn missing(model: &Model, found: &Found<'_>) -> Vec<String> {
    let ram_saved = match found {
        Found::Layer { .. } | Found::Branch { .. } | Found::Backup { .. } | Found::Live { .. } => {
            false
        }
        Found::Internal { internal, .. } => internal.vm_state_size > 0,
    };
    if let Some(checkpoint) = checkpoint(model, found) {
        return super::checkpoint::missing(model, &checkpoint);
    }
    let mut missing = machine(model);
    missing.retain(|part| part != RAM || !ram_saved);
    if let Some(group) = group_of(model, found) {
        missing.extend(super::group::disks(model, &group));
        return missing;
    }
    let own = &found.disk().name;
    let others: Vec<&str> = model
        .disks
        .iter()
        .map(|disk| disk.name.as_str())
        .filter(|name| *name != own.as_str() && of_vm(name) == of_vm(own))
        .map(short_name)
        .collect();
    if !others.is_empty() {
        missing.push(format!("other disks: {}", others.join(", ")));
    }
    missing
}

/// The VM in a mount of backups of many.
fn of_vm(disk: &str) -> Option<&str> {
    disk.split_once('/').map(|(vm, _)| vm)
}

/// The state of the whole VM that it is part of.
fn checkpoint<'a>(model: &'a Model, found: &Found<'a>) -> Option<Checkpoint<'a>> {
    match found {
        Found::Layer { .. } | Found::Branch { .. } | Found::Backup { .. } | Found::Live { .. } => {
            None
        }
        Found::Internal { disk, internal, .. } => checkpoint_of(model, &disk.name, internal),
    }
}

/// What is in no disk. A storage daemon is no machine.
pub(super) fn machine(model: &Model) -> Vec<String> {
    match model.vm.run_state {
        None => Vec::new(),
        Some(_) => [RAM, "firmware variables", "tpm"].map(str::to_owned).into(),
    }
}
