//! `qmpfs verify`: backups and points are read whole and compared with what was recorded of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::program;
use qmpfs_tests::tree::json;
use qmpfs_tests::{oracle, sh};
use serde_json::Value;

/// The exit code and what was said.
fn verify(path: &Path, options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    command.arg("verify").args(options).arg(path);
    let output = command.output().expect("qmpfs verify");
    (output.status.code(), sh::said(&output))
}

#[track_caller]
fn assert_right(path: &Path, lines: usize) {
    let (code, said) = verify(path, &[]);
    assert_eq!(code, Some(0), "{said}");
    let right = said.lines().filter(|line| line.contains(": right, "));
    assert_eq!(right.count(), lines, "{said}");
}

#[track_caller]
fn assert_wrong(path: &Path, words: &str) {
    let (code, said) = verify(path, &["-q"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(words), "{said}");
}

/// A copy of the directory, to be damaged.
fn copy(shelf: &Shelf, name: &str) -> PathBuf {
    let copy = shelf.bench.scratch().file(name);
    sh!("cp -r {} {}", shelf.place().display(), copy.display());
    copy
}

/// Flips bits of a file at an offset.
fn damage(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("a file of the copy");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("within it");
    file.write_all_at(&[byte[0] ^ 0x55], offset).expect("room");
}

/// Where the file of a backup has its first bytes of the guest's.
fn first_data(image: &Path) -> u64 {
    let map = sh!("qemu-img map --output=json {}", image.display());
    let map: Value = serde_json::from_str(&map).expect("a map");
    let mut stretches = map.as_array().expect("stretches").iter();
    let own = stretches.find(|it| it["depth"] == 0 && it["data"] == true);
    own.expect("it holds data")["offset"]
        .as_u64()
        .expect("a place in the file")
}

#[test]
fn what_is_right_and_what_was_damaged() {
    let mut shelf = Shelf::new("verify", Attachment::StorageDaemon);
    shelf.keep("full", "one");
    shelf.bench.write(20);
    shelf.keep("incremental", "two");
    assert!(shelf.place().join(".two.blake3").is_file());
    assert!(
        !shelf.place().join(".one.blake3").exists(),
        "only the newest keeps its tree"
    );
    let point = shelf.backup("incremental", "two");
    assert_right(&point.0, 1);
    assert_right(&point.disk_raw(), 1);
    assert_right(&shelf.bench.disk().0.join("backups"), 2);
    assert_right(&shelf.file("two"), 1);
    assert_right(&shelf.place(), 2);
    // as anybody else would do it
    let raw = shelf.bench.scratch().file("restored.raw");
    sh!(
        "qemu-img convert -O raw {} {}",
        shelf.file("two").display(),
        raw.display()
    );
    assert_eq!(point.json()["digest"], oracle::digest(&raw));

    // a point of which nothing was recorded is read, and said to be so
    shelf.bench.seal("sealed");
    let (code, said) = verify(&shelf.bench.point("sealed").0, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no digest to compare"), "{said}");
    assert!(!said.contains("not checked"), "{said}");

    let there = copy(&shelf, "copied");
    assert_right(&there, 2);
    // a bit of the data: whatever stands on that file is wrong
    damage(
        &there.join("one.qcow2"),
        first_data(&there.join("one.qcow2")) + 100,
    );
    assert_wrong(&there.join("one.qcow2"), "does not show what it showed");
    assert_wrong(&there, "not right");
    // its tables
    let there = copy(&shelf, "torn");
    sh!(
        "dd if=/dev/urandom of={} bs=4k seek=1 count=60 conv=notrunc status=none",
        there.join("two.qcow2").display()
    );
    let (code, said) = verify(&there.join("two.qcow2"), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert_right(&there.join("one.qcow2"), 1);
    // a file that is not there
    let there = copy(&shelf, "cut");
    fs::remove_file(there.join("one.qcow2")).expect("of the copy");
    assert_wrong(&there.join("two.qcow2"), "one.qcow2");
    // and what was never recorded
    let there = copy(&shelf, "old");
    let manifest = there.join("one.json");
    let mut told = json(&manifest);
    told.as_object_mut().expect("an object").remove("digest");
    fs::write(&manifest, told.to_string()).expect("of the copy");
    let (code, said) = verify(&there.join("one.qcow2"), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no digest to compare"), "{said}");
    assert_wrong(&shelf.bench.scratch().dir("empty"), "there is no point");
    assert_wrong(&shelf.bench.active(), "no backup of qmpfs");
    shelf.bench.finish();
}

#[test]
fn a_backup_whose_manifest_is_broken_or_gone_is_not_passed_over() {
    let mut shelf = Shelf::new("verify-manifests", Attachment::StorageDaemon);
    for name in ["one", "two", "three"] {
        shelf.keep("full", name);
    }
    assert_right(&shelf.place(), 3);
    let garbled = copy(&shelf, "garbled");
    fs::write(garbled.join("one.json"), "{").expect("a manifest of the copy");
    assert_wrong(&garbled, "one.json is no backup of qmpfs");
    assert_wrong(&garbled, "1 of 3 are not right");
    // the same of the directory above, and of all that is in it
    let above = shelf.bench.scratch().dir("above/web1");
    fs::rename(&garbled, above.join("vda")).expect("within one directory");
    let gone = copy(&shelf, "above/web1/vdb");
    fs::remove_file(gone.join("two.json")).expect("a manifest of the copy");
    fs::rename(gone.join("three.json"), gone.join("four.json")).expect("a free name");
    let above = above.parent().expect("it is in one");
    assert_wrong(above, "there is no manifest");
    assert_wrong(above, "four.json is not called what it is in its manifest");
    // three.qcow2 and four.json are one each
    assert_wrong(above, "4 of 7 are not right");
    // what is made, or removed, is none
    fs::write(gone.join(".two.json"), "{}").expect("a journal of the copy");
    assert_wrong(above, "3 of 6 are not right");
    // images that are no backups are nobody's business
    let images = verify(shelf.bench.dir(), &[]).1;
    assert!(images.contains("there is no point"), "{images}");
}

#[test]
fn a_digest_that_is_missing_is_made_by_the_next_mount() {
    let mut shelf = Shelf::new("verify-later", Attachment::StorageDaemon);
    shelf.keep("full", "one");
    shelf.bench.mount.unmount();
    let manifest = shelf.place().join("one.json");
    let told = json(&manifest);
    let mut without = told.clone();
    without.as_object_mut().expect("an object").remove("digest");
    fs::write(&manifest, without.to_string()).expect("a manifest");
    fs::write(shelf.place().join(".one.blake3"), "torn").expect("a tree");
    shelf.bench.mount.mount_again();
    shelf.bench.wait_for_disk();
    qmpfs_tests::wait::until_true("it is there again", || {
        json(&manifest)["digest"] == told["digest"]
    });
    // what is kept beside it was lost: all is read, and the digest is the same
    fs::write(shelf.place().join(".one.blake3"), "torn").expect("a tree");
    shelf.keep("incremental", "two");
    assert!(names(&shelf.place()).contains(&".two.blake3".to_owned()));
    shelf.bench.finish();
}
