//! `rmdir` of a backup on which others stand: exactly that instant goes, in the mount of a running VM and in one of a
//! directory; killed at any step, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libc::{EBUSY, EPERM};
use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::sample;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::steps::{Deed, FILES, Steps};
use qmpfs_tests::tree::{DiskDir, Point, assert_errno, text};
use qmpfs_tests::{oracle, sh, wait};

use crate::backup_directory::disk_in;

mod faults;

/// A chain: a large full backup, and small incremental ones.
fn chain(shelf: &mut Shelf, incrementals: &[&str]) {
    shelf.bench.write(300);
    shelf.keep("full", "full");
    for name in incrementals {
        shelf.bench.write(6);
        shelf.keep("incremental", name);
    }
}

/// `rmdir`, and its end: the others can be read all the time.
#[track_caller]
fn remove(shelf: &mut Shelf, disk: &DiskDir, kind: &str, name: &str) {
    let point = disk.backup(kind, name);
    let plan = text(&point.0.join("plan"));
    point.delete_when_closed();
    shelf.forget(name);
    assert!(!point.exists(), "the name goes at once");
    while !disk.list("jobs").is_empty() {
        shelf.assert_shown(disk);
    }
    let end = disk.wait();
    assert!(end.is_ok(), "{end:?}\nit was planned: {plan}");
    shelf.assert_shown(disk);
}

#[track_caller]
fn assert_verified(path: &Path, count: usize) {
    let output = Command::new(program()).arg("verify").arg(path).output();
    let output = output.expect("qmpfs verify");
    let said = sh::said(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches(": right, ").count(), count, "{said}");
}

over_attachments! {
    /// Beside a running VM: in the middle, at the bottom, and then the chain goes on.
    exactly_that_instant_goes => |name, attachment| {
        let mut shelf = Shelf::new(name, attachment);
        chain(&mut shelf, &["a", "b", "c"]);
        let disk = shelf.bench.disk();
        remove(&mut shelf, &disk, "incremental", "b");
        shelf.verify();
        // what lies below everything: its file becomes that of the next
        let plan = text(&disk.backup("full", "full").0.join("plan"));
        assert!(plan.contains("block-commit of a into full.qcow2"), "{plan}");
        remove(&mut shelf, &disk, "full", "full");
        shelf.verify();
        let point = disk.backup("incremental", "a").json();
        assert_eq!((&point["copied"], &point["previous"]), (&"full".into(), &().into()));
        assert!(point["why_full"].as_str().expect("a reason").contains("'full'"), "{point}");
        assert_eq!(point["doubt"], serde_json::Value::Null, "{point}");
        // the chain goes on where it was
        let next = shelf.keep("incremental", "d");
        assert_eq!((&next["copied"], &next["previous"]), (&"changes".into(), &"c".into()));
        assert_verified(&shelf.place(), 3);
        for name in ["a", "c", "d"] {
            oracle::check(&shelf.file(name));
        }
        shelf.read_from_a_copy();
        shelf.bench.finish();
    }
}

#[test]
fn retention_is_a_line_of_shell() {
    let mut shelf = Shelf::new("merge-retention", Attachment::StorageDaemon);
    let all = ["a", "b", "c", "d", "e", "f"];
    chain(&mut shelf, &all);
    let copy = shelf.bench.scratch().file("copied");
    shelf.copy_to(&copy);
    let scratch = Scratch::new("merge-retention-mount");
    let mut mount = Mounted::new(&scratch, &[&copy], &[]);
    let disk = disk_in(mount.path());
    // several at once: they wait for each other
    let output = sh::attempt(&format!(
        "cd {} && ls -t backups/incremental | tail -n +3 | sed s,^,backups/incremental/, | xargs rmdir",
        disk.0.display()
    ));
    assert!(
        output.status.success(),
        "{}\n{}",
        sh::said(&output),
        mount.text("log")
    );
    for name in &all[..4] {
        shelf.forget(name);
    }
    assert_eq!(disk.list("backups/incremental"), ["e", "f"]);
    disk.wait().expect("all of them");
    shelf.assert_shown(&disk);
    let left = names(&copy.join("web1/vda"));
    let files: Vec<&String> = left.iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(
        files,
        [
            "e.json",
            "e.qcow2",
            "f.json",
            "f.qcow2",
            "full.json",
            "full.qcow2"
        ]
    );
    assert_verified(&disk.0.join("backups"), 3);
    mount.unmount();
    shelf.bench.finish();
}

#[test]
fn readers_and_those_who_may_not() {
    let slow = ["-o", "speed=512k"];
    let mut shelf = Shelf::with_options("merge-readers", Attachment::StorageDaemon, &slow);
    for (kind, name) in [("full", "full"), ("incremental", "a"), ("incremental", "b")] {
        shelf.bench.write(6);
        shelf.keep_while(kind, name, |shelf| {
            shelf.bench.machine.limit_jobs(0);
        });
    }
    let disk = shelf.bench.disk();
    let read = fs::File::open(disk.backup("full", "full").disk_raw()).expect("a reader");
    assert_errno(disk.backup("full", "full").delete(), &[EBUSY]);
    drop(read);
    // who reads what stands above goes on reading, all through a merge
    let above = fs::File::open(disk.backup("incremental", "a").disk_raw()).expect("a reader");
    remove(&mut shelf, &disk, "full", "full");
    let expected = fs::read(disk.backup("incremental", "a").disk_raw()).expect("its bytes");
    let mut seen = vec![0; expected.len()];
    std::os::unix::fs::FileExt::read_exact_at(&above, &mut seen, 0).expect("they are there");
    assert!(seen == expected, "the same bytes");
    drop(above);
    shelf.verify();
    // in two mounts at once: the second is told
    let scratch = Scratch::new("merge-readers-mount");
    let dir = shelf.dir().to_owned();
    let mut mount = Mounted::new(&scratch, &[&dir], &["-o", "no_delete"]);
    assert_errno(
        disk_in(mount.path()).backup("incremental", "a").delete(),
        &[EPERM],
    );
    mount.unmount();
    let mut mount = Mounted::new(&scratch, &[&dir], &[]);
    let slow = shelf.bench.disk().backup("full", "slow");
    shelf.keep_while("full", "slow", |shelf| {
        let other = disk_in(mount.path()).backup("incremental", "a");
        assert_errno(other.delete(), &[EBUSY]);
        shelf.bench.machine.limit_jobs(0);
    });
    assert!(slow.exists());
    mount.unmount();
    shelf.bench.finish();
}

/// Where `rmdir` is killed, and how it is mounted then.
struct Killed {
    copy: PathBuf,
    scratch: Scratch,
    steps: Steps,
    mount: Mounted,
}

impl Killed {
    /// A fresh copy of the directory, and a mount whose file operations there are steps.
    fn new(shelf: &Shelf, scratch: Scratch) -> Self {
        let copy = scratch.file("backups");
        shelf.copy_to(&copy);
        let steps = Steps::new(&scratch);
        let environment = steps.environment(&copy);
        let mount = Mounted::in_environment(&scratch, &[&copy], &[], environment);
        Self {
            copy,
            scratch,
            steps,
            mount,
        }
    }

    fn point(&self, kind: &str, name: &str) -> Point {
        disk_in(self.mount.path()).backup(kind, name)
    }
}

/// Kills qmpfs at steps of a removal until the removal has no more, and looks what the next mount makes of it.
fn killed_at(name: &str, kind: &str, gone: &str, deed: Deed, nth: usize) {
    let mut shelf = Shelf::new(name, Attachment::StorageDaemon);
    chain(&mut shelf, &["a", "b"]);
    let mut tried = 0;
    for number in sample::steps(nth) {
        let mut round = Killed::new(&shelf, Scratch::new(&format!("{name}-{number}")));
        round.steps.arm(FILES, number, deed, [round.mount.pid(), 0]);
        let _ = round.point(kind, gone).delete();
        // it dies, or comes to its end
        wait::until_true("it has ended", || {
            round.steps.fired() || disk_in(round.mount.path()).wait().is_ok()
        });
        let (fired, seen) = round.steps.disarm();
        round.mount.kill9();
        round.mount.set_environment(Vec::new());
        round.mount.mount_again();
        let disk = disk_in(round.mount.path());
        let end = disk.wait();
        assert!(end.is_ok(), "{end:?} after {seen:?}");
        let there = round.point(kind, gone).exists();
        let expected: Vec<&str> = ["a", "b", "full"]
            .into_iter()
            .filter(|name| there || *name != gone)
            .collect();
        for name in ["a", "b"].iter().filter(|name| there || **name != gone) {
            let bytes = shelf.bench.scratch().file(&format!("{name}.backup"));
            oracle::assert_same(&disk.backup("incremental", name).disk_raw(), &bytes);
        }
        let left = names(&round.copy.join("web1/vda"));
        let plain = left.iter().filter(|name| !name.starts_with('.'));
        let plain: Vec<String> = plain.cloned().collect();
        let files = |end: &str| -> Vec<String> {
            let names = expected.iter();
            names.map(|name| format!("{name}.{end}")).collect()
        };
        let mut all: Vec<String> = [files("json"), files("qcow2")].concat();
        all.sort();
        assert_eq!(plain, all, "{left:?} after {seen:?}");
        let mut hidden = left.iter().filter(|name| name.starts_with('.'));
        assert!(
            hidden.all(|name| name.contains(".blake3")),
            "{left:?} after {seen:?}"
        );
        assert_verified(&disk.0.join("backups"), expected.len());
        round.mount.unmount();
        drop(round.scratch);
        tried += 1;
        if !fired {
            break;
        }
    }
    assert!(tried > 1, "no step was met");
    shelf.bench.finish();
}

#[test]
fn killed_before_steps_of_a_stream() {
    killed_at("merge-kill-stream", "incremental", "a", Deed::KillBefore, 0);
}

#[test]
fn killed_after_steps_of_a_commit() {
    killed_at("merge-kill-commit", "full", "full", Deed::KillAfter, 1);
}

#[test]
fn what_prune_shows_is_what_it_does() {
    let mut shelf = Shelf::new("merge-prune", Attachment::StorageDaemon);
    chain(&mut shelf, &["a", "b", "c", "d"]);
    let copy = shelf.bench.scratch().file("copied");
    shelf.copy_to(&copy);
    let times = [
        ("full", "2026-01-31T10:00:00Z"),
        ("a", "2026-02-10T10:00:00Z"),
        ("b", "2026-02-10T23:00:00Z"),
        ("c", "2026-02-11T10:05:00Z"),
        ("d", "2026-02-11T10:55:00Z"),
    ];
    for (name, time) in times {
        let path = copy.join(format!("web1/vda/{name}.json"));
        let mut manifest = qmpfs_tests::tree::json(&path);
        manifest["time"] = time.into();
        fs::write(&path, manifest.to_string()).expect("a manifest of the copy");
    }
    let scratch = Scratch::new("merge-prune-mount");
    let mut mount = Mounted::new(&scratch, &[&copy], &[]);
    let disk = disk_in(mount.path());
    let prune = concat!(env!("CARGO_MANIFEST_DIR"), "/../mountscripts/prune");
    let line = format!(
        "{prune} --hourly 1 --daily 2 --monthly 2 {}",
        disk.0.display()
    );
    let shown = sh!("{line}");
    let verdict = |word: &str| -> Vec<String> {
        let lines = shown.lines().filter(|line| line.starts_with(word));
        let paths = lines.filter_map(|line| line.split(' ').nth(1));
        let names = paths.filter_map(|path| path.rsplit('/').next());
        names.map(str::to_owned).collect()
    };
    assert_eq!(verdict("keep"), ["d", "b", "full"], "{shown}");
    assert_eq!(verdict("remove"), ["c", "a"], "{shown}");
    shelf.assert_shown(&disk);
    // by a path with blanks, and what `date` would take for a word of its own; what is called as its beginning stays
    let (beside, link) = (scratch.dir("the"), scratch.file("the disk %H"));
    std::os::unix::fs::symlink(&disk.0, &link).expect("a link");
    let again = format!("{prune} --remove --hourly 01 --daily 02 --monthly 002");
    sh!("{again} '{}'", link.display());
    assert!(beside.is_dir(), "it is nobody's backup");
    sh!("{prune} --daily 08 '{}'", link.display());
    for name in ["a", "c"] {
        shelf.forget(name);
    }
    shelf.assert_shown(&disk);
    assert_verified(&disk.0.join("backups"), 3);

    // and what docs/RESTORE.md says of the whole disk
    let point = disk.backup("incremental", "d");
    let (raw, qcow2) = (scratch.file("new.raw"), scratch.file("new.qcow2"));
    sh!(
        "cp --sparse=always {0} {1} && qemu-img convert -O qcow2 {0} {2}",
        point.disk_raw().display(),
        raw.display(),
        qcow2.display()
    );
    oracle::check(&qcow2);
    assert_eq!(point.json()["digest"], oracle::digest(&raw));
    sh!(
        "qemu-img convert -O raw {} {}",
        qcow2.display(),
        raw.display()
    );
    assert_eq!(point.json()["digest"], oracle::digest(&raw));
    mount.unmount();
    shelf.bench.finish();
}
