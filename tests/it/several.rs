//! `mkdir snapshots/NAME`: all disks at one instant, beside a writer that tells whether it was one.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use libc::{EBUSY, EEXIST, ENOENT, EOPNOTSUPP, EPERM, EROFS, ESTALE};
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::several::{RAW, SEALED, Several};
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::{assert_errno, text};
use qmpfs_tests::{oracle, sh};
use serde_json::json;

over_attachments! {
    /// Many in a row, a restart with the same command line, one more.
    many_points_show_one_instant_each => |name, attachment: Attachment| {
        let mut several = Several::new(name, attachment);
        // by other attachments a later one is as the second
        let many = if attachment == Attachment::Blockdev { 20 } else { 6 };
        for point in 1..=many {
            several.seal(&format!("p{point}"));
        }
        several.restart();
        several.seal("again");
        several.finish();
    }
}

over_attachments! {
    /// Files and links say what is in it, and what is not and why.
    a_group_says_what_it_is => |name, attachment: Attachment| {
        let mut several = Several::new(name, attachment);
        several.seal("before");
        let group = several.group("before");
        assert_eq!(names(&group.0), ["files", "point.json", "vda", "vdb"]);
        for (disk, _) in SEALED {
            let link = group.0.join(disk);
            let kind = fs::symlink_metadata(&link).expect("a link").file_type();
            assert!(kind.is_symlink() && !kind.is_char_device());
            let target = fs::read_link(&link).expect("a link");
            assert_eq!(target, Path::new(&format!("../../disks/{disk}/snapshots/before")));
            let length = fs::symlink_metadata(&link).expect("a link").len();
            assert_eq!(usize::try_from(length).ok(), Some(target.as_os_str().len()));
            let there = several.mount.disk(disk).snapshot("before").0;
            assert_eq!(fs::metadata(&link).expect("followed").ino(), fs::metadata(there).expect("a point").ino());
        }
        let json = group.json();
        assert_eq!(json["kind"], "all-disks");
        assert_eq!(json["name"], "before");
        assert_eq!(json["complete"], true);
        assert_eq!(json["disks"], json!(["vda", "vdb"]));
        assert_eq!(json["consistency"], "crash");
        let raw = |json: &serde_json::Value| {
            let missing = json["missing"].as_array().expect("a list");
            missing.iter().any(|it| it.as_str().is_some_and(|it| it.starts_with("disk vdc: ") && it.contains("raw")))
        };
        assert!(raw(&json), "{json:#}");
        for disk in [0, 1] {
            let member = several.point(disk, "before").json();
            assert!(raw(&member), "{member:#}");
            assert_eq!(member["time"], json["time"], "one instant");
            assert_eq!(member["same_instant"], json!(["vda", "vdb"]));
        }
        several.finish();
    }
}

#[test]
fn the_guest_stands_still_once_and_only_the_first_time() {
    let mut several = Several::new("several-still", Attachment::Blockdev);
    let steps = Steps::new(several.scratch());
    let proxy = Proxy::new(several.scratch(), several.machine.qmpfs_socket(), &steps);
    several.mount.mount_through(proxy.socket());
    several.wait_for_disks();
    let count = |commands: &[String], name: &str| commands.iter().filter(|c| *c == name).count();
    for (name, stops) in [("one", 1), ("two", 0)] {
        steps.arm(COMMANDS, 0, Deed::Pass, [0, 0]);
        several.seal(name);
        let (_, commands) = steps.disarm();
        assert_eq!(count(&commands, "transaction"), 1, "{commands:?}");
        assert_eq!(count(&commands, "stop"), stops, "{commands:?}");
        assert_eq!(count(&commands, "cont"), stops, "{commands:?}");
    }
    assert_runs(&mut several);
    several.finish();
}

#[test]
fn a_paused_vm_stays_paused() {
    let mut several = Several::new("several-paused", Attachment::Blockdev);
    several.machine.qmp.run("stop", json!({}));
    several.seal("one");
    let status = several.machine.qmp.run("query-status", json!({}));
    assert_eq!(status["running"], false);
    several.machine.qmp.run("cont", json!({}));
    several.finish();
}

#[test]
fn some_disks_sealed_before_and_some_not() {
    let mut several = Several::new("several-mixed", Attachment::Blockdev);
    several.point(1, "alone").make().expect("mkdir");
    several.group("both").make().expect("mkdir");
    several.adopt("both");
    several.point(1, "alone").delete().expect("rmdir");
    several.mount.wait_idle();
    several.verify();
    several.restart();
    several.finish();
}

#[test]
fn a_vm_of_raw_disks_is_told_why() {
    let scratch = Scratch::new("several-raw");
    let dir = scratch.dir("images");
    let image = dir.join("web1.raw");
    sh!("truncate -s 16M {}", image.display());
    let disks = [Disk::raw("vda", &image)];
    let machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    assert_errno(fs::create_dir(mount.snapshots("x")), &[EOPNOTSUPP]);
    let log = mount.text("log");
    assert!(log.contains("vda: ") && log.contains("raw"), "{log}");
    assert_eq!(names(&dir), ["web1.raw"]);
    assert!(names(&mount.path().join("snapshots")).is_empty());
}

#[test]
fn names_are_taken_on_every_disk() {
    let mut several = Several::new("several-names", Attachment::StorageDaemon);
    several.point(1, "single").make().expect("mkdir");
    assert_errno(several.group("single").make(), &[EEXIST]);
    let log = several.mount.text("log");
    assert!(log.contains("'single' is taken on disk 'vdb'"), "{log}");
    assert!(!several.point(0, "single").exists());
    several.group("all").make().expect("mkdir");
    assert_errno(several.group("all").make(), &[EEXIST]);
    assert_errno(several.point(0, "all").make(), &[EEXIST]);
    assert_errno(
        several.mount.disk(RAW).snapshot("all").make(),
        &[EOPNOTSUPP],
    );
    several.point(1, "single").delete().expect("rmdir");
    several.mount.wait_idle();
    several.adopt("all");
    several.finish();
}

over_attachments! {
    /// rmdir of a group merges every member away; the others stay as they are.
    rmdir_removes_all_its_points => |name, attachment| {
        let mut several = Several::new(name, attachment);
        for point in ["a", "b", "c"] {
            several.seal(point);
        }
        for point in ["b", "c", "a"] {
            several.group(point).delete().unwrap_or_else(|e| panic!("rmdir {point}: {e}\n{}", several.mount.text("log")));
            assert!(!several.group(point).0.exists(), "the name goes at once");
            assert_eq!(several.mount.wait_idle(), "done\n");
            several.forget(point);
            several.verify();
            for disk in [0, 1] {
                assert!(!several.sealed(disk, point).exists(), "its file is gone");
            }
        }
        several.seal("d");
        several.restart();
        several.finish();
    }
}

/// The kernel remembers directories: what goes by another name than the one it knows is gone from its memory as well.
#[test]
fn a_member_is_gone_with_its_group_for_who_has_just_been_there() {
    let mut several = Several::new("several-gone", Attachment::Blockdev);
    for _ in 0..5 {
        several.seal("x");
        let member = several.point(0, "x");
        let json = member.0.join("point.json");
        json.metadata().expect("it is there");
        let inside = fs::File::open(&member.0).expect("a directory");
        several.group("x").delete().expect("rmdir");
        let gone = [
            member.0.metadata(),
            json.metadata(),
            member.disk_raw().metadata(),
        ];
        for looked in gone {
            assert_errno(looked.map(drop), &[ENOENT]);
        }
        assert_errno(fs::read_dir(&member.0).map(drop), &[ENOENT]);
        assert_errno(inside.metadata().map(drop), &[ESTALE]);
        several.mount.wait_idle();
        member.make().expect("the name is free at once");
        member.delete().expect("rmdir");
        several.mount.wait_idle();
        several.forget("x");
    }
    several.verify();
    several.finish();
}

#[test]
fn an_open_view_of_one_member_refuses_all() {
    let mut several = Several::new("several-open", Attachment::StorageDaemon);
    several.seal("held");
    let view = fs::File::open(several.group("held").0.join("vdb/disk.raw")).expect("a view");
    assert_errno(several.group("held").delete(), &[EBUSY]);
    let log = several.mount.text("log");
    assert!(log.contains("disk 'vdb': 'held' is open: pid"), "{log}");
    for (disk, _) in SEALED {
        assert!(several.mount.disk(disk).list("jobs").is_empty());
    }
    several.verify();
    drop(view);
    several.group("held").delete_when_closed();
    several.mount.wait_idle();
    several.forget("held");
    several.finish();
}

#[test]
fn a_member_that_was_removed_alone_is_missed() {
    let mut several = Several::new("several-alone", Attachment::StorageDaemon);
    several.seal("kept");
    several.seal("cut");
    several
        .point(1, "cut")
        .delete()
        .expect("rmdir of one member");
    several.mount.wait_idle();
    let group = several.group("cut");
    assert_eq!(names(&group.0), ["point.json", "vda"]);
    let json = group.json();
    assert_eq!(json["complete"], false);
    assert_eq!(json["gone"], json!(["vdb"]));
    assert!(text(&several.point(0, "cut").0.join("point.json")).contains("disk vdb: "));
    // its name is free again on the one disk, and not for all
    several.point(1, "cut").make().expect("mkdir on one disk");
    assert_eq!(names(&group.0), ["point.json", "vda"], "another instant");
    several.point(1, "cut").delete().expect("rmdir");
    several.mount.wait_idle();
    group.delete().expect("rmdir of the rest");
    several.mount.wait_idle();
    assert_errno(group.delete(), &[ENOENT]);
    several.forget("cut");
    several.finish();
}

#[test]
fn mounts_that_may_not_do_not() {
    let mut several = Several::with_options(
        "several-no-delete",
        Attachment::StorageDaemon,
        &["-o", "no_delete"],
    );
    several.seal("stays");
    assert_errno(several.group("stays").delete(), &[EPERM]);
    several.verify();
    several.mount.unmount();
    let read_only = Mounted::new(
        several.scratch(),
        &[several.machine.qmpfs_socket()],
        &["-o", "ro"],
    );
    assert_errno(fs::create_dir(read_only.snapshots("x")), &[EROFS]);
    assert_errno(fs::remove_dir(read_only.snapshots("stays")), &[EROFS]);
    assert_eq!(
        names(&read_only.snapshots("stays")),
        ["files", "point.json", "vda", "vdb"]
    );
}

#[test]
fn tools_let_loose_on_a_group_destroy_nothing() {
    let mut several = Several::new("several-tools", Attachment::StorageDaemon);
    several.seal("before");
    let (group, out) = (several.group("before").0, several.scratch().dir("out"));
    let (group, out) = (group.display(), out.display());
    let listed = sh!("ls -l {group}");
    assert!(
        listed.contains("vda -> ../../disks/vda/snapshots/before"),
        "{listed}"
    );
    assert_eq!(sh!("find {group} -type l | wc -l"), "2");
    sh!(
        "cp -r {group} {out}/cp; rsync -a {group}/ {out}/rsync/; tar -C {group} -cf {out}/all.tar ."
    );
    for copy in ["cp", "rsync"] {
        assert_eq!(
            sh!("readlink {out}/{copy}/vdb"),
            "../../disks/vdb/snapshots/before"
        );
        sh!("cmp {group}/point.json {out}/{copy}/point.json");
    }
    sh!("cp -rL {group} {out}/followed; cmp {out}/followed/vda/disk.raw {group}/vda/disk.raw");
    for line in [
        format!("rm -rf {group}"),
        format!("find {group} -delete"),
        format!("rm {group}/vda"),
        format!(
            "rsync -a --delete {}/ {group}/",
            several.scratch().dir("empty").display()
        ),
        format!("mv {group} {group}2"),
        format!("ln -s x {group}/new"),
        format!("touch {group}/new"),
        format!("rmdir {group}/vda"),
    ] {
        assert!(!sh::attempt(&line).status.success(), "{line} did something");
        several.verify();
    }
    several.finish();
}

#[test]
fn many_callers_at_once_make_each_name_once() {
    let mut several = Several::new("several-callers", Attachment::StorageDaemon);
    let wanted = [
        several.group("all"),
        several.group("all"),
        several.point(0, "one"),
        several.point(1, "one"),
        several.group("more"),
        several.point(0, "all"),
    ];
    let barrier = Barrier::new(wanted.len());
    let made: Vec<_> = thread::scope(|scope| {
        let tries = wanted.each_ref().map(|point| {
            scope.spawn(|| {
                barrier.wait();
                point.make()
            })
        });
        tries
            .map(|t| t.join().expect("no panic"))
            .into_iter()
            .collect()
    });
    for failed in made.iter().filter_map(|made| made.as_ref().err()) {
        let known = [EEXIST, EBUSY].map(Some);
        assert!(known.contains(&failed.raw_os_error()), "{failed}");
    }
    for index in [2, 3, 4] {
        assert!(
            made[index].is_ok(),
            "{made:?}\n{}",
            several.mount.text("log")
        );
    }
    let all = [0, 1, 5]
        .into_iter()
        .filter(|index| made[*index].is_ok())
        .count();
    assert_eq!(all, 1, "{made:?}");
    for disk in [0, 1] {
        several.point(disk, "one").delete().expect("rmdir");
        several.mount.wait_idle();
    }
    if made[5].is_ok() {
        several.point(0, "all").delete().expect("rmdir");
        several.mount.wait_idle();
    } else {
        several.adopt("all");
    }
    several.adopt("more");
    several.finish();
}

#[test]
fn switched_off_disks_are_sealed_together() {
    let scratch = Scratch::new("several-embedded");
    let dir = scratch.dir("images");
    let images = ["a.qcow2", "b.qcow2"].map(|name| dir.join(name));
    for (byte, image) in (1..).zip(&images) {
        oracle::create(image, 4 << 20);
        sh!(
            "qemu-io -f qcow2 -c 'write -P {byte} 0 1M' {} >/dev/null",
            image.display()
        );
    }
    let sources = [images[0].as_path(), images[1].as_path()];
    let mut mount = Mounted::new(&scratch, &sources, &[]);
    fs::create_dir(mount.snapshots("off")).expect("mkdir");
    assert_eq!(
        names(&mount.snapshots("off")),
        ["a", "b", "files", "point.json"]
    );
    mount.unmount();
    let read_only = Mounted::new(&scratch, &sources, &["-o", "ro"]);
    for (byte, disk) in (1u8..).zip(["a", "b"]) {
        let bytes = fs::read(read_only.snapshots("off").join(disk).join("disk.raw"));
        assert_eq!(bytes.expect("the point")[4096], byte);
    }
    assert_eq!(read_only.json("snapshots/off/point.json")["complete"], true);
    drop(read_only);
    // one disk alone is one that misses the other
    let alone = Mounted::new(&scratch, &sources[..1], &["-o", "ro"]);
    assert_eq!(alone.json("snapshots/off/point.json")["gone"], json!(["b"]));
    drop(alone);
    let mut mount = Mounted::new(&scratch, &sources, &[]);
    fs::remove_dir(mount.snapshots("off")).expect("rmdir");
    assert_eq!(mount.wait_idle(), "done\n");
    mount.unmount();
    assert_eq!(names(&dir), ["a.qcow2", "b.qcow2"]);
}

#[track_caller]
pub(crate) fn assert_runs(several: &mut Several) {
    let status = several.machine.qmp.run("query-status", json!({}));
    assert_eq!(status["running"], true, "the VM runs");
}
