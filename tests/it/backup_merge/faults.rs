//! What may go wrong while a backup is removed on which others stand: no room, a storage daemon that dies, two at once.
//! Nobody's instant is lost, and the next attempt ends well.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use libc::ENOSPC;
use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::SmallFilesystem;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::sample::Share;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{DiskDir, Point, assert_errno, text};
use qmpfs_tests::{oracle, sh, wait};

use super::{assert_verified, chain};
use crate::backup_directory::disk_in;

/// More than a chain takes, and little enough to be filled.
const ROOM_MIB: u64 = 128;

/// Room that each merge may begin with, and that is filled faster than a storage daemon that is held is given up.
const NEARLY: u64 = 16 << 20;

/// Between two rounds.
const LATER: Duration = Duration::from_millis(7);

/// A chain on a filesystem of its own, without its VM.
struct Rig {
    shelf: Shelf,
    small: SmallFilesystem,
    mount: Mounted,
    disk: DiskDir,
    _scratch: Scratch,
}

impl Rig {
    fn new(name: &str) -> Option<Self> {
        let scratch = Scratch::new(name);
        let small = SmallFilesystem::new(&scratch, ROOM_MIB)?;
        let mut shelf = Shelf::new(&format!("{name}-vm"), Attachment::StorageDaemon);
        chain(&mut shelf, &["a", "b"]);
        let dir = small.path().join("backups");
        shelf.copy_to(&dir);
        let mount = Mounted::new(&scratch, &[&dir], &[]);
        let disk = disk_in(mount.path());
        Some(Rig {
            shelf,
            small,
            mount,
            disk,
            _scratch: scratch,
        })
    }

    /// `rmdir`, with the storage daemon that is to merge held as soon as it is there. Gives its process id.
    fn begin(&self, kind: &str, name: &str) -> (Removal, i32) {
        begin(&self.mount, &self.disk.backup(kind, name))
    }

    /// All that stand above are what they were, and so is what was to go, if it is there.
    fn verify(&self, gone: &str) {
        for (kind, name) in [("full", "full"), ("incremental", "a"), ("incremental", "b")] {
            if name != gone || self.disk.backup(kind, name).disk_raw().exists() {
                let bytes = self.bytes(name);
                oracle::assert_same(&self.disk.backup(kind, name).disk_raw(), &bytes);
            }
        }
    }

    fn bytes(&self, name: &str) -> PathBuf {
        self.shelf.bench.scratch().file(&format!("{name}.backup"))
    }

    /// The removal works now, and nothing is left of it.
    fn ends_well(mut self, kind: &str, name: &str) {
        let point = self.disk.backup(kind, name);
        match point.exists() {
            true => point.delete_when_closed(),
            // a commit has begun to change its file: dismissing the job begins it again
            false => {
                for job in self.disk.list("jobs") {
                    let job = self.disk.0.join("jobs").join(job);
                    assert!(!text(&job.join("error")).trim().is_empty(), "it has failed");
                    fs::remove_dir(&job).expect("rmdir of a failed job");
                }
            }
        }
        let end = self.disk.wait();
        assert!(end.is_ok(), "{end:?}\n{}", self.mount.text("log"));
        assert!(!point.exists());
        self.verify(name);
        assert_verified(&self.disk.0.join("backups"), 2);
        self.mount.unmount();
        self.shelf.bench.finish();
    }
}

/// A `rmdir` that may not have returned.
type Removal = thread::JoinHandle<std::io::Result<()>>;

fn begin(mount: &Mounted, point: &Point) -> (Removal, i32) {
    let point = Point(point.0.clone());
    let removal = thread::spawn(move || point.delete());
    let ours = mount.pid();
    let daemon = wait::until("a storage daemon is there", || child_of(ours));
    // SAFETY: no memory is involved; it is a child of the program under test.
    unsafe { libc::kill(daemon, libc::SIGSTOP) };
    (removal, daemon)
}

/// The storage daemon that is a child of this process.
fn child_of(parent: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let mut all = children.unwrap_or_default();
    // the thread that starts it need not be the first one
    for task in fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten() {
        all.push_str(&fs::read_to_string(task.path().join("children")).unwrap_or_default());
    }
    all.split_whitespace()
        .filter_map(|id| id.parse().ok())
        .find(|id| {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            name.starts_with("qemu-storage-da")
        })
}

/// Lets a storage daemon go on that was held.
fn let_go(daemon: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(daemon, libc::SIGCONT) };
}

/// There was room when it was looked at, and then there is none.
fn full(name: &str, kind: &str, gone: &str) {
    let Some(rig) = Rig::new(name) else {
        return;
    };
    // told beforehand where it can be
    rig.small.fill_but(512 << 10);
    assert_errno(rig.disk.backup(kind, gone).delete(), &[ENOSPC]);
    rig.verify(gone);
    rig.small.make_room();
    rig.small.fill_but(NEARLY);
    let (removal, daemon) = rig.begin(kind, gone);
    rig.small.fill_but(0);
    let_go(daemon);
    let told = removal.join().expect("rmdir returns");
    let end = rig.disk.wait();
    assert!(
        told.is_err() || end.is_err(),
        "it cannot have been done: {told:?}, {end:?}"
    );
    let log = rig.mount.text("log");
    assert!(log.contains("No space left on device"), "{log}");
    // all that stand above can be read all the time
    for name in ["a", "b"].iter().filter(|name| **name != gone) {
        oracle::assert_same(
            &rig.disk.backup("incremental", name).disk_raw(),
            &rig.bytes(name),
        );
    }
    rig.small.make_room();
    rig.ends_well(kind, gone);
}

/// Compressed clusters take their whole size where they are merged to.
#[test]
fn what_is_compressed_needs_more_room() {
    let Some(rig) = Rig::new("merge-compressed") else {
        return;
    };
    let place = rig.small.path().join("backups/web1/vda");
    let size = rig.disk.backup("full", "full").disk_raw();
    let size = size.metadata().expect("a disk").len();
    for (name, letter, below) in [("full", 'U', ""), ("a", 'V', "-B full.qcow2 -F qcow2")] {
        sh!(
            "cd {}; truncate -s {size} raw; head -c 20M /dev/zero | tr '\\0' {letter} | dd of=raw conv=notrunc status=none; qemu-img convert -c {below} -O qcow2 raw {name}.qcow2; rm raw",
            place.display()
        );
    }
    rig.small.fill_but(4 << 20);
    assert_errno(rig.disk.backup("full", "full").delete(), &[ENOSPC]);
    let log = rig.mount.text("log");
    assert!(log.contains("the merge of 'full' may need"), "{log}");
    assert!(!place.join(".full.json").exists(), "it has not begun");
}

#[test]
fn a_stream_without_room() {
    full("merge-full-stream", "incremental", "a");
}

#[test]
fn a_commit_without_room() {
    full("merge-full-commit", "full", "full");
}

/// The storage daemon that merges is killed at once, and again and again a little later each time.
fn killed(name: &str, kind: &str, gone: &str) {
    let Some(rig) = Rig::new(name) else {
        return;
    };
    let rounds = match Share::asked_for() {
        Share::Everyday => 6,
        Share::Rounds(_) | Share::Kills | Share::Full => 60,
    };
    for round in 0..rounds {
        let (removal, daemon) = rig.begin(kind, gone);
        if round > 0 {
            let_go(daemon);
            // what is to be met is any moment up to the job's end
            thread::sleep(LATER * round);
        }
        // SAFETY: no memory is involved; one that has ended is no harm, as nobody else waits for it.
        unsafe { libc::kill(daemon, libc::SIGKILL) };
        let told = removal.join().expect("rmdir returns");
        let end = rig.disk.wait();
        println!("round {round}: {told:?}, {end:?}");
        rig.verify(gone);
        if !rig.disk.backup(kind, gone).exists() {
            break;
        }
    }
    rig.ends_well(kind, gone);
}

#[test]
fn a_stream_whose_storage_daemon_dies() {
    killed("merge-dies-stream", "incremental", "a");
}

#[test]
fn a_commit_whose_storage_daemon_dies() {
    killed("merge-dies-commit", "full", "full");
}

/// A commit that has failed for want of room, and behind it a backup whose qmpfs is killed: neither waits for the other.
#[test]
fn a_failed_one_and_a_backup_that_is_cut_short() {
    let scratch = Scratch::new("merge-failed-beside");
    let Some(small) = SmallFilesystem::new(&scratch, ROOM_MIB) else {
        return;
    };
    let own = Scratch::new("merge-failed-beside-vm");
    let dir = small.path().join("backups");
    fs::create_dir(&dir).expect("room");
    let mut shelf = Shelf::at(own, dir, Attachment::Blockdev, &[]);
    chain(&mut shelf, &["a", "b"]);
    let disk = shelf.bench.disk();
    let point = disk.backup("full", "full");
    small.fill_but(NEARLY);
    let (removal, daemon) = begin(&shelf.bench.mount, &point);
    small.fill_but(0);
    let_go(daemon);
    removal
        .join()
        .expect("rmdir returns")
        .expect("it is accepted");
    disk.wait().expect_err("there is no room");
    assert!(!point.exists(), "it is neither what it was nor gone");
    small.make_room();
    shelf.forget("full");
    disk.backup("incremental", "c").make().expect("mkdir");
    shelf.bench.mount.kill9();
    let is_unfinished = !shelf.file("c").exists();
    println!(
        "the backup is {}complete",
        if is_unfinished { "not " } else { "" }
    );
    shelf.bench.mount.mount_again();
    wait::until_true("both are at their end", || {
        let is_there = disk.list("backups/incremental").contains(&"c".to_owned());
        is_there && disk.list("jobs").is_empty() && !shelf.file("full").exists()
    });
    disk.wait().expect("both are well");
    disk.backup("incremental", "c").delete_when_closed();
    disk.wait().expect("it is gone");
    shelf.assert_shown(&disk);
    shelf.bench.finish();
}

/// All of them at one instant: one is at work, and the others wait for their turn.
#[test]
fn several_at_one_instant() {
    let mut shelf = Shelf::new("merge-at-once", Attachment::Blockdev);
    let names = ["a", "b", "c", "d", "e"];
    chain(&mut shelf, &names);
    let disk = shelf.bench.disk();
    wait::until_true("no digest is on its way", || {
        let point = disk.backup("incremental", "e").json();
        point["digest"].is_string()
    });
    let removals: Vec<_> = names[..4]
        .iter()
        .map(|name| {
            let point = disk.backup("incremental", name);
            shelf.forget(name);
            thread::spawn(move || point.delete())
        })
        .collect();
    for removal in removals {
        let told = removal.join().expect("rmdir returns");
        told.unwrap_or_else(|e| panic!("{e}\n{}", shelf.bench.mount.text("log")));
    }
    let end = disk.wait();
    assert!(
        end.is_ok(),
        "{end:?}\n{}",
        text(&shelf.bench.mount.path().join("log"))
    );
    shelf.verify();
    shelf.bench.finish();
}
