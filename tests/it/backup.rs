//! `mkdir disks/D/backups/KIND/NAME`: copies of the running disk as of one instant, beside a writer that never stops.

use std::fs;
use std::path::PathBuf;

use libc::{EBUSY, EEXIST, ENOSPC, EPERM};
use qmpfs_tests::bench::{Bench, Shelf};
use qmpfs_tests::faults::{SmallFilesystem, names};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{assert_errno, text, write_line};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

mod all;
mod doubt;
mod fleecing;
mod following;
mod long_chain;
mod mirror;
mod top;

/// Holds a job up, so that a test meets it at work.
const SLOW: &[&str] = &["-o", "speed=512k"];

/// Why an incremental backup holds the whole disk.
fn why_full(point: &Value) -> &str {
    assert_eq!(point["copied"], "full", "{point}");
    assert_eq!(point["previous"], Value::Null, "{point}");
    point["why_full"].as_str().expect("a reason")
}

/// An incremental backup holds what was written since the one before.
fn assert_stands_on(point: &Value, previous: &str) {
    assert_eq!(point["copied"], "changes", "{point}");
    assert_eq!(point["previous"], previous, "{point}");
    assert_eq!(point["why_full"], Value::Null, "{point}");
}

over_attachments! {
    /// A chain over restarts in peace and a kill -9, read from a copy of the directory.
    a_chain_holds_every_instant => |name, attachment| {
        let mut shelf = Shelf::new(name, attachment);
        let first = shelf.keep("full", "one");
        assert_eq!((&first["copied"], &first["why_full"]), (&json!("full"), &Value::Null));
        shelf.bench.write(20);
        assert_stands_on(&shelf.keep("incremental", "two"), "one");
        // in peace: the bitmap is in the image
        shelf.bench.restart();
        shelf.bench.write(20);
        assert_stands_on(&shelf.keep("incremental", "three"), "two");
        shelf.bench.flush();
        shelf.bench.writer().expect_the_end();
        shelf.bench.boot_after_a_fall(None);
        shelf.bench.wait_for_disk();
        let fourth = shelf.keep("incremental", "four");
        // one that was made since QEMU's start was never stored
        assert!(why_full(&fourth).contains("no dirty bitmap"), "{fourth}");
        assert_stands_on(&shelf.keep("incremental", "five"), "four");
        shelf.bench.restart();
        shelf.bench.flush();
        shelf.bench.writer().expect_the_end();
        shelf.bench.boot_after_a_fall(None);
        shelf.bench.wait_for_disk();
        // one that was stored at the end before is there, and says that it missed this one
        let sixth = shelf.keep("incremental", "six");
        assert!(why_full(&sixth).contains("was not stored"), "{sixth}");
        assert_stands_on(&shelf.keep("incremental", "seven"), "six");
        assert_eq!(shelf.bench.disk().list("bitmaps").len(), 1, "older ones go");
        shelf.read_from_a_copy();
        shelf.bench.finish();
    }
}

/// A backup that is made in slow motion.
#[track_caller]
fn begin(shelf: &Shelf, kind: &str, name: &str) {
    let point = shelf.backup(kind, name);
    point
        .make()
        .unwrap_or_else(|e| panic!("mkdir: {e}\n{}", shelf.bench.mount.text("log")));
    assert_eq!(shelf.bench.disk().list("jobs").len(), 1);
}

/// Nothing is left of a backup: no file, no bitmap, no job.
#[track_caller]
fn assert_nothing_left(shelf: &Shelf) {
    assert_eq!(shelf.names(), Vec::<String>::new());
    wait::until_true("no bitmap is left", || {
        shelf.bench.disk().list("bitmaps").is_empty()
    });
    assert_eq!(shelf.bench.disk().list("jobs"), Vec::<String>::new());
}

over_attachments! {
    /// A running one has the files of its job, refuses what would disturb it, and goes with rmdir, as with its job.
    one_that_is_taken_back_leaves_nothing => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        begin(&shelf, "full", "one");
        let point = shelf.backup("full", "one");
        assert_eq!(
            names(&point.0),
            ["error", "plan", "point.json", "progress", "state", "wait"]
        );
        wait::until_true("it runs", || text(&point.0.join("state")) == "running\n");
        assert!(text(&point.0.join("progress")).contains("\"backup\""));
        assert_errno(shelf.backup("incremental", "one").make(), &[EEXIST]);
        assert_errno(shelf.backup("full", "two").make(), &[EBUSY]);
        assert_errno(shelf.bench.point("sealed").make(), &[EBUSY]);
        point.delete().expect("rmdir of a running one");
        assert!(!point.exists(), "the name goes at once");
        shelf.bench.disk().wait().expect("taken back is not failed");
        assert_nothing_left(&shelf);

        begin(&shelf, "full", "one");
        fs::remove_dir(shelf.bench.disk().only_job()).expect("rmdir jobs/ID");
        shelf.bench.disk().wait().expect("cancelled is not failed");
        assert!(!point.exists());
        assert_nothing_left(&shelf);
        shelf.bench.verify();
        shelf.keep_while("full", "one", |shelf| {
            write_line(&shelf.bench.disk().only_job().join("ctl"), b"speed 0").expect("speed");
        });
        shelf.bench.finish();
    }
}

over_attachments! {
    /// qmpfs dies while QEMU copies: the next mount takes the job up, and the backup is right.
    qmpfs_killed_while_it_is_made => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        shelf.keep_while("full", "one", |shelf| {
            shelf.bench.mount.kill9();
            assert!(!shelf.file("one").exists(), "no half-made file has a final name");
            shelf.bench.mount.mount_again();
            shelf.bench.wait_for_disk();
            shelf.bench.machine.limit_jobs(0);
        });
        // and while nobody looked it ended
        let next = shelf.keep_while("incremental", "two", |shelf| {
            shelf.bench.mount.kill9();
            shelf.bench.machine.limit_jobs(0);
            shelf.bench.mount.mount_again();
            shelf.bench.wait_for_disk();
        });
        assert_stands_on(&next, "one");
        shelf.read_from_a_copy();
        shelf.bench.finish();
    }
}

over_attachments! {
    /// QEMU dies while it copies: nothing half-made is left, and the next one is a whole one.
    qemu_killed_while_it_copies => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        begin(&shelf, "full", "one");
        shelf.bench.flush();
        shelf.bench.writer().expect_the_end();
        shelf.bench.boot_after_a_fall(None);
        shelf.bench.wait_for_disk();
        wait::until_true("nothing half-made is left", || names(&shelf.place()).is_empty());
        let next = shelf.keep_while("incremental", "two", |shelf| {
            shelf.bench.machine.limit_jobs(0);
        });
        assert!(why_full(&next).contains("no backup before it"), "{next}");
        shelf.bench.finish();
    }
}

#[test]
fn a_filesystem_that_is_too_small_is_told_and_one_that_fills_up_harms_nobody() {
    let scratch = Scratch::new("backup-full");
    let Some(small) = SmallFilesystem::new(&scratch, 28) else {
        return;
    };
    let dir = small.path().join("backups");
    fs::create_dir(&dir).expect("a directory");
    let mut shelf = Shelf::at(scratch, dir, Attachment::Blockdev, SLOW);
    small.fill_but(2 << 20);
    assert_errno(shelf.backup("full", "one").make(), &[ENOSPC]);
    assert!(shelf.bench.mount.text("log").contains("are free"));
    assert_nothing_left(&shelf);
    shelf.bench.verify();
    small.make_room();
    shelf.keep_while("full", "one", |shelf| {
        // what it needs is its own already: neither it nor the guest meets a full filesystem
        small.fill_but(0);
        shelf.bench.write(200);
        shelf.bench.machine.limit_jobs(0);
    });
    let taken = oracle::allocated(&shelf.file("one"));
    let length = shelf.file("one").metadata().expect("its file").len();
    assert!(taken <= length + (1 << 20), "{taken} bytes for {length}");
    shelf.bench.finish();
}

#[test]
fn in_doubt_the_whole_disk_is_copied() {
    let mut shelf = Shelf::new("backup-doubt", Attachment::StorageDaemon);
    assert!(why_full(&shelf.keep("incremental", "a")).contains("no backup before it"));
    assert_stands_on(&shelf.keep("incremental", "b"), "a");
    // its bitmap is removed, by hand
    let bitmaps = shelf.bench.disk().0.join("bitmaps");
    let bitmap = names(&bitmaps).pop().expect("one");
    sh!("rm {}", bitmaps.join(&bitmap).display());
    assert_eq!(names(&bitmaps), Vec::<String>::new());
    assert!(why_full(&shelf.keep("incremental", "c")).contains("no dirty bitmap"));
    // somebody has had his hands on the file it would stand on
    sh!("touch {}", shelf.file("c").display());
    assert!(why_full(&shelf.keep("incremental", "d")).contains("not as it was"));
    // or on the bitmap
    let bitmap = names(&bitmaps).pop().expect("one");
    let node = shelf.bench.disk().json()["node_name"].clone();
    let arguments = json!({"node": node, "name": bitmap});
    shelf
        .bench
        .machine
        .qmp
        .run("block-dirty-bitmap-disable", arguments);
    assert!(why_full(&shelf.keep("incremental", "e")).contains("disabled"));
    assert_stands_on(&shelf.keep("incremental", "f"), "e");
    // a file that is gone takes those that stand on it along
    fs::rename(shelf.file("e"), shelf.place().join("elsewhere")).expect("a move by hand");
    let broken = shelf.backup("incremental", "f");
    wait::until_true("it is seen", || {
        let listed = shelf.bench.disk().list("backups/incremental");
        listed.contains(&"f".to_owned()) && broken.json()["error"].is_string()
    });
    assert!(
        !broken.disk_raw().exists(),
        "what cannot be read is not there"
    );
    fs::rename(shelf.place().join("elsewhere"), shelf.file("e")).expect("and back");
    wait::until_true("it is back", || {
        let listed = shelf.bench.disk().list("backups/incremental");
        listed.contains(&"f".to_owned()) && broken.disk_raw().exists()
    });
    shelf.verify();
    shelf.bench.finish();
}

#[test]
fn recursive_deletes_leave_backups_and_bitmaps() {
    let mut shelf = Shelf::new("backup-sweep", Attachment::StorageDaemon);
    shelf.keep("full", "one");
    let disk = shelf.bench.disk().0;
    for sweep in ["rm -rf", "find -delete"] {
        let command = match sweep {
            "rm -rf" => format!("rm -rf {}", disk.display()),
            _ => format!("find {} -delete", disk.display()),
        };
        let output = sh::attempt(&command);
        assert!(!output.status.success(), "{sweep}");
        assert_eq!(names(&disk.join("bitmaps")).len(), 1, "{sweep}");
        shelf.verify();
    }
    shelf.bench.finish();
}

#[test]
fn one_does_not_go_under_a_reader_and_the_last_takes_its_bitmap_along() {
    let mut shelf = Shelf::new("backup-rmdir", Attachment::StorageDaemon);
    shelf.keep("full", "one");
    shelf.keep("incremental", "two");
    assert!(text(&shelf.backup("full", "one").0.join("plan")).contains("two"));
    let reader = fs::File::open(shelf.backup("incremental", "two").disk_raw()).expect("a reader");
    assert_errno(shelf.backup("incremental", "two").delete(), &[EBUSY]);
    drop(reader);
    shelf.backup("incremental", "two").delete_when_closed();
    shelf.forget("two");
    shelf.verify();
    assert!(why_full(&shelf.keep("incremental", "three")).contains("no dirty bitmap"));
    shelf.backup("full", "one").delete_when_closed();
    shelf.forget("one");
    shelf.verify();
    shelf.bench.finish();
}

#[test]
fn without_a_directory_no_backup_is_made() {
    let bench = Bench::new("backup-nowhere", Attachment::StorageDaemon);
    assert_errno(bench.disk().backup("full", "one").make(), &[EPERM]);
    assert!(bench.mount.text("log").contains("--backup-dir"));
    let scratch = Scratch::new("backup-missing");
    let nowhere = scratch.file("nowhere").display().to_string();
    let socket = bench.machine.qmpfs_socket();
    let (code, said) = Mounted::refused(&scratch, &[socket], &["--backup-dir", &nowhere]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is not there"), "{said}");
    bench.finish();
}

#[test]
fn a_merge_waits_behind_a_backup() {
    let mut shelf = Shelf::with_options("backup-queue", Attachment::Blockdev, SLOW);
    shelf.bench.seal("one");
    shelf.keep_while("full", "full", |shelf| {
        shelf.bench.begin_removal("one");
        let jobs = shelf.bench.disk().list("jobs");
        assert_eq!(jobs.len(), 2, "{jobs:?}");
        shelf.bench.machine.limit_jobs(0);
    });
    assert!(!shelf.bench.sealed("one").exists(), "and then it was done");
    shelf.bench.finish();
}

#[test]
fn compressed_files_are_smaller() {
    let options = ["-o", "compress,max-workers=4,speed=1G"];
    let mut shelf = Shelf::with_options("backup-compress", Attachment::Blockdev, &options);
    shelf.keep("full", "one");
    shelf.bench.write(30);
    assert_stands_on(&shelf.keep("incremental", "two"), "one");
    shelf.read_from_a_copy();
    let map = sh!("qemu-img map --output=json {}", shelf.file("one").display());
    assert!(map.contains("\"compressed\": true"), "{map}");
    shelf.bench.finish();
}

/// While the digest of the last one is written down, too.
#[test]
fn one_backup_right_after_another() {
    let shelf = Shelf::new("backup-at-once", Attachment::StorageDaemon);
    let disk = shelf.bench.mount.disk("vda");
    for number in 0..8 {
        let point = disk.backup("incremental", &format!("b{number}"));
        point.make().expect("nothing is in its way");
        disk.wait().expect("a backup");
    }
    shelf.bench.finish();
}

#[test]
fn a_raw_disk_has_a_bitmap_as_long_as_qemu_runs() {
    let scratch = Scratch::new("backup-raw");
    let image = scratch.file("data.raw");
    sh!("head -c 8M /dev/urandom > {}", image.display());
    let disk = Disk::raw("vda", &image);
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &[disk]);
    let dir = scratch.dir("backups");
    let options = [
        "--backup-dir",
        &dir.display().to_string(),
        "-o",
        "name=web1",
    ];
    let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &options);
    let expected = scratch.file("expected.raw");
    let make = |mount: &Mounted, name: &str| -> Value {
        sh!("cp {} {}", image.display(), expected.display());
        let point = mount.disk("vda").backup("incremental", name);
        point
            .make()
            .unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", mount.text("log")));
        mount.disk("vda").wait().expect("a backup");
        oracle::assert_same(&point.disk_raw(), &expected);
        point.json()
    };
    let write = |machine: &Machine, offset: u64| {
        let mut hands = machine.nbd("vda");
        hands.write(offset, &[7; 4096]).expect("a write");
        hands.flush().expect("a flush");
    };
    assert!(why_full(&make(&mount, "a")).contains("no backup before it"));
    write(&machine, 1 << 20);
    assert_stands_on(&make(&mount, "b"), "a");
    machine.quit();
    let is_up = || mount.json("vm.json")["connection"] == "up";
    wait::until_true("it is seen to be gone", || !is_up());
    machine.start_again();
    wait::until_true("it is back", is_up);
    write(&machine, 2 << 20);
    assert!(why_full(&make(&mount, "c")).contains("no dirty bitmap"));
    let files: PathBuf = dir.join("web1").join("vda");
    let names = names(&files);
    assert_eq!(names.iter().filter(|n| !n.starts_with('.')).count(), 6);
    mount.unmount();
}
