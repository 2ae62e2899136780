//! chain.txt: the chain of one disk drawn for a terminal.

use super::{human, layer_instant, layer_name, rfc3339};
use crate::model::{Disk, FileId, Layer, Model};

pub(super) fn text(model: &Model, disk: &Disk) -> String {
    let layers: Vec<&Layer> = disk.layers.iter().chain([&disk.active]).collect();
    let last = disk.layers.len();
    let names: Vec<String> = layers
        .iter()
        .enumerate()
        .map(|(index, layer)| match index == last {
            true => disk
                .active_path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            false => layer_name(index, layer, false),
        })
        .collect();
    let width = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);

    let mut text = format!(
        "{}: {} of {}, {} layer{}\n\n",
        disk.name,
        human(disk.active.virtual_size),
        disk.active.format.name(),
        layers.len(),
        if layers.len() == 1 { "" } else { "s" }
    );
    for (index, (layer, name)) in layers.iter().zip(&names).enumerate() {
        let (bullet, rail) = if index == last {
            ("●", "")
        } else {
            ("○", "  ↑\n")
        };
        let line = format!(
            "  {bullet} {name:<width$}  {:>10}  {:<6}  {}",
            human(layer.allocated_size),
            layer.format.name(),
            marks(model, disk, layer, index == last).join(", ")
        );
        text.push_str(line.trim_end());
        text.push('\n');
        text.push_str(rail);
    }
    text.push_str(
        "\n  base at the top, each layer stands on the one above it (base ← ... ← active)\n",
    );

    if !disk.branches.is_empty() {
        text.push_str("\nbeside the chain, since a rollback\n");
        for branch in &disk.branches {
            let on = branch.below.last().and_then(|layer| layer.path.file_name());
            text.push_str(&format!(
                "  ◌ {}  {:>10}  on {}\n",
                branch.name(),
                human(branch.layer.allocated_size),
                on.unwrap_or_default().to_string_lossy()
            ));
        }
    }
    if !disk.internals.is_empty() {
        text.push_str("\ninternal snapshots\n");
        for internal in &disk.internals {
            let holder = internal.layer.unwrap_or(last);
            let holder = names.get(holder).map_or("?", String::as_str);
            text.push_str(&format!(
                "  ◦ {}  {}  in {holder}\n",
                internal.name,
                rfc3339(internal.time)
            ));
        }
    }
    for job in disk.jobs.iter() {
        let (current, total) = job.progress;
        text.push_str(&format!(
            "\njob {}: {} to remove {}, {}, {} of {}\n",
            job.id,
            job.verb,
            job.point,
            job.state,
            human(current),
            human(total)
        ));
    }
    text
}

/// Whose a layer is and what may happen to it.
fn marks(model: &Model, disk: &Disk, layer: &Layer, active: bool) -> Vec<String> {
    let mut marks = Vec::new();
    match (&layer.record, active) {
        (_, true) => marks.push("active, written by the guest".to_owned()),
        (Some(record), false) => {
            marks.push(format!("point {}, sealed {}", record.name, record.time))
        }
        (None, false) => {
            let since = layer_instant(layer)
                .map(|at| format!(", last written {}", rfc3339(at)))
                .unwrap_or_default();
            marks.push(format!("foreign: never written, never unlinked{since}"));
        }
    }
    if layer.leaving {
        marks.push("leaving".to_owned());
    }
    if let Some(file) = layer.file {
        let sharers = sharers(model, disk, file);
        if !sharers.is_empty() {
            marks.push(format!("shared with {}", sharers.join(", ")));
        }
    }
    marks
}

/// The other disks that stand on the same file.
fn sharers<'a>(model: &'a Model, disk: &Disk, file: FileId) -> Vec<&'a str> {
    let others = model.disks.iter().filter(|other| other.name != disk.name);
    others
        .filter(|other| {
            other
                .layers
                .iter()
                .chain([&other.active])
                .any(|layer| layer.file == Some(file))
        })
        .map(|other| other.name.as_str())
        .collect()
}
