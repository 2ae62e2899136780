//! `rmdir` of a backup destroys no other one: not beside another mount, not where something else stands on it, not where it
//! was cut short, and not by what a directory from elsewhere has written in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libc::{EBUSY, EEXIST, EIO};
use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::claimed_elsewhere;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{DiskDir, assert_errno, json, text};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

use crate::backup_directory::disk_in;

/// A full backup and what stands on it, in the directory of a running VM.
fn chain(name: &str, incrementals: &[&str]) -> Shelf {
    let mut shelf = Shelf::new(name, Attachment::StorageDaemon);
    shelf.bench.write(100);
    shelf.keep("full", "full");
    for name in incrementals {
        shelf.bench.write(6);
        shelf.keep("incremental", name);
    }
    shelf
}

/// A copy of the directory, mounted without the VM.
fn elsewhere(shelf: &Shelf, name: &str) -> (Scratch, PathBuf, Mounted, DiskDir) {
    let scratch = Scratch::new(name);
    let copy = scratch.file("backups");
    shelf.copy_to(&copy);
    let mount = Mounted::new(&scratch, &[&copy], &[]);
    let disk = disk_in(mount.path());
    (scratch, copy, mount, disk)
}

/// What is written down of a backup that is about to go.
fn journal(place: &Path, name: &str, stage: &str, job: &str) -> Value {
    let manifest = json(&place.join(format!("{name}.json")));
    json!({"version": 1, "stage": stage, "job": job, "manifest": manifest})
}

fn write_journal(place: &Path, name: &str, journal: &Value) {
    let path = place.join(format!(".{name}.json"));
    fs::write(path, journal.to_string()).expect("a journal");
}

/// With the last one its disk goes, too.
#[test]
fn the_last_one_is_waited_for_as_any_other() {
    let shelf = chain("removal-last", &[]);
    let (_scratch, _copy, _mount, disk) = elsewhere(&shelf, "removal-last-mount");
    let full = disk.backup("full", "full");
    full.delete_when_closed();
    let output = Command::new(program()).arg("wait").arg(&full.0).output();
    let output = output.expect("qmpfs wait");
    assert!(output.status.success(), "{}", sh::said(&output));
    shelf.bench.finish();
}

#[test]
fn a_mount_of_the_directory_waits_for_the_others() {
    let shelf = chain("removal-claim", &["a"]);
    let (_scratch, copy, mount, disk) = elsewhere(&shelf, "removal-claim-mount");
    let claimed = claimed_elsewhere(&copy.join("web1/vda"), ".backups");
    assert_errno(disk.backup("incremental", "a").delete(), &[EBUSY]);
    assert!(mount.text("log").contains("another qmpfs is at work"));
    drop(claimed);
    disk.backup("incremental", "a").delete_when_closed();
    shelf.bench.finish();
}

/// A removal that was cut short: no further backup stands on what goes, whoever finishes that.
#[test]
fn nothing_stands_on_what_was_about_to_go() {
    let mut shelf = chain("removal-cut-short", &["a", "b"]);
    let b = journal(&shelf.place(), "b", "removing", "");
    write_journal(&shelf.place(), "b", &b);
    let next = shelf.bench.disk();
    wait::until_true("it is not listed", || {
        next.list("backups/incremental") == ["a"]
    });
    shelf.forget("b");
    let point = shelf.keep_alone("incremental", "c", |shelf| {
        shelf.bench.machine.limit_jobs(0);
    });
    assert_ne!(point["previous"], "b", "{point}");
    // the next mount of the VM finishes it
    shelf.bench.mount.kill9();
    shelf.bench.mount.mount_again();
    shelf.bench.wait_for_disk();
    wait::until_true("it goes", || !shelf.place().join(".b.json").exists());
    assert!(!shelf.file("b").exists());
    let log = shelf.bench.mount.text("log");
    assert!(
        log.contains("finishing the removal of the backup 'b'"),
        "{log}"
    );
    shelf.verify();
    shelf.bench.finish();
}

/// Something stands on it by the time that its removal is taken up: it stays.
#[test]
fn a_removal_is_not_finished_under_others() {
    let shelf = chain("removal-not-finished", &["a"]);
    let scratch = Scratch::new("removal-not-finished-mount");
    let copy = scratch.file("backups");
    shelf.copy_to(&copy);
    let place = copy.join("web1/vda");
    let full = journal(&place, "full", "removing", "");
    write_journal(&place, "full", &full);
    fs::remove_file(place.join("full.json")).expect("as far as it came");
    let mount = Mounted::new(&scratch, &[&copy], &[]);
    let disk = disk_in(mount.path());
    wait::until_true("it is there", || disk.list("backups/full") == ["full"]);
    assert!(!place.join(".full.json").exists());
    let log = mount.text("log");
    assert!(log.contains("the backup 'full' stays: "), "{log}");
    shelf.assert_shown(&disk);
    shelf.bench.finish();
}

/// A commit that failed half way has no way back, also where it fails again as part of another removal.
#[test]
fn a_commit_that_fails_again_is_still_known() {
    let shelf = chain("removal-commit-again", &["a", "b"]);
    let (_scratch, copy, mut mount, disk) = elsewhere(&shelf, "removal-commit-again-mount");
    let place = copy.join("web1/vda");
    let mut full = journal(&place, "full", "merging", "qmpfs-merge-0123456789ab");
    let id = |name: &str| json(&place.join(format!("{name}.json")))["id"].clone();
    full["merge"] = json!({"verb": "commit", "into": [{"id": id("a"), "name": "a"}]});
    write_journal(&place, "full", &full);
    // QEMU cannot open it for writing
    sh!("chattr +i {}", place.join("full.qcow2").display());
    let removed = disk.backup("incremental", "b").delete();
    assert_errno(removed, &[EIO, libc::EPERM, libc::EACCES]);
    assert!(place.join(".full.json").exists(), "{}", mount.text("log"));
    assert!(!disk.list("backups/full").contains(&"full".to_owned()));
    sh!("chattr -i {}", place.join("full.qcow2").display());
    mount.kill9();
    mount.mount_again();
    wait::until_true("it is brought to its end", || {
        disk.wait().is_ok() && !place.join(".full.json").exists()
    });
    for name in ["a", "b"] {
        let bytes = shelf.bench.scratch().file(&format!("{name}.backup"));
        oracle::assert_same(&disk.backup("incremental", name).disk_raw(), &bytes);
    }
    shelf.bench.finish();
}

/// Names in what lies in a directory from elsewhere lead nowhere but to files of that directory.
#[test]
fn names_of_another_place_are_not_followed() {
    let shelf = chain("removal-names", &["a"]);
    let scratch = Scratch::new("removal-names-mount");
    let copy = scratch.file("backups");
    shelf.copy_to(&copy);
    let place = copy.join("web1/vda");
    let victim = scratch.dir("images").join("web9.qcow2");
    fs::write(&victim, b"of somebody else").expect("a file");
    let out = "../../../images/web9";
    let mut full = journal(&place, "full", "merging", "qmpfs-merge-0123456789ab");
    full["merge"] = json!({"verb": "commit", "copied": true, "into": [{"id": "x", "name": out}]});
    write_journal(&place, "full", &full);
    let mut a = journal(&place, "a", "removing", "");
    a["manifest"]["previous"]["name"] = out.into();
    write_journal(&place, "a", &a);
    let mount = Mounted::new(&scratch, &[&copy], &[]);
    let disk = disk_in(mount.path());
    wait::until_true("it is mounted", || disk.0.is_dir());
    let log = mount.text("log");
    assert_eq!(
        log.matches("is no journal that this qmpfs knows").count(),
        2,
        "{log}"
    );
    assert_eq!(text(&victim), "of somebody else");
    assert!(place.join("full.qcow2").exists());
    shelf.bench.finish();
}

/// What is not listed may stand on it: an image that somebody made to look into it, a backup whose manifest is damaged.
#[test]
fn what_others_stand_on_stays() {
    let shelf = chain("removal-strangers", &["a"]);
    let (_scratch, copy, mount, disk) = elsewhere(&shelf, "removal-strangers-mount");
    let place = copy.join("web1/vda");
    sh!(
        "cd {} && qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 try.img",
        place.display()
    );
    assert_errno(disk.backup("incremental", "a").delete(), &[EBUSY]);
    assert!(mount.text("log").contains("try.img stands on 'a'"));
    fs::remove_file(place.join("try.img")).expect("rm");
    fs::write(place.join("a.json"), "torn").expect("a damaged manifest");
    wait::until_true("it is not listed", || {
        disk.list("backups/incremental").is_empty()
    });
    assert_errno(disk.backup("full", "full").delete(), &[EBUSY]);
    assert!(place.join("full.qcow2").exists());
    shelf.bench.finish();
}

/// A name that something still stands on would show other bytes through it.
#[test]
fn a_name_under_orphans_is_not_free() {
    let shelf = chain("removal-orphans", &["a", "b"]);
    for name in ["a.json", "a.qcow2"] {
        fs::remove_file(shelf.place().join(name)).expect("rm");
    }
    assert_errno(shelf.backup("full", "a").make(), &[EEXIST]);
    shelf.bench.finish();
}

/// Somebody has written into a backup: a removal below it does not make that right.
#[test]
fn a_doubt_outlives_a_merge() {
    let mut shelf = chain("removal-doubt", &["a"]);
    sh!(
        "qemu-io -c 'write -P 7 1M 64k' {}",
        shelf.file("a").display()
    );
    let disk = shelf.bench.disk();
    shelf.forget("a");
    disk.backup("full", "full").delete_when_closed();
    shelf.forget("full");
    disk.wait().expect("the merge");
    let point = disk.backup("incremental", "a").json();
    assert!(point["doubt"].is_string(), "{point}");
    let next = shelf.keep_alone("incremental", "b", |shelf| {
        shelf.bench.machine.limit_jobs(0);
    });
    assert_eq!(next["copied"], "full", "{next}");
    shelf.bench.finish();
}

/// A copy of hard links keeps what it has.
#[test]
fn other_names_of_a_file_keep_their_bytes() {
    let shelf = chain("removal-links", &["a"]);
    let (_scratch, copy, mount, disk) = elsewhere(&shelf, "removal-links-mount");
    let kept = copy.with_file_name("kept");
    sh!("cp -al {} {}", copy.display(), kept.display());
    assert_errno(disk.backup("full", "full").delete(), &[EBUSY]);
    assert!(mount.text("log").contains("has other names (hard links)"));
    let bytes = shelf.bench.scratch().file("full.backup");
    let read = copy.with_file_name("full.raw");
    sh!(
        "qemu-img convert -O raw {} {}",
        kept.join("web1/vda/full.qcow2").display(),
        read.display()
    );
    oracle::assert_same(&read, &bytes);
    sh!("rm -r {}", kept.display());
    disk.backup("full", "full").delete_when_closed();
    disk.wait().expect("the merge");
    shelf.bench.finish();
}
