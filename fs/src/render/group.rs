//! point.json of a snapshot of all disks.

use super::Extra;
use crate::guest::Described;
use crate::model::Model;
use crate::tree::Group;
use serde::Serialize;

/// The object of it.
#[derive(Serialize)]
pub(super) struct GroupJson<'a> {
    kind: &'static str,
    name: &'a str,
    time: &'a str,
    consistency: &'a str,
    frozen_ms: Option<u64>,
    quiesce_error: Option<&'a str>,
    /// Whether all points that were made are here.
    complete: bool,
    /// The disks whose points are here.
    disks: Vec<&'a str>,
    /// Disks whose points were made and are not here (any more).
    gone: Vec<&'a str>,
    /// What of the machine at that instant is not in it.
    missing: Vec<String>,
    /// What several disks hold together; None until somebody has looked into `files/`.
    filesystems: Option<&'a [Described]>,
}

pub(super) fn group<'a>(
    model: &Model,
    group: &'a Group<'a>,
    extra: &'a Extra<'_>,
) -> GroupJson<'a> {
    let gone = group.gone();
    GroupJson {
        kind: "all-disks",
        name: &group.point.name,
        time: &group.point.time,
        consistency: &group.point.consistency,
        frozen_ms: group.point.frozen_ms,
        quiesce_error: group.point.quiesce_error.as_deref(),
        complete: gone.is_empty(),
        disks: group
            .members
            .iter()
            .map(|(disk, _)| disk.name.as_str())
            .collect(),
        gone,
        missing: missing(model, group),
        filesystems: extra.filesystems.as_deref(),
    }
}

/// What the machine was besides, and the disks that are not in it, each with why.
fn missing(model: &Model, group: &Group<'_>) -> Vec<String> {
    super::point::machine(model)
        .into_iter()
        .chain(disks(model, group))
        .collect()
}

/// The disks that a group does not cover, each with why.
pub(super) fn disks(model: &Model, group: &Group<'_>) -> Vec<String> {
    let unable = group.record.missing.iter().map(|(disk, why)| {
        // where there was no room for the reason, that of today is as good
        let today = model
            .disk(disk)
            .and_then(|disk| disk.no_seal().map(String::as_str));
        match (why.as_str(), today) {
            ("", None) => format!("disk {disk}: could not take part"),
            ("", Some(why)) | (why, _) => format!("disk {disk}: {why}"),
        }
    });
    let gone = group.gone();
    let gone = gone.iter().map(|disk| {
        format!("disk {disk}: its point was removed, was never finished, or is not in this mount")
    });
    unable.chain(gone).collect()
}
