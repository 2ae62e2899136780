//! `mkdir internal/NAME`: a snapshot inside the image, beside a writer that never stops.

use std::fs::File;

use libc::{EBUSY, EEXIST, ENOENT, ESTALE};
use qmpfs_tests::bench::{Bench, SIZE, WRITERS};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

over_attachments! {
    /// Made, read, kept through writes, an external snapshot and a restart, deleted.
    internal_points_hold_their_instants => |name, attachment| {
        let mut bench = Bench::new(name, attachment);
        bench.write(30);
        for point in ["one", "two"] {
            let before = bench.writer().acknowledged();
            bench.writer().step(&format!("mkdir internal/{point}"));
            bench.disk().internal(point).make().expect("mkdir");
            let after = bench.writer().sent();
            let expected = expected(&bench, point);
            oracle::convert_internal(&bench.active(), point, &expected);
            before.assert_between(&after, &expected, WRITERS..SIZE);
            bench.write(30);
            bench.verify();
        }
        let json = bench.disk().internal("one").json();
        assert_eq!(json["kind"], "internal");
        assert_eq!(json["virtual_size"], SIZE);
        for point in ["one", "two"] {
            oracle::assert_same(&bench.disk().internal(point).disk_raw(), &expected(&bench, point));
        }
        assert_errno(bench.disk().internal("one").make(), &[EEXIST]);

        bench.restart();
        assert_eq!(bench.disk().list("internal"), ["one", "two"]);
        let reader = File::open(bench.disk().internal("one").disk_raw()).expect("a reader");
        assert_errno(bench.disk().internal("one").delete(), &[EBUSY]);
        oracle::assert_same(&bench.disk().internal("one").disk_raw(), &expected(&bench, "one"));
        drop(reader);
        bench.disk().internal("one").delete_when_closed();
        assert_errno(bench.disk().internal("one").delete(), &[ENOENT]);
        bench.verify();
        oracle::assert_same(&bench.disk().internal("two").disk_raw(), &expected(&bench, "two"));
        bench.disk().internal("two").delete().expect("rmdir");
        assert!(!sh!("qemu-img snapshot -U -l {}", bench.active().display()).contains("two"));
        bench.finish();
    }
}

/// The kernel tells of a close after close(2) has returned: on a busy machine the rmdir was there first.
#[test]
fn who_has_closed_a_point_can_remove_it_at_once() {
    let bench = Bench::new("internal-closed", Attachment::StorageDaemon);
    for round in 0..12 {
        let point = bench.disk().internal("closed");
        point.make().expect("mkdir");
        match round % 2 {
            0 => {
                let open = || File::open(point.disk_raw()).expect("a reader");
                let readers: Vec<File> = std::iter::repeat_with(open).take(60).collect();
                drop(readers);
            }
            // by another process, which has ended
            _ => drop(sh!("cat {} | wc -c", point.disk_raw().display())),
        }
        point
            .delete()
            .unwrap_or_else(|e| panic!("round {round}: {e}\n{}", bench.mount.text("log")));
    }
    bench.finish();
}

#[test]
fn internal_and_external_points_live_side_by_side() {
    let mut bench = Bench::new("internal-external", Attachment::Blockdev);
    bench.disk().internal("inside").make().expect("mkdir");
    let expected = expected(&bench, "inside");
    oracle::convert_internal(&bench.active(), "inside", &expected);
    bench.seal("outside");
    // The image with the internal snapshot is a sealed layer now; the instant is the same.
    oracle::assert_same(&bench.disk().internal("inside").disk_raw(), &expected);
    bench.seal("later");
    oracle::assert_same(&bench.disk().internal("inside").disk_raw(), &expected);
    bench.finish();
}

/// The node of the disk, for what others do to it.
fn node(bench: &Bench) -> String {
    bench.disk().json()["node_name"]
        .as_str()
        .expect("a node")
        .to_owned()
}

#[test]
fn points_that_look_alike_are_removed_one_by_one() {
    let mut bench = Bench::new("internal-alike", Attachment::StorageDaemon);
    let node = node(&bench);
    let long = "x".repeat(200);
    let tags = [
        format!("{long}a"),
        format!("{long}b"),
        "a b".into(),
        "a/b".into(),
        "../../etc/passwd".into(),
        "new\nline".into(),
    ];
    for tag in &tags {
        bench.machine.qmp.run(
            "blockdev-snapshot-internal-sync",
            json!({"device": node, "name": tag}),
        );
    }
    // A listing may be as old as the last look at the VM, which was a moment ago.
    wait::until_true("all points are listed", || {
        bench.disk().list("internal").len() == tags.len()
    });
    let mut names: Vec<String> = bench.disk().list("internal");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), tags.len(), "{names:?}");
    // The plan of each names no other, and what goes is what its point.json is of.
    while let Some(name) = names.pop() {
        let time = bench.disk().internal(&name).json()["time"].to_string();
        let before = instants(&bench);
        bench.disk().internal(&name).delete().expect("rmdir");
        let after = instants(&bench);
        assert_eq!(before.len(), after.len() + 1);
        assert!(before.contains(&time) && !after.contains(&time), "{name}");
        names = bench.disk().list("internal");
    }
    bench.finish();
}

/// The instants of all internal snapshots as the mount tells them.
fn instants(bench: &Bench) -> Vec<String> {
    let names = bench.disk().list("internal");
    names
        .iter()
        .map(|name| bench.disk().internal(name).json()["time"].to_string())
        .collect()
}

#[test]
fn a_point_made_again_by_others_in_the_same_second_shows_its_own_bytes() {
    let mut bench = Bench::new("internal-again", Attachment::StorageDaemon);
    let node = node(&bench);
    for round in 0..5 {
        for _ in 0..2 {
            bench.write(1);
            bench.machine.qmp.run(
                "blockdev-snapshot-internal-sync",
                json!({"device": node, "name": "again"}),
            );
            let expected = expected(&bench, "again");
            oracle::convert_internal(&bench.active(), "again", &expected);
            wait::until_true("the point is listed", || {
                bench.disk().list("internal") == ["again"]
            });
            oracle::assert_same(&bench.disk().internal("again").disk_raw(), &expected);
            bench.machine.qmp.run(
                "blockdev-snapshot-delete-internal-sync",
                json!({"device": node, "name": "again"}),
            );
        }
        eprintln!("round {round}");
    }
    bench.finish();
}

#[test]
fn a_point_of_images_made_again_by_others_is_stale() {
    let scratch = Scratch::new("internal-offline");
    let image = scratch.file("web1.qcow2");
    oracle::create(&image, 1 << 20);
    let take = |byte: u8| {
        sh!(
            "qemu-io -f qcow2 -c 'write -P {byte} 0 1M' {0}; qemu-img snapshot -c one {0}",
            image.display()
        )
    };
    take(1);
    let mount = Mounted::new(&scratch, &[&image], &["-o", "ro"]);
    let view = mount.disk("web1").internal("one").disk_raw();
    assert_eq!(std::fs::read(&view).expect("the point")[4096], 1);
    sh!("qemu-img snapshot -d one {}", image.display());
    take(2);
    assert_errno(std::fs::read(&view), &[ESTALE]);
}

#[test]
fn a_point_is_open_or_gone_but_never_both() {
    let bench = Bench::new("internal-race", Attachment::StorageDaemon);
    for round in 0..100 {
        let point = bench.disk().internal(&format!("r{round}"));
        point.make().expect("mkdir");
        let path = point.disk_raw();
        path.metadata().expect("it was measured");
        let opening = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_micros(round * 50));
            File::open(path)
        });
        let deleted = point.delete();
        let opened = opening.join().expect("the reader");
        assert!(
            deleted.is_err() || opened.is_err(),
            "round {round}: removed while it was read"
        );
        drop(opened);
        if deleted.is_err() {
            point.delete_when_closed();
        }
    }
    bench.finish();
}

fn expected(bench: &Bench, point: &str) -> std::path::PathBuf {
    bench.scratch().file(&format!("internal-{point}.expected"))
}
