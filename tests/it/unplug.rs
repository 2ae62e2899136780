//! Disks that leave a VM whose nodes are ours by then, and files that are not what QEMU has open.

use std::fs;

use libc::{EBUSY, EOPNOTSUPP, EPERM};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{assert_errno, json};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

/// A disk that is plugged into a running VM and out of it, and in again: its nodes are ours meanwhile.
#[test]
fn a_sealed_disk_that_is_unplugged_is_closed() {
    let scratch = Scratch::new("unplug");
    let images = scratch.dir("images");
    let (image, hot) = (images.join("web1.qcow2"), images.join("hot.qcow2"));
    oracle::create(&image, 8 << 20);
    oracle::create(&hot, 8 << 20);
    let scsi = ["-device", "virtio-scsi-pci,id=scsi"].map(str::to_owned);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start_with(&scratch, "vm", Attachment::Blockdev, &disks, &scsi);
    let plug = |machine: &mut Machine| {
        let file = json!({"driver": "file", "filename": hot, "node-name": "hot-file"});
        machine.qmp.run("blockdev-add", file);
        let format = json!({"driver": "qcow2", "file": "hot-file", "node-name": "hot-node"});
        machine.qmp.run("blockdev-add", format);
        let device =
            json!({"driver": "scsi-hd", "drive": "hot-node", "bus": "scsi.0", "id": "hot"});
        machine.qmp.run("device_add", device);
    };
    plug(&mut machine);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("hot");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    disk.snapshot("one").make().expect("a snapshot");
    assert_errno(fs::remove_dir(&disk.0), &[EBUSY]);
    assert!(mount.text("log").contains("disk 'hot' is in use"));

    machine.qmp.run("device_del", json!({"id": "hot"}));
    wait::until_true("the device is gone", || {
        let blocks = machine.qmp.run("query-block", json!({}));
        !blocks.to_string().contains("/machine/peripheral/hot")
    });
    // who sweeps the mount means nothing by it
    let swept = sh::attempt(&format!("find {} -delete", disk.0.display()));
    assert!(!swept.status.success() && disk.0.is_dir());
    wait::until_true("the disk is closed", || fs::remove_dir(&disk.0).is_ok());
    assert!(!disk.0.exists());
    let nodes = machine
        .qmp
        .run("query-named-block-nodes", json!({"flat": true}));
    assert!(!nodes.to_string().contains("hot"), "{nodes}");
    // nobody holds its locks
    oracle::check(&hot);

    plug(&mut machine);
    wait::until_true("it is there again", || disk.snapshot("one").exists());
    disk.snapshot("two").make().expect("a snapshot");
    // one that is used, and one that the VM's own nodes are of
    assert_errno(fs::remove_dir(&mount.disk("vda").0), &[EBUSY]);
}

/// Who plugged it in closes what is his own.
#[test]
fn the_node_of_another_is_his_to_close() {
    let scratch = Scratch::new("unplug-own");
    let images = scratch.dir("images");
    let (image, hot) = (images.join("web1.qcow2"), images.join("hot.qcow2"));
    oracle::create(&image, 8 << 20);
    oracle::create(&hot, 8 << 20);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let file = json!({"driver": "file", "filename": hot});
    let format = json!({"driver": "qcow2", "file": file, "node-name": "hot-node"});
    machine.qmp.run("blockdev-add", format);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("hot");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    assert_errno(fs::remove_dir(&disk.0), &[EPERM]);
    let log = mount.text("log");
    assert!(log.contains("blockdev-del hot-node"), "{log}");
}

fn replaced(name: &str, attachment: Attachment) {
    let scratch = Scratch::new(name);
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 8 << 20);
    let moved = image.with_extension("moved");
    let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &image)]);
    sh!(
        "cd {}; mv web1.qcow2 web1.moved; cp web1.moved web1.qcow2",
        scratch.dir("images").display()
    );
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    assert_errno(disk.snapshot("one").make(), &[EOPNOTSUPP]);
    let log = mount.text("log");
    assert!(log.contains("is not the file that QEMU has open"), "{log}");
    assert_eq!(json(&disk.0.join("disk.json"))["snapshots_possible"], false);
    // put back as it says
    fs::rename(&moved, &image).expect("mv");
    wait::until_true("it is seen", || {
        disk.list("snapshots").is_empty() && disk.snapshot("one").make().is_ok()
    });
}

/// What would be done to names and headers would be done to the wrong file.
#[test]
fn nor_is_a_point_removed_beside_it() {
    let scratch = Scratch::new("replaced-rmdir");
    let images = scratch.dir("images");
    let image = images.join("web1.qcow2");
    oracle::create(&image, 8 << 20);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    disk.snapshot("one").make().expect("a snapshot");
    mount.unmount();
    machine.quit();
    machine.start_again();
    sh!(
        "cd {}; mv web1.qcow2 moved; cp moved web1.qcow2",
        images.display()
    );
    let backups = scratch.dir("backups").display().to_string();
    let options = ["--backup-dir", &backups, "-o", "name=web1"];
    let scratch = Scratch::new("replaced-rmdir-mount");
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &options);
    let disk = mount.disk("vda");
    wait::until_true("the point is there", || disk.snapshot("one").exists());
    assert_errno(disk.snapshot("one").delete(), &[EBUSY]);
    // what the guest has can be saved
    disk.backup("full", "saved").make().expect("a backup");
    disk.wait().expect("its end");
    assert!(images.join("web1.one.qcow2").exists());
    oracle::check(&image);
}

#[test]
fn a_file_that_qemu_does_not_have_open_is_not_sealed() {
    replaced("replaced", Attachment::Blockdev);
}

#[test]
fn nor_under_a_storage_daemon() {
    replaced("replaced-qsd", Attachment::StorageDaemon);
}
