//! What reading `rollback` shows: the points a disk can go back to, and what would happen.

use crate::intent::Verbs;
use crate::model::{Disk, Model};
use crate::tree::layer_dir_name;

pub(super) fn text(model: &Model, disk: &Disk, verbs: Verbs) -> String {
    let mut text = format!(
        "echo NAME > rollback: {} becomes a new layer on that point; what is active now stays as a point\n",
        disk.active_path.display()
    );
    text.push_str(match (verbs, model.vm.switched_off) {
        (
            Verbs {
                read_only: true, ..
            },
            _,
        ) => "not here: mounted with -o ro\n",
        (_, true) => "the VM is off: nobody is disturbed\n",
        (
            Verbs {
                live_rollback: true,
                ..
            },
            false,
        ) => "the VM is on: it is stopped for that, reset, and begins anew on the old state\n",
        (
            Verbs {
                live_rollback: false,
                ..
            },
            false,
        ) => "the VM is on: refused, unless mounted with -o live_rollback\n",
    });
    let layers = disk.layers.iter().enumerate();
    for (index, layer) in layers.filter(|(_, layer)| layer.shown()) {
        match &layer.record {
            Some(record) => text.push_str(&format!("snapshots/{}\n", record.name)),
            None => text.push_str(&format!("layers/{}\n", layer_dir_name(index, layer))),
        }
    }
    for branch in &disk.branches {
        text.push_str(&format!("snapshots/{}\n", branch.name()));
    }
    text
}
