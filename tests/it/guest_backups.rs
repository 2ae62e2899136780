//! Backups and instants of a real guest at work: each holds, byte for byte, what the disk held. The oracle is an internal
//! snapshot in the very transaction of the instant, which qmpfs does not know of. Where another node stands on the disk's (a live
//! instant, fleecing) QEMU takes no internal snapshot, and it is a full backup there; a mirror ends while the guest stands still.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use qmpfs_tests::guest::{Guest, fsck_clean};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::rewrite::rewriting;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{DiskDir, Point, text, write_line};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

/// The guest between the oracle and the mount.
struct Rig {
    guest: Guest,
    mount: Mounted,
    scratch: Scratch,
}

/// The node and the job of an oracle that is a full backup.
const FULL: &str = "oracle-full";
/// The guest's disk.
const SIZE: u64 = 2 << 30;

/// An internal snapshot `oracle-1`, `oracle-2`, ... comes before the jobs of each transaction; or a full backup behind them.
fn with_snapshot(message: &mut Value, number: &AtomicUsize) {
    if message["execute"] != "transaction" {
        return;
    }
    let actions = message["arguments"]["actions"]
        .as_array_mut()
        .expect("actions");
    let job = actions
        .iter()
        .find(|action| action["type"] == "blockdev-backup");
    let Some(job) = job else {
        return;
    };
    let device = job["data"]["device"].clone();
    if job["data"]["sync"] == "none" {
        let data = json!({"job-id": FULL, "device": device, "target": FULL, "sync": "full"});
        actions.push(json!({"type": "blockdev-backup", "data": data}));
        return;
    }
    let name = format!("oracle-{}", number.fetch_add(1, Ordering::SeqCst) + 1);
    let data = json!({"device": device, "name": name});
    actions.insert(
        0,
        json!({"type": "blockdev-snapshot-internal-sync", "data": data}),
    );
}

impl Rig {
    fn new(name: &str, attachment: Attachment, more: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("images");
        let guest = Guest::boot(&scratch, &dir, attachment);
        let number = AtomicUsize::new(0);
        let upstream = guest.machine.qmpfs_socket();
        let monitor = rewriting(&scratch, upstream, move |said| with_snapshot(said, &number));
        let backups = scratch.dir("backups").display().to_string();
        let options = ["--backup-dir", &backups, "-o", "name=web1"];
        let server = format!(
            "nbd_server={}",
            guest.machine.endpoint("vda").socket.display()
        );
        let mount = Mounted::new(
            &scratch,
            &[&monitor],
            &[&options[..], &["-o", &server], more].concat(),
        );
        let rig = Self {
            guest,
            mount,
            scratch,
        };
        wait::until_true("the disk is in the mount", || rig.disk().0.is_dir());
        rig
    }

    fn disk(&self) -> DiskDir {
        self.mount.disk("vda")
    }

    #[track_caller]
    fn make(&self, point: &Point) {
        let made = point.make();
        made.unwrap_or_else(|e| panic!("{e}\n{}", self.mount.text("log")));
    }

    #[track_caller]
    fn wait(&self) {
        let end = self.disk().wait();
        end.unwrap_or_else(|e| panic!("{e}\n{}", self.mount.text("log")));
    }

    /// A point is what the snapshot holds.
    #[track_caller]
    fn assert_holds(&self, point: &Point, snapshot: &str) {
        let raw = self.scratch.file("oracle.raw");
        oracle::convert_internal(self.guest.disk(), snapshot, &raw);
        oracle::assert_same(&point.disk_raw(), &raw);
        self.guest.check();
    }

    /// Has a file ready for an oracle that is a full backup.
    fn prepare_full_oracle(&mut self) -> PathBuf {
        let path = self.scratch.file("oracle-full.raw");
        sh!("qemu-img create -q -f raw {} {SIZE}", path.display());
        let file = json!({"driver": "file", "filename": path});
        let node = json!({"driver": "raw", "node-name": FULL, "file": file});
        self.guest.machine.qmp.run("blockdev-add", node);
        path
    }

    #[track_caller]
    fn wait_for_full_oracle(&mut self) {
        wait::until_true("the oracle is complete", || {
            let jobs = self.guest.machine.qmp.run("query-jobs", json!({}));
            !jobs.to_string().contains(FULL)
        });
    }
}

fn every_kind_holds_what_the_disk_held(name: &str, attachment: Attachment) {
    let mut rig = Rig::new(name, attachment, &[]);
    rig.guest.rounds(2);

    let full = rig.disk().backup("full", "full");
    rig.make(&full);
    rig.guest.rounds(1);
    rig.wait();
    rig.assert_holds(&full, "oracle-1");

    let changes = rig.disk().backup("incremental", "changes");
    rig.make(&changes);
    assert_eq!(changes.json()["previous"], "full", "{}", changes.json());
    rig.guest.rounds(1);
    rig.wait();
    rig.assert_holds(&changes, "oracle-2");

    rig.make(&rig.disk().snapshot("below"));
    rig.guest.rounds(1);
    let top = rig.disk().backup("top", "top");
    rig.make(&top);
    assert_eq!(top.json()["previous"], "below", "{}", top.json());
    rig.guest.rounds(1);
    rig.wait();
    rig.assert_holds(&top, "oracle-3");
    let copy = rig.disk().backup("full", "below");
    oracle::assert_same(&copy.disk_raw(), &rig.disk().snapshot("below").disk_raw());

    let expected = rig.prepare_full_oracle();
    let live = rig.disk().live("live");
    rig.make(&live);
    rig.guest.rounds(1);
    rig.wait_for_full_oracle();
    oracle::assert_same(&live.disk_raw(), &expected);
    live.delete_when_closed();

    let mirror = rig.disk().backup("mirror", "mirror");
    rig.make(&mirror);
    let job = rig.disk().only_job();
    wait::until_true("it has caught up", || text(&job.join("state")) == "ready\n");
    rig.guest.rounds(1);
    let qmp = &mut rig.guest.machine.qmp;
    qmp.run("stop", json!({}));
    wait::until("it is told to end", || {
        match write_line(&job.join("ctl"), b"finish") {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => None,
            told => {
                told.expect("finish");
                Some(())
            }
        }
    });
    rig.wait();
    let node = rig.disk().json()["node_name"].clone();
    let snapshot = json!({"device": node, "name": "stopped"});
    let qmp = &mut rig.guest.machine.qmp;
    qmp.run("blockdev-snapshot-internal-sync", snapshot);
    qmp.run("cont", json!({}));
    rig.assert_holds(&mirror, "stopped");

    rig.guest.rounds(1);
    rig.mount.unmount();
    rig.guest.shut_down();
    oracle::check(rig.guest.disk());
    fsck_clean(&rig.scratch, rig.guest.disk());
}

#[test]
fn every_kind_holds_what_the_disk_of_a_working_guest_held() {
    every_kind_holds_what_the_disk_held("guest-backups", Attachment::Blockdev);
}

#[test]
fn every_kind_holds_what_the_legacy_drive_of_a_working_guest_held() {
    every_kind_holds_what_the_disk_held("guest-backups-drive", Attachment::Drive);
}

#[test]
fn by_way_of_a_scratch_file_each_holds_what_the_disk_of_a_working_guest_held() {
    let name = "guest-backups-fleecing";
    let mut rig = Rig::new(name, Attachment::Blockdev, &["-o", "fleecing"]);
    rig.guest.rounds(2);
    let expected = rig.prepare_full_oracle();
    for kind in ["full", "incremental"] {
        let backup = rig.disk().backup(kind, kind);
        rig.make(&backup);
        rig.guest.rounds(2);
        rig.wait();
        rig.wait_for_full_oracle();
        oracle::assert_same(&backup.disk_raw(), &expected);
        rig.guest.check();
    }
    let changes = rig.disk().backup("incremental", "incremental").json();
    assert_eq!(changes["previous"], "full", "{changes}");
    rig.mount.unmount();
    rig.guest.shut_down();
    oracle::check(rig.guest.disk());
    fsck_clean(&rig.scratch, rig.guest.disk());
}
