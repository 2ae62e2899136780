//! chain.txt: the chain of one disk drawn for a terminal; and what is told of each of its layers,
//! for the drawing of a browser too.

use super::{human, layer_instant, layer_name, rfc3339};
use crate::model::{Disk, FileId, Internal, Job, Layer, Model};

/// One layer as it is drawn.
pub(super) struct Row<'a> {
    pub(super) name: String,
    pub(super) layer: &'a Layer,
    pub(super) active: bool,
    /// Whose it is and what may happen to it.
    pub(super) marks: String,
    pub(super) internals: Vec<&'a Internal>,
}

/// The layers, base first.
pub(super) fn rows<'a>(model: &Model, disk: &'a Disk) -> Vec<Row<'a>> {
    let last = disk.layers.len();
    let layers = disk.chain().enumerate();
    layers
        .map(|(index, layer)| {
            let active = index == last;
            let name = match active {
                true => disk
                    .active_path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                false => layer_name(index, layer, false),
            };
            let holds = |internal: &&Internal| internal.layer.unwrap_or(last) == index;
            Row {
                // A file may be called anything, and a line is a line.
                name: name.replace(char::is_control, "_"),
                layer,
                active,
                marks: marks(model, disk, layer, active).join(", "),
                internals: disk.internals.iter().filter(holds).collect(),
            }
        })
        .collect()
}

/// "vda: 10.0 GiB of qcow2, 3 layers"
pub(super) fn title(disk: &Disk) -> String {
    let layers = disk.layers.len() + 1;
    format!(
        "{}: {} of {}, {layers} layer{}",
        disk.name,
        human(disk.active.virtual_size),
        disk.active.format.name(),
        if layers == 1 { "" } else { "s" }
    )
}

/// "job qmpfs-stream-1: stream to remove old, running, 25 B of 100 B (25 %)"
pub(super) fn job(job: &Job) -> String {
    let (current, total) = job.progress;
    let why = match (job.by_others(), job.point.as_str()) {
        (true, _) => " of another monitor".to_owned(),
        (false, "") => String::new(),
        (false, point) => format!(" to remove {point}"),
    };
    let percent = current.saturating_mul(100).checked_div(total);
    let percent = percent.map_or(String::new(), |percent| {
        format!(" ({} %)", percent.min(100))
    });
    let error = job.error.as_deref().unwrap_or_default();
    format!(
        "job {}: {}{why}, {}, {} of {}{percent}{}{}",
        job.id,
        job.verb,
        job.state,
        human(current),
        human(total),
        if error.is_empty() { "" } else { ", " },
        error.replace(char::is_control, " ")
    )
}

/// "clean  2026-01-02T03:04:05.000Z, with 512 MiB of RAM"
pub(super) fn internal(internal: &Internal) -> String {
    let ram = match internal.vm_state_size {
        0 => String::new(),
        bytes => format!(", with {} of RAM", human(bytes)),
    };
    format!("{}  {}{ram}", internal.name, rfc3339(internal.time))
}

pub(super) fn text(model: &Model, disk: &Disk) -> String {
    let rows = rows(model, disk);
    let width = rows
        .iter()
        .map(|row| row.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = format!("{}\n\n", title(disk));
    for row in &rows {
        let bullet = if row.active { "●" } else { "○" };
        let line = format!(
            "  {bullet} {:<width$}  {:>10}  {:<6}  {}",
            row.name,
            human(row.layer.allocated_size),
            row.layer.format.name(),
            row.marks
        );
        text.push_str(line.trim_end());
        text.push('\n');
        let rail = if row.active { " " } else { "│" };
        for one in &row.internals {
            text.push_str(&format!("  {rail}   ◦ {}\n", internal(one)));
        }
        if !row.active {
            text.push_str("  ↑\n");
        }
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
        text.push_str("  ◦ internal snapshots, inside the file of the layer above them\n");
    }
    for one in &disk.jobs {
        text.push_str(&format!("\n{}\n", job(one)));
    }
    text
}

fn marks(model: &Model, disk: &Disk, layer: &Layer, active: bool) -> Vec<String> {
    let mut marks = Vec::new();
    let written = layer_instant(layer)
        .map(|at| format!(", last written {}", rfc3339(at)))
        .unwrap_or_default();
    match (&layer.record, &layer.foreign_name, active) {
        (_, _, true) => marks.push("active, written by the guest".to_owned()),
        (Some(record), _, false) => {
            marks.push(format!("point {}, sealed {}", record.name, record.time))
        }
        (None, Some(name), false) => {
            marks.push(format!(
                "point {name}, made by others: never written, never unlinked{written}"
            ));
        }
        (None, None, false) => {
            marks.push(format!("foreign: never written, never unlinked{written}"));
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
        .filter(|other| other.files().any(|its| its == file))
        .map(|other| other.name.as_str())
        .collect()
}
