//! Points beside the chain: sealed layers of a disk that a rollback left standing, and what each of
//! them stands on. It reads names, records and headers of sealed files that are in no chain; it
//! never reads the header of a layer that QEMU has in its chain.
//! Invariant: a name in a header is followed only to a layer of the disk's own chain or to another
//! sealed file of the same disk. What leads elsewhere is not shown.

use crate::layer_file;
use crate::model::{Branch, Disk, FileId, Format, Layer};
use crate::sys;
use qmpfs_qcow2::Header;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// st_blocks counts in these, whatever the filesystem's blocks are.
const STAT_BLOCK: u64 = 512;

/// A sealed file in no chain, and the file its header names.
struct Sealed {
    layer: Layer,
    file: FileId,
    below: Option<FileId>,
}

/// The points of a disk that are not in its chain, sorted by name.
pub fn branches(disk: &Disk) -> Vec<Branch> {
    if disk.active.file.is_none() || disk.active.format != Format::Qcow2 {
        return Vec::new();
    }
    let names = match layer_file::siblings(&disk.active_path) {
        Ok(names) => names,
        Err(failure) => {
            tracing::debug!(%failure, "no look at what lies beside the chain");
            return Vec::new();
        }
    };
    let found: Vec<Sealed> = names.iter().filter_map(|path| sealed(disk, path)).collect();
    let mut branches: Vec<Branch> = found
        .iter()
        .filter_map(|top| {
            let below = below(disk, &found, top);
            if below.is_none() {
                tracing::debug!(path = %top.layer.path.display(), "stands on no layer of this disk");
            }
            Some(Branch {
                layer: top.layer.clone(),
                below: below?,
            })
        })
        .collect();
    branches.sort_by(|a, b| a.name().cmp(b.name()));
    branches
}

/// A file as a sealed layer beside the chain; None for anything else.
fn sealed(disk: &Disk, path: &Path) -> Option<Sealed> {
    let file = sys::file_id(path).ok()?;
    let in_chain = |layer: &Layer| layer.file == Some(file) || layer.path == path;
    if path == disk.active_path || disk.chain().any(in_chain) {
        return None;
    }
    let record = layer_file::read_point(path).ok().flatten()?;
    // the name a merge leaves, or that of another disk's layer
    if layer_file::sealed_path(&disk.active_path, &record.name) != *path {
        return None;
    }
    let has_its_name = |layer: &Layer| layer.record.as_ref().is_some_and(|r| r.name == record.name);
    if disk.layers.iter().any(has_its_name) {
        return None;
    }
    // a merge that was not settled: what the file holds is the merge's business
    if !matches!(layer_file::read_merge(path), Ok(None)) {
        return None;
    }
    let opened = sys::open_for_reading(path).ok()?;
    let header = Header::read(&opened).ok()?;
    let below = match &header.backing {
        None => None,
        Some(backing) => Some(layer_file::backing_file(path, &backing.name)?),
    };
    let metadata = opened.metadata().ok()?;
    Some(Sealed {
        layer: Layer {
            node: None,
            path: path.to_owned(),
            file: Some(file),
            format: Format::Qcow2,
            virtual_size: header.virtual_size,
            allocated_size: metadata.blocks().saturating_mul(STAT_BLOCK),
            modified: metadata.modified().ok(),
            record: Some(record),
            foreign_name: None,
            leaving: false,
        },
        file,
        below,
    })
}

/// What a sealed file stands on, base first; None where that leads out of the disk or in a circle.
fn below(disk: &Disk, found: &[Sealed], top: &Sealed) -> Option<Vec<Layer>> {
    let mut between: Vec<&Sealed> = Vec::new();
    let mut next = top.below;
    while let Some(file) = next {
        let joins = disk
            .layers
            .iter()
            .position(|layer| layer.file == Some(file));
        if let Some(index) = joins {
            let chain = disk.layers[..=index].iter();
            let rest = between.iter().rev().map(|sealed| &sealed.layer);
            return Some(chain.chain(rest).cloned().collect());
        }
        let sealed = found.iter().find(|sealed| sealed.file == file)?;
        if between.len() > found.len() {
            return None;
        }
        between.push(sealed);
        next = sealed.below;
    }
    let rest = between.iter().rev().map(|sealed| &sealed.layer);
    Some(rest.cloned().collect())
}
