//! README.txt of a mount of backups.

use super::Extra;
use super::readme::command;
use crate::model::Model;

pub(super) fn text(model: &Model, extra: &Extra<'_>) -> String {
    let mnt = extra.mountpoint.display();
    let mut text = format!("the backups in {}, by qmpfs\n\n", model.vm.source);
    text.push_str(
        "A backup is one instant of one disk. Its directory holds disk.raw (the disk as the guest saw it, read-only),\n\
         point.json (what it is) and plan (what removing it would do). No VM and no QEMU is needed.\n\ndisks here:\n",
    );
    let mut some = None;
    for disk in &model.disks {
        let count = disk.backups.len();
        text.push_str(&format!("  {:<24} {count} backups\n", disk.name));
        let newest = disk.backups.iter().rev().find(|it| it.is_complete());
        some = some.or(newest.map(|newest| (disk, newest)));
    }
    let dir = match some.and_then(|(disk, newest)| Some((disk.name.split_once('/')?, newest))) {
        Some(((vm, disk), newest)) => format!(
            "{mnt}/{vm}/disks/{disk}/backups/{}/{}",
            newest.manifest.kind.name(),
            newest.manifest.name
        ),
        None => format!("{mnt}/VM/disks/DISK/backups/KIND/NAME"),
    };
    text.push_str("\nlook\n");
    command(&mut text, &format!("cat {dir}/point.json"), "what it is");
    command(
        &mut text,
        &format!("qmpfs verify {dir}"),
        "read it whole and compare it with what it was",
    );
    command(
        &mut text,
        &format!("cat {mnt}/log"),
        "what each verb did, and why one failed",
    );
    text.push_str("\nrestore, while the VM is off\n");
    command(
        &mut text,
        &format!("cp --sparse=always {dir}/disk.raw NEW.raw"),
        "the whole disk, as a raw image",
    );
    command(
        &mut text,
        &format!("qemu-img convert -O qcow2 {dir}/disk.raw NEW.qcow2"),
        "the same, as qcow2; then put it where the VM's disk was",
    );
    if extra.verbs.read_only || extra.verbs.no_delete {
        text.push_str("\nThis mount removes nothing (-o ro, -o no_delete).\n");
        return text;
    }
    text.push_str("\nremove\n");
    command(&mut text, &format!("cat {dir}/plan"), "what it would do");
    command(
        &mut text,
        &format!("rmdir {dir}"),
        "exactly that instant goes; others that stand on it stay as they are",
    );
    command(
        &mut text,
        &format!("qmpfs wait {mnt}"),
        "until the work has ended",
    );
    text
}
