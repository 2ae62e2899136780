//! README.txt: one page, with this mount's own names in its commands.

use super::Extra;
use crate::model::{ConnectionState, Disk, Model, Quiesce};

pub(super) fn text(model: &Model, extra: &Extra<'_>) -> String {
    let mnt = extra.mountpoint.display();
    let mut text = format!("{} as files and directories, by qmpfs\n\n", title(model));
    text.push_str(
        "A point is one instant of one disk. Its directory holds disk.raw (the disk as the guest saw it, read-only),\n\
         point.json (what it is) and plan (what removing it would do).\n\n",
    );
    text.push_str("disks here:\n");
    if model.disks.is_empty() {
        text.push_str("  none\n");
    }
    for disk in &model.disks {
        text.push_str(&format!(
            "  {:<16} {}{}\n",
            disk.name,
            disk.active_path.display(),
            limits(disk)
        ));
    }
    let disk = model
        .disks
        .iter()
        .find(|disk| disk.no_seal().is_none())
        .or(model.disks.first());
    let name = disk.map_or("DISK", |disk| disk.name.as_str());
    let dir = format!("{mnt}/disks/{name}");
    let point = disk.and_then(newest_point).unwrap_or("NAME");

    text.push_str("\nlook\n");
    command(
        &mut text,
        &format!("cat {dir}/chain.txt"),
        "the chain, drawn",
    );
    command(
        &mut text,
        &format!("ls -l {dir}/snapshots {dir}/internal"),
        "the points",
    );
    command(
        &mut text,
        &format!("cp --sparse=always {dir}/snapshots/{point}/disk.raw /backup/"),
        "copy one out",
    );
    command(
        &mut text,
        &format!("ls {dir}/snapshots/{point}/files/*"),
        "the guest's own files in it, by partition",
    );
    command(
        &mut text,
        &format!("cat {mnt}/log"),
        "what each verb did, and why one failed",
    );
    command(
        &mut text,
        &format!("tail -f {mnt}/events"),
        "what happens, a JSON object a line; metrics has the numbers",
    );
    if extra.verbs.read_only {
        text.push_str("\nThis mount is read-only (-o ro): it has no verbs.\n");
        return text;
    }
    text.push_str("\nmake a point\n");
    command(
        &mut text,
        &format!("mkdir {mnt}/snapshots/NAME"),
        "of all disks, at one instant",
    );
    command(
        &mut text,
        &format!("mkdir {dir}/snapshots/NAME"),
        "of one disk: a new layer",
    );
    command(
        &mut text,
        &format!("mkdir {dir}/internal/NAME"),
        "of one disk: inside the image file",
    );
    command(
        &mut text,
        &format!("mkdir {dir}/live/NAME"),
        "of the running disk, copied nowhere: read it, copy it out, rmdir it",
    );
    command(
        &mut text,
        &format!("mkdir {mnt}/live/NAME"),
        "of all running disks, at one instant",
    );
    if model.vm.capabilities.iter().any(|can| can == "checkpoints") {
        command(
            &mut text,
            &format!("mkdir {mnt}/checkpoints/NAME"),
            "of all disks with the RAM; the VM stands still while it is saved",
        );
    }
    if extra.verbs.backups {
        command(
            &mut text,
            &format!("mkdir {dir}/backups/full/NAME"),
            "of one disk: a copy of its own in the backup directory; it returns while that is made",
        );
        command(
            &mut text,
            &format!("mkdir {dir}/backups/incremental/NAME"),
            "what was written since the one before (or all, and point.json says why)",
        );
        command(
            &mut text,
            &format!("mkdir {dir}/backups/top/NAME"),
            "what was written since the last snapshot, on a copy of what lies below",
        );
        command(
            &mut text,
            &format!("mkdir {mnt}/backups/incremental/NAME"),
            "the same of all disks, at one instant",
        );
        command(
            &mut text,
            &format!("qmpfs verify {dir}/backups"),
            "read them whole and compare them with what they were",
        );
    } else {
        text.push_str(
            "  Backups are made where the mount was given a place for them (--backup-dir DIR).\n",
        );
    }
    text.push_str(match model.vm.quiesce {
        Quiesce::Off => "  The guest is not asked to freeze: points are as after a power cut (see --guest-agent).\n",
        Quiesce::Try => "  The guest agent freezes the guest for the instant; if it cannot, point.json says why.\n",
        Quiesce::Require => "  The guest agent freezes the guest for the instant; if it cannot, there is no point.\n",
    });
    text.push_str("\ngo back\n");
    if model.vm.capabilities.iter().any(|can| can == "checkpoints") {
        command(
            &mut text,
            &format!("cat {mnt}/rollback"),
            "the checkpoints the whole VM can go back to, disks and RAM",
        );
    }
    command(
        &mut text,
        &format!("cat {dir}/rollback"),
        "the points to go back to, and whether the VM must be off for it",
    );
    command(
        &mut text,
        &format!("echo {point} > {dir}/rollback"),
        "the disk is what it was then; what it is now stays as a point",
    );
    if extra.verbs.no_delete {
        text.push_str("\nThis mount removes nothing (-o no_delete).\n");
        return text;
    }
    text.push_str("\nremove a point\n");
    command(
        &mut text,
        &format!("cat {dir}/snapshots/{point}/plan"),
        "what it would do",
    );
    command(
        &mut text,
        &format!("rmdir {dir}/snapshots/{point}"),
        "start the merge; returns at once",
    );
    command(
        &mut text,
        &format!("rmdir {mnt}/snapshots/NAME"),
        "the same for the points of all disks",
    );
    command(
        &mut text,
        &format!("cat {dir}/wait"),
        "return when the work on this disk has ended",
    );
    command(
        &mut text,
        &format!("qmpfs wait {dir}"),
        "the same with a progress bar",
    );
    command(
        &mut text,
        &format!("cat {dir}/jobs/*/progress"),
        "how far it is",
    );
    command(&mut text, &format!("rmdir {dir}/jobs/ID"), "cancel it");
    command(
        &mut text,
        &format!("echo pause > {dir}/jobs/ID/ctl"),
        "hold it; also resume, speed 50M, cancel",
    );
    text.push_str("\nFiles inside a point cannot be removed: rm -rf here destroys nothing, only rmdir of a point does.\n");
    text
}

fn title(model: &Model) -> String {
    let name = if model.vm.name.is_empty() {
        &model.vm.source
    } else {
        &model.vm.name
    };
    match &model.vm.connection {
        ConnectionState::Up => name.clone(),
        ConnectionState::Down(_) => format!("{name} (QEMU does not answer)"),
        ConnectionState::Offline => format!("{name} (images only, no QEMU)"),
    }
}

fn limits(disk: &Disk) -> String {
    disk.no_seal()
        .map(|why| format!("  (no snapshots: {why})"))
        .unwrap_or_default()
}

fn newest_point(disk: &Disk) -> Option<&str> {
    let layer = disk
        .layers
        .iter()
        .rev()
        .find(|layer| layer.shown() && layer.point_name().is_some())?;
    layer.point_name()
}

pub(super) fn command(text: &mut String, command: &str, meaning: &str) {
    text.push_str(&format!("  {command}\n      {meaning}\n"));
}
