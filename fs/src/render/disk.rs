//! disk.json.

use super::{layer_name, made_by};
use crate::model::{Disk, Layer};
use serde::Serialize;

/// The object of disk.json.
#[derive(Serialize)]
pub(super) struct DiskJson<'a> {
    disk: &'a str,
    node_name: Option<&'a str>,
    format: &'a str,
    virtual_size: u64,
    active: String,
    snapshots_possible: bool,
    why_not: Option<&'a str>,
    assumed: &'a [String],
    layers: Vec<LayerJson<'a>>,
}

/// One layer of it, base first.
#[derive(Serialize)]
struct LayerJson<'a> {
    index: usize,
    name: String,
    file: String,
    format: &'a str,
    virtual_size: u64,
    allocated_size: u64,
    sealed_by_qmpfs: bool,
    made_by: &'static str,
    point: Option<&'a str>,
    active: bool,
    leaving: bool,
}

pub(super) fn disk(disk: &Disk) -> DiskJson<'_> {
    let sealed = disk
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| one(index, layer, false));
    DiskJson {
        disk: &disk.name,
        node_name: disk.root.as_ref().map(|node| node.as_str()),
        format: disk.active.format.name(),
        virtual_size: disk.active.virtual_size,
        active: disk.active_path.to_string_lossy().into_owned(),
        snapshots_possible: disk.no_seal().is_none(),
        why_not: disk.no_seal().map(String::as_str),
        assumed: &disk.assumed,
        layers: sealed
            .chain([LayerJson {
                // The name that stays, not the alias under which QEMU may have it open.
                file: disk.active_path.to_string_lossy().into_owned(),
                name: disk
                    .active_path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                ..one(disk.layers.len(), &disk.active, true)
            }])
            .collect(),
    }
}

fn one(index: usize, layer: &Layer, active: bool) -> LayerJson<'_> {
    LayerJson {
        index,
        name: layer_name(index, layer, active),
        file: layer.path.to_string_lossy().into_owned(),
        format: layer.format.name(),
        virtual_size: layer.virtual_size,
        allocated_size: layer.allocated_size,
        sealed_by_qmpfs: layer.record.is_some(),
        made_by: made_by(layer),
        point: layer.point_name(),
        active,
        leaving: layer.leaving,
    }
}
