//! The text of every file that is not a view: pure functions from the model to what `cat` shows.
//! It knows the model and the contract's field names; it knows no FUSE and asks no QEMU.

mod bitmap;
mod chain;
mod chain_svg;
mod checkpoint;
mod disk;
mod group;
mod job;
mod metrics;
mod point;
mod readme;
mod rollback;
mod shelf;
mod time;
mod vm;

pub use time::{now, parse_rfc3339, rfc3339};

use crate::guest::Described;
use crate::intent::Verbs;
use crate::model::{Contents, Job, Layer, Model};
use crate::report::Log;
use crate::tree::{
    DiskFile, Found, JobFile, NodeKey, PointFile, PointKey, RootFile, find_group, find_point,
    layer_dir_name,
};
use qmpfs_qcow2::CacheBytes;
use serde::Serialize;
use std::path::Path;
use std::time::SystemTime;

/// The two sizes of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes that are really there.
    pub allocated: u64,
}

/// What a text needs that is in no model.
pub struct Extra<'a> {
    /// The mount's log.
    pub log: &'a Log,
    /// Where it is mounted.
    pub mountpoint: &'a Path,
    /// Which verbs it has.
    pub verbs: Verbs,
    /// What `rmdir` of a point would do; the verbs know.
    pub plan: &'a dyn Fn(&PointKey) -> String,
    /// The sizes of the point the text is about, where they were measured.
    pub sizes: Option<Sizes>,
    /// What is in the partitions of that point, where somebody has looked.
    pub filesystems: Option<Vec<Described>>,
    /// What the caches of the views hold.
    pub caches: CacheBytes,
}

/// The text of the file `key`. None for directories, views, `wait` files, and what is gone.
pub fn text(model: &Model, key: &NodeKey, extra: &Extra<'_>) -> Option<String> {
    match key {
        NodeKey::RootFile(RootFile::VmJson) => Some(json(&vm::vm(model))),
        NodeKey::RootFile(RootFile::Log) => Some(extra.log.lines().text()),
        NodeKey::RootFile(RootFile::Events) => Some(extra.log.events().lines().text()),
        NodeKey::RootFile(RootFile::Metrics) => Some(metrics::text(model, extra)),
        NodeKey::RootFile(RootFile::Readme) => match model.vm.contents {
            Contents::Machine => Some(readme::text(model, extra)),
            Contents::Backups => Some(shelf::text(model, extra)),
        },
        NodeKey::GroupJson(id) => {
            let group = find_group(model, id)?;
            Some(json(&group::group(model, &group, extra)))
        }
        NodeKey::RootFile(RootFile::Rollback) => Some(checkpoint::rollback(model, extra.verbs)),
        NodeKey::CheckpointJson(name) => checkpoint::text(model, name),
        NodeKey::DiskFile(disk, file) => {
            let disk = model.disk(disk)?;
            match file {
                DiskFile::Json => Some(json(&disk::disk(disk))),
                DiskFile::ChainTxt => Some(chain::text(model, disk)),
                DiskFile::Rollback => Some(rollback::text(model, disk, extra.verbs)),
                DiskFile::ChainSvg => Some(chain_svg::text(model, disk)),
                DiskFile::Wait => None,
            }
        }
        NodeKey::PointFile(point, file) => {
            let found = find_point(model, point)?;
            match file {
                PointFile::DiskRaw => None,
                PointFile::PointJson => Some(json(&point::point(model, point, &found, extra))),
                PointFile::Plan => Some((extra.plan)(point)),
                PointFile::State => job_of(&found).map(job::state),
                PointFile::Progress => job_of(&found).map(|job| json(&job::progress(job))),
                PointFile::Error => job_of(&found).map(job::error),
                PointFile::Wait => None,
            }
        }
        NodeKey::Bitmap(disk, name) => {
            let disk = model.disk(disk)?;
            let bitmap = disk.bitmaps.iter().find(|bitmap| bitmap.name == *name)?;
            Some(json(&bitmap::bitmap(disk, bitmap)))
        }
        NodeKey::JobFile(disk, id, file) => {
            let job = model.disk(disk)?.jobs.iter().find(|job| job.id == *id)?;
            match file {
                JobFile::State => Some(job::state(job)),
                JobFile::Progress => Some(json(&job::progress(job))),
                JobFile::Error => Some(job::error(job)),
                JobFile::Ctl => Some(job::words(job)),
                JobFile::Wait => None,
            }
        }
        NodeKey::Root
        | NodeKey::RootFile(RootFile::Wait)
        | NodeKey::Groups(_)
        | NodeKey::Group(_)
        | NodeKey::GroupLink(..)
        | NodeKey::GroupFiles(_)
        | NodeKey::GroupNote(..)
        | NodeKey::Checkpoints
        | NodeKey::Checkpoint(_)
        | NodeKey::CheckpointLink(..)
        | NodeKey::Disks
        | NodeKey::Vm(_)
        | NodeKey::VmDisks(_)
        | NodeKey::Disk(_)
        | NodeKey::Section(..)
        | NodeKey::Backups(_)
        | NodeKey::Point(_)
        | NodeKey::Inside(..)
        | NodeKey::Job(..) => None,
    }
}

/// The job that makes a point, while there is one.
fn job_of<'a>(found: &Found<'a>) -> Option<&'a Job> {
    let Found::Backup { disk, backup } = found else {
        return None;
    };
    let id = backup.job()?;
    disk.jobs.iter().find(|job| job.id == id)
}

/// The instant of a point, as well as it is known.
pub fn instant(found: &Found<'_>) -> Option<SystemTime> {
    match found {
        Found::Layer { layer, .. } => layer_instant(layer),
        Found::Branch { branch, .. } => layer_instant(&branch.layer),
        Found::Backup { backup, .. } => parse_rfc3339(&backup.manifest.time),
        Found::Internal { internal, .. } => Some(internal.time),
        Found::Live { live, .. } => parse_rfc3339(&live.record.time),
    }
}

fn layer_instant(layer: &Layer) -> Option<SystemTime> {
    let recorded = layer
        .record
        .as_ref()
        .and_then(|record| parse_rfc3339(&record.time));
    recorded.or(layer.modified)
}

/// What a point shows before its view was measured: an upper bound from the files.
pub fn estimated_sizes(found: &Found<'_>) -> Sizes {
    let virtual_size = match found {
        Found::Layer { layer, .. } => layer.virtual_size,
        Found::Branch { branch, .. } => branch.layer.virtual_size,
        Found::Backup { backup, .. } => backup.manifest.virtual_size,
        Found::Internal { internal, .. } => internal.virtual_size,
        Found::Live { live, .. } => live.virtual_size,
    };
    let files = found
        .layers()
        .iter()
        .fold(0u64, |sum, layer| sum.saturating_add(layer.allocated_size));
    Sizes {
        virtual_size,
        allocated: if virtual_size == 0 {
            files
        } else {
            files.min(virtual_size)
        },
    }
}

/// One object, pretty, with a newline at its end.
fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value)
        .expect("our own structs have string keys and no fallible Serialize");
    text.push('\n');
    text
}

/// Who sealed a layer.
fn made_by(layer: &Layer) -> &'static str {
    match layer.record {
        Some(_) => "qmpfs",
        None => "other",
    }
}

/// What a layer is called in texts: its directory's name, or the file's for the active one.
fn layer_name(index: usize, layer: &Layer, active: bool) -> String {
    if active {
        return layer
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
    }
    layer_dir_name(index, layer)
}

/// "1.2 GiB"
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests;
