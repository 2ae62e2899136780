//! Which way a backup is merged into those that stand on it: by a stream up, or by a commit down.
//! It looks at sizes, at room, and at who reads; it changes nothing.

use crate::backups::{self, Merge, MergeVerb};
use crate::errno::{Errno, Failure};
use crate::model::{Backup, Layer, Previous};
use crate::sys;
use crate::view::{self, LayerSpec};
use std::os::unix::fs::MetadataExt;

/// Tables and header of what grows, beside the bytes themselves.
const SLACK: u64 = 1 << 20;

/// Whether what somebody reads, and what is free, is looked at, too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops::backup) enum Look {
    AtFiles,
    AtManifests,
}

/// How a backup is merged into those that stand on it: whichever copies less, where that is possible.
pub(in crate::ops::backup) fn choose(
    backup: &Backup,
    above: &[Backup],
    look: Look,
) -> Result<Merge, Failure> {
    let name = &backup.manifest.name;
    for one in above.iter().chain([backup]) {
        if !one.is_complete() {
            return Err(Failure::new(
                Errno::EBUSY,
                format!(
                    "'{}' cannot be read, and so '{name}' cannot be merged",
                    one.manifest.name
                ),
            )
            .next("mend it, or remove it first: its point.json says what is wrong"));
        }
    }
    let here = bytes(backup, look)?;
    let up = here.saturating_mul(above.len() as u64);
    let mut down = 0_u64;
    for one in above {
        down = down.saturating_add(bytes(one, look)?);
    }
    let mut verb = match above.len() {
        1 if down < here => MergeVerb::Commit,
        _ => MergeVerb::Stream,
    };
    if look == Look::AtFiles
        && let Some(file) = backup.layers.last()
    {
        // whoever else reads it would see it change, whoever reads those above would see it move
        if verb == MergeVerb::Commit
            && (view::read_by_someone(&file.path)? || has_other_names(file) || moves(file, above)?)
        {
            verb = MergeVerb::Stream;
        }
        if verb == MergeVerb::Stream {
            refuse_other_names(name, above)?;
        }
        let directory = file.path.parent().unwrap_or(&file.path);
        let free = sys::free_bytes(directory).unwrap_or(u64::MAX);
        let needed = match verb {
            MergeVerb::Commit => down,
            MergeVerb::Stream => up,
        };
        if free < needed.saturating_add(SLACK) {
            return Err(Failure::new(
                Errno::ENOSPC,
                format!("the merge of '{name}' may need {needed} bytes, {free} are free"),
            )
            .next("make room in the backup directory, or remove the newest backups first"));
        }
    }
    let is_doubtful = |one: &&Backup| backups::is_changed(one) || backups::is_changed(backup);
    let doubtful = above.iter().filter(is_doubtful);
    Ok(Merge {
        verb,
        into: above.iter().map(|it| Previous::of(&it.manifest)).collect(),
        copied: false,
        doubt: doubtful.map(|it| it.manifest.id.clone()).collect(),
    })
}

/// What a merge of a backup's own file may write: compressed clusters are written whole.
fn bytes(backup: &Backup, look: Look) -> Result<u64, Failure> {
    let Some(layer) = backup.layers.last() else {
        return Ok(0);
    };
    match look {
        Look::AtManifests => Ok(layer.allocated_size),
        Look::AtFiles => {
            let compressed = view::layer_compressed(&LayerSpec::from(layer))?;
            Ok(layer.allocated_size.saturating_add(compressed))
        }
    }
}

/// Whether a file is also called otherwise, as in a copy by hard links: what is written to it changes there, too.
fn has_other_names(layer: &Layer) -> bool {
    let links = layer.path.metadata().map(|metadata| metadata.nlink());
    links.is_ok_and(|links| links > 1)
}

fn refuse_other_names(name: &str, above: &[Backup]) -> Result<(), Failure> {
    let linked = above.iter().filter_map(|backup| backup.layers.last());
    match linked.into_iter().find(|layer| has_other_names(layer)) {
        None => Ok(()),
        Some(layer) => Err(Failure::new(
            Errno::EBUSY,
            format!(
                "{} has other names (hard links), and the merge of '{name}' would change it under them",
                layer.path.display()
            ),
        )
        .next("remove the other names, or make that copy with cp -a or rsync, without links")),
    }
}

fn moves(file: &Layer, above: &[Backup]) -> Result<bool, Failure> {
    for one in above.iter().filter_map(|backup| backup.layers.last()) {
        if view::moves_when_committed_into(&LayerSpec::from(file), &one.path)? {
            return Ok(true);
        }
    }
    Ok(false)
}
