//! Which way a backup is merged into those that stand on it: by a stream up, or by a commit down.
//! It looks at sizes, at room, and at who reads; it changes nothing.

use crate::backups::{Merge, MergeVerb};
use crate::errno::{Errno, Failure};
use crate::model::{Backup, Layer, Previous};
use crate::sys;
use crate::view::{self, LayerSpec};

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
    let bytes = |backup: &Backup| backup.layers.last().map_or(0, |layer| layer.allocated_size);
    let here = bytes(backup);
    let up = here.saturating_mul(above.len() as u64);
    let down = above.iter().map(&bytes).sum::<u64>();
    let mut verb = match above.len() {
        1 if down < here => MergeVerb::Commit,
        _ => MergeVerb::Stream,
    };
    if look == Look::AtFiles
        && let Some(file) = backup.layers.last()
    {
        // whoever else reads it would see it change, whoever reads those above would see it move
        if verb == MergeVerb::Commit && (view::read_by_someone(&file.path)? || moves(file, above)?)
        {
            verb = MergeVerb::Stream;
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
    Ok(Merge {
        verb,
        into: above.iter().map(|it| Previous::of(&it.manifest)).collect(),
        copied: false,
    })
}

fn moves(file: &Layer, above: &[Backup]) -> Result<bool, Failure> {
    for one in above.iter().filter_map(|backup| backup.layers.last()) {
        if view::moves_when_committed_into(&LayerSpec::from(file), &one.path)? {
            return Ok(true);
        }
    }
    Ok(false)
}
