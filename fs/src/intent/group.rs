//! What a mkdir in snapshots/, live/ or backups/KIND/ and an rmdir there mean: points of all disks that can take part.
//! Pure.

use super::{Effect, Intent, Verbs, allowed, backup, connected, fit, unambiguous};
use crate::errno::{Errno, Failure};
use crate::model::{Disk, Model};
use crate::tree::{Group, GroupKind};
use std::collections::BTreeMap;

/// What `mkdir snapshots/name` or `mkdir live/name` means. Disks that cannot take part do not hinder the others.
pub(super) fn mkdir(
    model: &Model,
    verbs: Verbs,
    kind: GroupKind,
    name: &str,
) -> Result<Intent, Failure> {
    allowed(verbs, Effect::Makes)?;
    fit(name)?;
    match kind {
        GroupKind::Snapshots => snapshots(model, name),
        GroupKind::Backup(kind) => {
            backup::with_a_place(verbs)?;
            let disks = model.disks.iter();
            if let Some(disk) = disks.into_iter().find(|disk| backup::is_taken(disk, name)) {
                return Err(taken_on(disk, name));
            }
            connected(model)?;
            Ok(Intent::TakeBackups {
                kind,
                name: name.to_owned(),
            })
        }
        GroupKind::Live => {
            let taken = model.disks.iter().find(|disk| disk.live(name).is_some());
            if let Some(disk) = taken {
                return Err(taken_on(disk, name));
            }
            connected(model)?;
            Ok(Intent::TakeLives {
                name: name.to_owned(),
            })
        }
    }
}

/// What `rmdir` of points of all disks means.
pub(super) fn rmdir(group: Group<'_>) -> Result<Intent, Failure> {
    let (id, name) = (group.record.id.clone(), group.name);
    match group.kind {
        GroupKind::Snapshots => {}
        GroupKind::Live => return Ok(Intent::DeleteLives { id, name }),
        GroupKind::Backup(kind) => return Ok(Intent::DeleteBackups { kind, id, name }),
    }
    for (disk, _) in &group.members {
        unambiguous(disk, &group.point.name)?;
        if disk.branch(&group.point.name).is_some() {
            return Err(beside(disk, &group.point.name));
        }
    }
    Ok(Intent::DeleteGroup { id, name })
}

/// A disk was rolled back past its part of a snapshot of all disks: no merge removes that.
fn beside(disk: &Disk, name: &str) -> Failure {
    Failure::new(
        Errno::EBUSY,
        format!("disk '{}' was rolled back past '{name}'", disk.name),
    )
    .next(format!("rmdir disks/{}/snapshots/{name} first", disk.name))
}

fn snapshots(model: &Model, name: &str) -> Result<Intent, Failure> {
    if let Some(disk) = model.disks.iter().find(|disk| disk.has_point_called(name)) {
        return Err(taken_on(disk, name));
    }
    connected(model)?;
    if model.disks.iter().all(|disk| disk.no_seal().is_some()) {
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
        .filter_map(|disk| Some((disk, disk.no_seal()?.clone())));
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
