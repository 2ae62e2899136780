//! Two ways to keep the active path that looked right and lose data, and the one that does not: shown at the real
//! qemu-storage-daemon, without qmpfs. Should QEMU ever change here, these say so first.

use std::path::Path;

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::{BLOCK, Model, STEP, fill, number};
use qmpfs_tests::oracle;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::writer::Writer;
use serde_json::{Value, json};

const SIZE: u64 = 40 << 20;

/// A disk `vda` on a base, and two nodes `b1` and `b2` that are both that base.
fn disk_on_two_bases(scratch: &Scratch) -> Machine {
    let (base, disk) = (scratch.file("base.qcow2"), scratch.file("disk.qcow2"));
    oracle::create(&base, SIZE);
    oracle::create_overlay(&disk, &base, SIZE);
    let mut machine = Machine::start(
        scratch,
        "qsd",
        Attachment::StorageDaemon,
        &[Disk::qcow2("vda", &disk)],
    );
    for name in ["b1", "b2"] {
        add_file(&mut machine, &format!("{name}-file"), &base);
        let options = json!({"driver": "qcow2", "node-name": name, "file": format!("{name}-file"), "read-only": true});
        machine.qmp.run("blockdev-add", options);
    }
    machine
}

fn add_file(machine: &mut Machine, name: &str, path: &Path) {
    // Without locking, so that one file can be open under two names: what is shown here is about bytes, not locks.
    let options = json!({"driver": "file", "node-name": name, "filename": path, "locking": "off", "auto-read-only": true});
    machine.qmp.run("blockdev-add", options);
}

fn reopen(machine: &mut Machine, file: &str, backing: &str) {
    let node =
        json!({"driver": "qcow2", "node-name": "vda-node", "file": file, "backing": backing});
    machine
        .qmp
        .run("blockdev-reopen", json!({"options": [node]}));
}

#[test]
fn reopening_with_another_file_child_loses_acknowledged_writes() {
    let scratch = Scratch::new("proof-file-child");
    let mut machine = disk_on_two_bases(&scratch);
    let (disk, alias) = (scratch.file("disk.qcow2"), scratch.file("alias.qcow2"));
    std::fs::hard_link(&disk, &alias).expect("a second name of the same inode");
    let writer = Writer::start(&machine.endpoint("vda"), 0..SIZE, Model::default(), 1);
    writer.progress(50);

    let mut current = "vda-file".to_owned();
    for round in 0..200 {
        let next = format!("f{round}");
        add_file(
            &mut machine,
            &next,
            if round % 2 == 0 { &alias } else { &disk },
        );
        reopen(&mut machine, &next, "b1");
        machine
            .qmp
            .run("blockdev-del", json!({"node-name": current}));
        current = next;
        let writes = 10;
        if writer.lost().is_some() {
            break;
        }
        qmpfs_tests::wait::until_true("the writer goes on or has lost something", {
            let before = writer.acknowledged().0.values().max().copied().unwrap_or(0);
            let writer = &writer;
            move || {
                writer.lost().is_some()
                    || writer.acknowledged().0.values().max() >= Some(&(before + writes))
            }
        });
    }
    let lost = writer
        .lost()
        .expect("QEMU no longer loses writes here: read the decision again");
    assert!(
        lost.contains("wanted write"),
        "a wrong byte, not a broken connection: {lost}"
    );
}

#[test]
fn reopening_with_another_backing_only_loses_nothing() {
    let scratch = Scratch::new("proof-backing");
    let mut machine = disk_on_two_bases(&scratch);
    let writer = Writer::start(&machine.endpoint("vda"), 0..SIZE, Model::default(), 1);
    for round in 0..200 {
        reopen(
            &mut machine,
            "vda-file",
            if round % 2 == 0 { "b1" } else { "b2" },
        );
        writer.progress(5);
    }
    let model = writer.stop();
    machine.quit();
    let all = scratch.file("all.raw");
    oracle::convert(&scratch.file("disk.qcow2"), &all);
    model.assert_holds(&all, 0..SIZE);
    oracle::check(&scratch.file("disk.qcow2"));
}

/// Seals `disk.qcow2` the obvious way, with the overlay already under the disk's name or not yet,
/// and says what the guest then reads of a block it had written before.
fn seal_with_names(scratch: &Scratch, swap_names_first: bool) -> Option<u64> {
    let disk = scratch.file("disk.qcow2");
    let (sealed, overlay) = (
        scratch.file("disk.before.qcow2"),
        scratch.file(".disk.qcow2.0123456789ab"),
    );
    oracle::create(&disk, SIZE);
    let daemon = [Disk::qcow2("unused", &scratch.file("unused.qcow2"))];
    oracle::create(&daemon[0].image, SIZE);
    let mut machine = Machine::start(scratch, "qsd", Attachment::StorageDaemon, &daemon);
    // auto-read-only is QEMU's own default for implicit children, and what libvirt sets on its nodes
    let file =
        json!({"driver": "file", "node-name": "d-file", "filename": disk, "auto-read-only": true});
    machine.qmp.run("blockdev-add", file);
    machine.qmp.run(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "d", "file": "d-file"}),
    );
    let export = json!({"type": "nbd", "id": "d", "node-name": "d", "name": "d", "writable": true});
    machine.qmp.run("block-export-add", export);

    let mut guest = machine.nbd("d");
    let mut block = vec![0; BLOCK];
    fill(&mut block, STEP, 1);
    guest.write(STEP, &block).expect("the guest writes");
    guest.flush().expect("the guest flushes");

    oracle::create_overlay(&overlay, &disk, SIZE);
    std::fs::hard_link(&disk, &sealed).expect("the sealed layer's name");
    if swap_names_first {
        std::fs::rename(&overlay, &disk).expect("the overlay takes the disk's name");
    }
    let overlay_now = if swap_names_first { &disk } else { &overlay };
    let file = json!({"driver": "file", "node-name": "o-file", "filename": overlay_now, "auto-read-only": true});
    machine.qmp.run("blockdev-add", file);
    machine.qmp.run(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "o", "file": "o-file", "backing": Value::Null}),
    );
    machine
        .qmp
        .run("blockdev-snapshot", json!({"node": "d", "overlay": "o"}));

    guest.read(STEP, &mut block).expect("the guest reads");
    number(&block, STEP)
}

#[test]
fn a_name_that_moved_before_the_snapshot_gives_the_guest_another_file() {
    let scratch = Scratch::new("proof-name-moved");
    let read = seal_with_names(&scratch, true);
    assert_ne!(
        read,
        Some(1),
        "QEMU no longer reopens by name here: read the decision again"
    );
}

#[test]
fn names_that_hold_still_give_the_guest_its_own_bytes() {
    let scratch = Scratch::new("proof-name-held");
    assert_eq!(seal_with_names(&scratch, false), Some(1));
}

/// Decision 0012: without a flush a stream's end is a header that skips what is in no file yet.
#[test]
fn a_stream_that_has_ended_is_not_on_the_disk() {
    let scratch = Scratch::new("proof-stream");
    let (base, point, top) = (
        scratch.file("base.qcow2"),
        scratch.file("point.qcow2"),
        scratch.file("top.qcow2"),
    );
    oracle::create(&base, SIZE);
    oracle::create_overlay(&point, &base, SIZE);
    oracle::create_overlay(&top, &point, SIZE);
    qmpfs_tests::sh!(
        "qemu-io -f qcow2 -c 'write -P 7 0 4M' {} >/dev/null",
        point.display()
    );
    let expected = scratch.file("expected.raw");
    oracle::convert(&top, &expected);
    let disks = [Disk::qcow2("vda", &top)];
    let mut machine = Machine::start(&scratch, "qsd", Attachment::StorageDaemon, &disks);
    let below = machine
        .qmp
        .run("query-named-block-nodes", json!({"flat": true}));
    let below = below.as_array().and_then(|nodes| {
        let is_base = |node: &&Value| node["drv"] == "qcow2" && node["file"] == json!(base);
        nodes.iter().find(is_base)
    });
    let below = &below.expect("the base has a node")["node-name"];
    let stream = json!({"job-id": "s", "device": "vda-node", "base-node": below, "backing-file": base,
        "auto-finalize": false, "auto-dismiss": true});
    machine.qmp.run("block-stream", stream);
    machine.qmp.until_job("s", "pending");
    machine.qmp.run("job-finalize", json!({"id": "s"}));
    machine.kill9();
    assert_eq!(oracle::chain(&top), [top.clone(), base]);
    let found = scratch.file("found.raw");
    oracle::convert(&top, &found);
    assert!(
        oracle::compare(&found, &expected).is_err(),
        "QEMU flushes at the end of a stream by now: read the decision again"
    );
}
