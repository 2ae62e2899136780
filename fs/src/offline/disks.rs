//! The model of switched-off disks: what `ops` builds from QEMU's graph, built from files alone.
//! It reads headers, snapshot tables and our own records; it changes nothing.

use super::branches;
use super::chain::{ResolvedLayer, resolve_chain};
use super::refuse_if_written;
use crate::errno::Failure;
use crate::layer_file;
use crate::model::{ConnectionState, Disk, Format, Internal, Layer, Model, Tuning, Vm};
use crate::sys;
use crate::tree::{first_free, fit_name, name_internals};
use crate::view::{LayerCache, LayerSpec};
use qmpfs_qcow2::{Header, InternalSnapshot};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// st_blocks counts in these, whatever the filesystem's blocks are.
const STAT_BLOCK: u64 = 512;

/// Everything about these images, each the active layer of a disk. `source` is what was mounted,
/// in the user's words.
pub fn model(images: &[PathBuf], format: Option<Format>, source: &str) -> Result<Model, Failure> {
    let mut disks: Vec<Disk> = Vec::new();
    for image in images {
        // An image that somebody writes is not even parsed.
        refuse_if_written(image)?;
        let chain = resolve_chain(image, format.clone())?;
        chain
            .iter()
            .try_for_each(|layer| refuse_if_written(&layer.path))?;
        let taken = |name: &str| disks.iter().any(|other| other.name == name);
        let disk = disk(&chain, taken)?;
        disks.push(disk);
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    let vm = Vm {
        name: source.to_owned(),
        run_state: None,
        switched_off: true,
        qemu_version: String::new(),
        source: source.to_owned(),
        connection: ConnectionState::Offline,
        capabilities: Vec::new(),
        ..Vm::default()
    };
    Ok(Model { vm, disks })
}

/// What a switched-off disk is called: after its image, with a number where that name is taken.
pub(crate) fn disk_name(image: &Path, taken: impl Fn(&str) -> bool) -> String {
    let stem = fit_name(&image.file_stem().unwrap_or_default().to_string_lossy());
    first_free(&stem, '-', taken)
}

fn disk(chain: &[ResolvedLayer], taken: impl Fn(&str) -> bool) -> Result<Disk, Failure> {
    let mut layers = chain.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
    let mut internals = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let holder = (index + 1 < layers.len()).then_some(index);
        let found = snapshots(layer)?;
        if found.is_empty() {
            continue;
        }
        let records = layer_file::read_internals(&layer.path);
        internals.extend(
            found
                .iter()
                .map(|snapshot| internal(snapshot, holder).with_record(&records)),
        );
    }
    name_internals(&mut internals);
    let active = layers
        .pop()
        .expect("a resolved chain has its image, at least");
    layer_file::name_foreign(&active.path, &mut layers);
    let mut disk = Disk {
        name: disk_name(&active.path, taken),
        root: None,
        active_path: active.path.clone(),
        active,
        layers,
        internals,
        lives: Vec::new(),
        backups: Vec::new(),
        bitmaps: Vec::new(),
        jobs: Vec::new(),
        no_snapshots: Some("mounted with -o ro".into()),
        tuning: Tuning::default(),
        branches: Vec::new(),
        no_overlay: None,
        assumed: Vec::new(),
        state_part: crate::model::StatePart::default(),
    };
    disk.branches = branches(&disk);
    Ok(disk)
}

fn layer(resolved: &ResolvedLayer) -> Result<Layer, Failure> {
    let path = &resolved.path;
    let io = |error| Failure::io(format_args!("look at {}", path.display()), &error);
    let metadata = path.metadata().map_err(io)?;
    // Only regular files carry our attributes; asking a device of them could have side effects.
    let (record, journal) = match metadata.is_file() {
        true => (layer_file::read_point(path)?, layer_file::read_merge(path)?),
        false => (None, None),
    };
    Ok(Layer {
        node: None,
        path: path.clone(),
        file: Some(sys::file_id(path).map_err(io)?),
        format: resolved.format.clone(),
        virtual_size: resolved.virtual_size,
        allocated_size: metadata.blocks().saturating_mul(STAT_BLOCK),
        modified: metadata.modified().ok(),
        record,
        foreign_name: None,
        // A commit into it was begun: its bytes are neither the old state nor the new.
        leaving: journal.is_some_and(|journal| crate::ops::merge::mixes(&journal.verb)),
    })
}

fn snapshots(layer: &Layer) -> Result<Vec<InternalSnapshot>, Failure> {
    let trouble = |error| crate::view::failure_of(&layer.path, &error);
    let count = match layer.format {
        Format::Qcow2 => {
            let file = sys::open_for_reading(&layer.path).map_err(|error| {
                Failure::io(format_args!("open {}", layer.path.display()), &error)
            })?;
            Header::read(&file).map_err(trouble)?.snapshot_count
        }
        Format::Raw | Format::Other(_) => 0,
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    // A cache of its own: the files are closed, and unlocked, when this look is over.
    let opened = LayerCache::default().open(&[LayerSpec::from(layer)], None)?;
    let mut found = Vec::new();
    for layer in opened.chain().layers() {
        if let qmpfs_qcow2::Layer::Qcow2(image) = &**layer {
            found.extend(image.snapshots().map_err(trouble)?);
        }
    }
    Ok(found)
}

fn internal(snapshot: &InternalSnapshot, layer: Option<usize>) -> Internal {
    let tag = snapshot.name_str().into_owned();
    let since = Duration::new(
        snapshot.date_secs.into(),
        snapshot.date_nanos.min(999_999_999),
    );
    Internal {
        id: snapshot.id_str().into_owned(),
        name: fit_name(&tag),
        tag,
        time: SystemTime::UNIX_EPOCH + since,
        virtual_size: snapshot.virtual_size,
        vm_state_size: snapshot.vm_state_size,
        layer,
        record: None,
    }
}

#[cfg(test)]
mod tests;
