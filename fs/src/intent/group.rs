//! What `mkdir snapshots/NAME` means: a snapshot of all disks that can take part. Pure.

use super::{Effect, Intent, Verbs, allowed, connected, fit};
use crate::errno::{Errno, Failure};
use crate::model::{Disk, Model};
use std::collections::BTreeMap;

/// What `mkdir snapshots/name` means. Disks that cannot take part do not hinder the others.
pub(super) fn mkdir(model: &Model, verbs: Verbs, name: &str) -> Result<Intent, Failure> {
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
