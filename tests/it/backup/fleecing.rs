//! `-o fleecing`: what the guest writes over waits in a scratch file, so the guest never waits for the backup directory.

use std::fs;
use std::path::{Path, PathBuf};

use libc::ENOSPC;
use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::{SmallFilesystem, names};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{assert_errno, text};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

use super::{assert_nothing_left, assert_stands_on, begin, why_full};

const FLEECING: &[&str] = &["-o", "fleecing"];
/// And held up, so that a test meets it at work.
const SLOW: &[&str] = &["-o", "fleecing,speed=512k"];

/// The scratch files that are there.
fn scratches(shelf: &Shelf) -> Vec<String> {
    let mut found = names(shelf.bench.dir());
    found.retain(|name| name.starts_with(".qmpfs-"));
    found
}

/// The nodes that QEMU has for it.
fn nodes(shelf: &mut Shelf) -> Vec<String> {
    let qmp = &mut shelf.bench.machine.qmp;
    let nodes = qmp.run("query-named-block-nodes", json!({"flat": true}));
    let names = nodes.as_array().into_iter().flatten();
    let names = names.filter_map(|node| node["node-name"].as_str());
    let ours = names.filter(|name| name.starts_with("qmpfs-fleece"));
    ours.map(str::to_owned).collect()
}

#[track_caller]
fn assert_gone(shelf: &mut Shelf) {
    assert_eq!(scratches(shelf), Vec::<String>::new());
    assert_eq!(nodes(shelf), Vec::<String>::new());
}

over_attachments! {
    /// Beside the writer, over a kill of qmpfs and a restart of QEMU: each is its instant.
    a_chain_holds_every_instant => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        let first = shelf.keep_while("full", "one", |shelf| {
            assert_eq!(scratches(shelf).len(), 1);
            shelf.bench.write(100);
            shelf.bench.machine.limit_jobs(0);
        });
        assert_eq!((&first["copied"], &first["why_full"]), (&json!("full"), &Value::Null));
        assert_gone(&mut shelf);
        shelf.bench.write(20);
        let second = shelf.keep_while("incremental", "two", |shelf| {
            shelf.bench.write(100);
            shelf.bench.mount.kill9();
            shelf.bench.write(20);
            shelf.bench.mount.mount_again();
            shelf.bench.wait_for_disk();
            shelf.bench.machine.limit_jobs(0);
        });
        assert_stands_on(&second, "one");
        assert_gone(&mut shelf);
        shelf.bench.seal("sealed");
        shelf.bench.restart();
        shelf.bench.write(20);
        let third = shelf.keep_while("incremental", "three", |shelf| {
            shelf.bench.mount.kill9();
            shelf.bench.machine.limit_jobs(0);
            shelf.bench.write(50);
            shelf.bench.mount.mount_again();
            shelf.bench.wait_for_disk();
        });
        assert_stands_on(&third, "two");
        // of the top layer it is made as without
        shelf.bench.machine.limit_jobs(0);
        shelf.keep_while("top", "four", |shelf| {
            assert_eq!(scratches(shelf), Vec::<String>::new());
            wait::until_true("it is made", || {
                shelf.bench.machine.limit_jobs(0);
                shelf.bench.disk().list("jobs").is_empty()
            });
        });
        shelf.read_from_a_copy();
        assert_gone(&mut shelf);
        shelf.bench.finish();
    }
}

over_attachments! {
    /// Cancelled, or QEMU dies: of the scratch file as well nothing is left.
    one_that_comes_to_nothing_leaves_nothing => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        begin(&shelf, "full", "one");
        shelf.bench.write(50);
        shelf.backup("full", "one").delete().expect("rmdir of a running one");
        shelf.bench.disk().wait().expect("taken back is not failed");
        assert_nothing_left(&shelf);
        assert_gone(&mut shelf);

        begin(&shelf, "full", "one");
        shelf.bench.flush();
        shelf.bench.writer().expect_the_end();
        shelf.bench.boot_after_a_fall(None);
        shelf.bench.wait_for_disk();
        wait::until_true("nothing is left", || scratches(&shelf).is_empty() && names(&shelf.place()).is_empty());
        assert_gone(&mut shelf);
        shelf.bench.verify();
        shelf.bench.finish();
    }
}

/// A filesystem on which no write comes to its end.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: &Path) -> Self {
        sh!("fsfreeze -f {}", at.display());
        Self(at.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        sh::attempt(&format!("fsfreeze -u {}", self.0.display()));
    }
}

/// The backup directory is as slow as can be.
#[test]
fn the_guest_does_not_wait_for_a_backup_directory_that_hangs() {
    let scratch = Scratch::new("backup-fleecing-hangs");
    let Some(small) = SmallFilesystem::new(&scratch, 256) else {
        return;
    };
    let dir = small.path().join("backups");
    fs::create_dir(&dir).expect("a directory");
    let mut shelf = Shelf::at(scratch, dir, Attachment::Blockdev, SLOW);
    shelf.bench.write(100);
    for (kind, name) in [("full", "one"), ("incremental", "two")] {
        shelf.bench.write(30);
        shelf.keep_while(kind, name, |shelf| {
            let frozen = Frozen::new(small.path());
            shelf.bench.machine.limit_jobs(0);
            // each of its blocks, most of which are not copied yet
            shelf.bench.writer().progress(500);
            shelf.bench.write(200);
            assert_eq!(text(&shelf.backup(kind, name).0.join("state")), "running\n");
            drop(frozen);
        });
        assert_gone(&mut shelf);
    }
    shelf.read_from_a_copy();
    shelf.bench.finish();
}

#[test]
fn a_scratch_file_that_cannot_be_is_told_before_the_instant() {
    let options = ["-o", "fleecing,scratch_limit=8M"];
    let mut shelf = Shelf::with_options("backup-fleecing-limit", Attachment::Drive, &options);
    assert_errno(shelf.backup("full", "one").make(), &[ENOSPC]);
    let log = shelf.bench.mount.text("log");
    assert!(log.contains("scratch_limit allows 8"), "{log}");
    assert_nothing_left(&shelf);
    assert_gone(&mut shelf);
    shelf.bench.verify();
    shelf.bench.finish();
}

/// The job that saves.
fn saving(shelf: &mut Shelf) -> String {
    let qmp = &mut shelf.bench.machine.qmp;
    let jobs = qmp.run("query-jobs", json!({}));
    let ids = jobs.as_array().into_iter().flatten();
    let mut ids = ids.filter_map(|job| job["id"].as_str());
    let saving = ids.find(|id| id.starts_with("qmpfs-fleece"));
    saving.expect("its job").to_owned()
}

/// Somebody ends what saves: the backup has failed, and the guest has not noticed.
#[test]
fn who_ends_the_saving_ends_the_backup() {
    let mut shelf = Shelf::with_options("backup-fleecing-ended", Attachment::Blockdev, SLOW);
    begin(&shelf, "full", "one");
    let saving = saving(&mut shelf);
    let qmp = &mut shelf.bench.machine.qmp;
    qmp.run("job-cancel", json!({"id": saving}));
    shelf.bench.machine.limit_jobs(0);
    let told = shelf.bench.disk().wait();
    assert!(told.is_err(), "{told:?}");
    let log = shelf.bench.mount.text("log");
    assert!(log.contains("has ended: somebody cancelled it"), "{log}");
    shelf.bench.write(50);
    let failed = shelf.backup("full", "one");
    assert!(!shelf.file("one").exists());
    failed.delete().expect("rmdir of one that has failed");
    assert_nothing_left(&shelf);
    assert_gone(&mut shelf);
    shelf.bench.verify();
    let next = shelf.keep_while("incremental", "two", |shelf| {
        shelf.bench.machine.limit_jobs(0);
    });
    assert!(why_full(&next).contains("no backup before it"), "{next}");
    shelf.bench.finish();
}

/// The other job's filter is below ours: what is read when ours is gone would be of another instant.
#[test]
fn an_instant_that_was_lost_below_another_job_is_no_backup() {
    let mut shelf = Shelf::with_options("backup-fleecing-lost", Attachment::StorageDaemon, SLOW);
    begin(&shelf, "full", "one");
    let node = shelf.bench.disk().json()["node_name"].clone();
    let qmp = &mut shelf.bench.machine.qmp;
    let size = qmpfs_tests::bench::SIZE;
    let sink = json!({"driver": "null-co", "node-name": "sink", "size": size, "read-zeroes": true});
    qmp.run("blockdev-add", sink);
    let other = json!({"job-id": "other", "device": node, "target": "sink", "sync": "none"});
    qmp.run("blockdev-backup", other);
    let saving = saving(&mut shelf);
    let qmp = &mut shelf.bench.machine.qmp;
    qmp.run("job-cancel", json!({"id": saving}));
    shelf.bench.write(20);
    let jobs = shelf.bench.disk().list("jobs");
    let id = jobs.iter().find(|id| id.starts_with("qmpfs-backup"));
    let speed = json!({"device": id.expect("its job"), "speed": 0});
    // it may have ended already
    let _ = shelf
        .bench
        .machine
        .qmp
        .execute("block-job-set-speed", speed);
    wait::until_true("it has failed", || {
        let log = shelf.bench.mount.text("log");
        log.contains("has ended: somebody cancelled it")
    });
    let qmp = &mut shelf.bench.machine.qmp;
    qmp.run("block-job-cancel", json!({"device": "other"}));
    let told = shelf.bench.disk().wait();
    assert!(told.is_err(), "{told:?}");
    assert!(!shelf.file("one").exists());
    shelf
        .backup("full", "one")
        .delete()
        .expect("rmdir of one that has failed");
    assert_nothing_left(&shelf);
    assert_gone(&mut shelf);
    shelf.bench.verify();
    shelf.bench.finish();
}

/// What no journal leads to goes when the backup's own job has ended, and not before.
#[test]
fn what_no_journal_leads_to_is_taken_down() {
    let mut shelf = Shelf::with_options("backup-fleecing-orphan", Attachment::Blockdev, SLOW);
    begin(&shelf, "full", "one");
    shelf.bench.mount.kill9();
    fs::remove_file(shelf.place().join(".one.json")).expect("the journal");
    shelf.bench.mount.mount_again();
    shelf.bench.wait_for_disk();
    assert_eq!(scratches(&shelf).len(), 1, "its job is at work");
    shelf.bench.write(50);
    shelf.bench.machine.limit_jobs(0);
    wait::until_true("its job has ended", || {
        let qmp = &mut shelf.bench.machine.qmp;
        let jobs = qmp.run("query-jobs", json!({})).to_string();
        jobs.contains("concluded")
    });
    shelf.bench.mount.kill9();
    shelf.bench.mount.mount_again();
    shelf.bench.wait_for_disk();
    assert_gone(&mut shelf);
    shelf.bench.write(50);
    shelf.bench.verify_disk();
}

/// A journal is no licence to remove files.
#[test]
fn what_a_journal_names_is_removed_only_if_it_is_a_scratch_file() {
    let mut shelf = Shelf::with_options("backup-fleecing-journal", Attachment::Drive, SLOW);
    let victim = shelf.bench.scratch().file("precious");
    fs::write(&victim, "of somebody else").expect("a file");
    shelf.keep_while("full", "one", |shelf| {
        shelf.bench.mount.kill9();
        let journal = shelf.place().join(".one.json");
        let mut words: Value = serde_json::from_str(&text(&journal)).expect("a journal");
        assert_eq!(words["version"], 2);
        words["scratch"] = victim.display().to_string().into();
        fs::write(&journal, words.to_string()).expect("a journal");
        shelf.bench.mount.mount_again();
        shelf.bench.wait_for_disk();
        shelf.bench.machine.limit_jobs(0);
        shelf.bench.disk().wait().expect("the backup");
        assert_eq!(scratches(shelf).len(), 1, "nobody knows of it");
        shelf.bench.mount.kill9();
        shelf.bench.mount.mount_again();
        shelf.bench.wait_for_disk();
        assert_eq!(
            scratches(shelf),
            Vec::<String>::new(),
            "the next mount does"
        );
    });
    assert_eq!(text(&victim), "of somebody else");
    assert_gone(&mut shelf);
    shelf.bench.finish();
}

/// The node that shows an instant tells no holes of a disk with layers.
#[test]
fn a_disk_with_layers_is_copied_with_its_holes() {
    let mut shelf = Shelf::with_options("backup-fleecing-holes", Attachment::Drive, FLEECING);
    shelf.bench.seal("one");
    shelf.bench.write(4);
    shelf.keep("full", "whole");
    let taken = oracle::allocated(&shelf.file("whole"));
    assert!(taken < qmpfs_tests::bench::SIZE / 2, "{taken}");
    shelf.bench.finish();
}
