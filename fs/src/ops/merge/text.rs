//! The words of a point's `plan` file: what rmdir of it would do, before it does it.
//! It looks at the files of the two layers; it asks QEMU nothing.

use super::plan::{Facts, Plan, Verb, above, choose};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{Branch, Disk, FileId, Layer, Model};
use crate::sys;
use crate::tree::{
    Found, PointKey, PointKind, Section, checkpoint_of, find_in, layer_dir_name, layer_identity,
    point_place,
};
use crate::view::{LayerSpec, layer_allocated, moves_when_committed_into};
use std::fmt::Write;
use std::path::Path;

/// What `rmdir` of the point would do, in words.
pub fn plan_text(model: &Model, point: &PointKey) -> String {
    let Some((disk, section, name)) = point_place(model, point) else {
        return "this point is gone\n".into();
    };
    let Some(disk) = model.disk(&disk) else {
        return "this disk is gone\n".into();
    };
    match find_in(disk, point) {
        Some(Found::Branch { disk, branch }) => {
            return crate::ops::branch::plan_text(disk, branch);
        }
        Some(Found::Backup { disk, backup }) => {
            return crate::ops::backup::plan_text(disk, backup);
        }
        Some(Found::Layer { .. } | Found::Internal { .. } | Found::Live { .. }) | None => {}
    }
    if let Some(Found::Internal { disk, internal, .. }) = find_in(disk, point)
        && let Some(whole) = checkpoint_of(model, &disk.name, internal)
    {
        return format!(
            "verb:   none by itself: it is part of the checkpoint '{0}'\nnext:   rmdir checkpoints/{0}\n",
            whole.name
        );
    }
    match point.kind {
        PointKind::Live => "verb:   block-export-del, job-cancel, blockdev-del\ncopies: nothing\nfiles:  its scratch file is removed\n".into(),
        PointKind::Internal => format!(
            "verb:   blockdev-snapshot-delete-internal-sync\ncopies: nothing\nfiles:  its clusters are given back inside {}\n",
            disk.internal(&name)
                .and_then(|internal| internal.layer)
                .map_or(&disk.active_path, |layer| &disk.layers[layer].path)
                .display()
        ),
        PointKind::Layer | PointKind::External | PointKind::Backup(_) => {
            let Some(index) = layer_index(disk, &name, section) else {
                return "this point is gone\n".into();
            };
            match facts(disk, index, Measure::Exactly, &[])
                .and_then(|facts| choose(disk, index, &facts, model.vm.merge))
            {
                Ok(plan) => describe(disk, index, &plan),
                Err(failure) => format!(
                    "refused: {} ({})\nnext:    {}\n",
                    failure.message, failure.errno, failure.next
                ),
            }
        }
    }
}

fn layer_index(disk: &Disk, name: &str, section: Section) -> Option<usize> {
    match section {
        Section::Layers => name
            .split_once('-')
            .and_then(|(index, _)| index.parse().ok())
            .filter(|index| *index < disk.layers.len()),
        Section::Snapshots
        | Section::Internal
        | Section::Live
        | Section::Jobs
        | Section::Bitmaps
        | Section::Backup(_) => index_of(disk, name),
    }
}

/// Which layer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// An external snapshot, by its name.
    Point(String),
    /// Any sealed layer, by `tree::layer_identity`.
    Layer(String),
}

impl Which {
    /// Its place among the sealed layers, if it is listed.
    pub(super) fn index_in(&self, disk: &Disk) -> Option<usize> {
        match self {
            Which::Point(name) => index_of(disk, name),
            Which::Layer(identity) => disk
                .layers
                .iter()
                .position(|layer| layer.shown() && layer_identity(layer) == *identity),
        }
    }

    pub(super) fn missing(&self) -> Failure {
        let message = match self {
            Which::Point(name) => format!("there is no snapshot '{name}'"),
            Which::Layer(_) => "the layer is in the chain no more".to_owned(),
        };
        Failure::new(Errno::ENOENT, message)
    }
}

/// How well the bytes to copy are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// From the images' own tables.
    Exactly,
    /// From what the files take: a merge is writing them.
    Roughly,
}

/// What a layer is called where it is listed: its point's name, or its directory in layers/.
pub(super) fn listed_name(disk: &Disk, index: usize) -> String {
    let layer = &disk.layers[index];
    layer.record.as_ref().map_or_else(
        || layer_dir_name(index, layer),
        |record| record.name.clone(),
    )
}

/// Where a layer is listed.
pub(super) fn listed_path(disk: &Disk, index: usize) -> String {
    let section = match disk.layers[index].record {
        Some(_) => Section::Snapshots,
        None => Section::Layers,
    };
    let name = listed_name(disk, index);
    format!("/disks/{}/{}/{name}", disk.name, section.name())
}

/// The index of external snapshot `name` among the sealed layers.
pub(super) fn index_of(disk: &Disk, name: &str) -> Option<usize> {
    disk.layers.iter().position(|layer| {
        layer.shown()
            && layer
                .record
                .as_ref()
                .is_some_and(|record| record.name == name)
    })
}

/// Finds out what `choose` wants to know about layer `index` and the one above it.
/// `leaving` are files of the chain besides: what stands on the layer and goes soon.
pub(super) fn facts(
    disk: &Disk,
    index: usize,
    measure: Measure,
    leaving: &[FileId],
) -> Result<Facts, Failure> {
    let here = &disk.layers[index];
    let up = above(disk, index);
    let up_is_active = index + 1 == disk.layers.len();
    let directory = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let here_dir = directory(&here.path);
    let io =
        |error: std::io::Error| Failure::io(format!("look at {}", here.path.display()), &error);
    let bytes = |layer: &Layer| match measure {
        Measure::Exactly => layer_allocated(&LayerSpec::from(layer)),
        Measure::Roughly => Ok(layer.allocated_size),
    };
    let mut ours: Vec<_> = disk.files().collect();
    ours.extend(leaving);
    let mut dependents = match here.file {
        Some(file) => layer_file::dependents(&here_dir, file, &ours)?,
        None => Vec::new(),
    };
    // the layer may lie in another directory than the branches that stand on it
    let stands_here = |branch: &&Branch| branch.below.last().is_some_and(|on| on.file == here.file);
    for branch in disk.branches.iter().filter(stands_here) {
        if !dependents.contains(&branch.layer.path) {
            dependents.push(branch.layer.path.clone());
        }
    }
    Ok(Facts {
        stream_bytes: bytes(here)?,
        // the active layer is not ours to parse while QEMU writes it
        commit_bytes: if up_is_active {
            up.allocated_size
        } else {
            bytes(up)?
        },
        moves: match measure {
            Measure::Exactly => moves_when_committed_into(&LayerSpec::from(here), &up.path)?,
            Measure::Roughly => false,
        },
        dependents,
        names: sys::names_of(&here.path).map_err(io)?,
        free_above: sys::free_bytes(&directory(&up.path)).map_err(io)?,
        free_here: sys::free_bytes(&here_dir).map_err(io)?,
    })
}

fn describe(disk: &Disk, index: usize, plan: &Plan) -> String {
    let here = &disk.layers[index];
    let up = above(disk, index);
    let mut text = String::new();
    // QEMU may have the active layer open under an alias
    let upper = match index + 1 == disk.layers.len() {
        true => &disk.active_path,
        false => &up.path,
    };
    let upper = upper.display().to_string();
    let (verb, writes, goes) = match plan.verb {
        Verb::Stream => ("block-stream", upper, here.path.display().to_string()),
        Verb::Release => (
            "block-stream",
            upper,
            format!(
                "nothing: {} leaves the chain and stays as it is",
                here.path.display()
            ),
        ),
        Verb::Commit => (
            "block-commit",
            here.path.display().to_string(),
            format!(
                "{} (its name goes to {})",
                up.path.display(),
                here.path.display()
            ),
        ),
        Verb::CommitActive => (
            "block-commit of the active layer, then pivot",
            here.path.display().to_string(),
            format!(
                "today's {}; {} becomes it",
                disk.active_path.display(),
                here.path.display()
            ),
        ),
    };
    // writing into a String cannot fail
    let _ = writeln!(text, "verb:    {verb}");
    let _ = writeln!(text, "copies:  {} bytes at most", plan.copy);
    let _ = writeln!(text, "writes:  {writes}");
    let _ = writeln!(text, "removes: {goes}");
    let _ = writeln!(
        text,
        "cancel:  {}",
        if plan.verb.job() == "stream" {
            "possible until it ends; the point then stays"
        } else {
            "not possible once it runs"
        }
    );
    let _ = writeln!(text, "because: {}", plan.because);
    text
}
