//! VMs that others change too: snapshots and jobs by hand on another monitor, and libvirt. The tree follows them, names
//! what they made, and never touches it.

use std::path::PathBuf;
use std::{fs, thread};

use libc::{EBUSY, EEXIST, EPERM};
use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::qmp::Graph;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{DiskDir, Point, assert_errno};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A disk with some bytes, the VM around it, and a mount: no writer, as the active file changes under it.
struct Shared {
    mount: Mounted,
    machine: Machine,
    dir: PathBuf,
    scratch: Scratch,
}

impl Shared {
    fn new(name: &str, attachment: Attachment, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("images");
        let image = dir.join("web1.qcow2");
        oracle::create(&image, 64 * MIB);
        sh!("qemu-io -f qcow2 -c 'write -P 1 0 8M' {}", image.display());
        let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &image)]);
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], options);
        wait::until_true("the disk is there", || mount.disk("vda").0.is_dir());
        Self {
            mount,
            machine,
            dir,
            scratch,
        }
    }

    fn disk(&self) -> DiskDir {
        self.mount.disk("vda")
    }

    /// A name that others made is found by looking for it, without a listing and without an event.
    fn until_found(&self, point: &Point) {
        wait::until_true("it is found", || point.exists());
    }

    fn root(&self) -> String {
        self.disk().json()["node_name"]
            .as_str()
            .expect("a node")
            .to_owned()
    }

    fn write(&self, byte: u8) {
        let mut hands = self.machine.nbd("vda");
        hands
            .write(u64::from(byte) * MIB, &[byte; 65536])
            .expect("the guest can write");
        hands.flush().expect("the guest can flush");
    }

    /// As a person does it on another monitor, and libvirt: QEMU makes the overlay itself, and sends no event.
    fn snapshot_by_hand(&mut self, file: &str) {
        let arguments = json!({
            "node-name": self.root(), "snapshot-file": self.dir.join(file), "format": "qcow2",
            "snapshot-node-name": file.replace('.', "-"),
        });
        self.machine.qmp.run("blockdev-snapshot-sync", arguments);
    }
}

over_attachments! {
    /// The state below `web1.before` is `before`: by name at once, with its bytes, and never ambiguous with ours.
    snapshots_of_others_have_the_name_that_was_given => |name, attachment| {
        let mut shared = Shared::new(name, attachment, &[]);
        let before = shared.disk().snapshot("before");
        assert!(!before.exists());
        shared.snapshot_by_hand("web1.before");
        shared.until_found(&before);
        shared.write(2);
        shared.snapshot_by_hand("web1.after");
        let after = shared.disk().snapshot("after");
        shared.until_found(&after);
        shared.write(3);

        for (point, file) in [(&before, "web1.qcow2"), (&after, "web1.before")] {
            let expected = shared.scratch.file("expected");
            oracle::convert(&shared.dir.join(file), &expected);
            oracle::assert_same(&point.disk_raw(), &expected);
            assert_eq!(point.json()["made_by"], "other");
            assert_eq!(point.json()["consistency"], "unknown");
        }
        for taken in [&before, &after] {
            assert_errno(taken.make(), &[EEXIST]);
        }
        let ours = shared.disk().snapshot("ours");
        ours.make().unwrap_or_else(|e| panic!("{e}\n{}", shared.mount.text("log")));
        assert_eq!(ours.json()["made_by"], "qmpfs");
        shared.write(4);
        assert_eq!(shared.disk().list("snapshots"), ["after", "before", "ours"]);
        let expected = shared.scratch.file("expected");
        oracle::convert(&shared.dir.join("web1.before"), &expected);
        oracle::assert_same(&after.disk_raw(), &expected);
        let chain = fs::read_to_string(shared.disk().0.join("chain.txt")).expect("the chain");
        assert!(chain.contains("point before, made by others"), "{chain}");
        let events = shared.mount.text("events");
        assert!(events.contains(r#""event":"point_made","path":"/disks/vda/snapshots/before""#), "{events}");
        shared.machine.quit();
    }
}

over_attachments! {
    /// A backup by hand: listed with its progress, waited for, never touched, and no verb beside it.
    jobs_of_others_are_shown_and_keep_our_verbs_away => |name, attachment| {
        let mut shared = Shared::new(name, attachment, &[]);
        let target = shared.scratch.file("target.qcow2");
        oracle::create(&target, 64 * MIB);
        let file = json!({"driver": "file", "filename": target});
        shared.machine.qmp.run("blockdev-add", json!({"driver": "qcow2", "node-name": "target", "file": file}));
        let root = shared.root();
        let backup = json!({"job-id": "theirs", "device": root, "target": "target", "sync": "full", "speed": 1});
        shared.machine.qmp.run("blockdev-backup", backup);
        let jobs = || shared.disk().list("jobs");
        wait::until_true("the job is shown", || jobs() == ["theirs"]);
        let job = shared.disk().0.join("jobs/theirs");
        let state = fs::read_to_string(job.join("state")).expect("its state");
        assert!(["created\n", "running\n", "paused\n"].contains(&state.as_str()), "{state}");
        let progress = qmpfs_tests::tree::json(&job.join("progress"));
        assert!(progress["total"].as_u64().is_some_and(|total| total >= 8 * MIB), "{progress}");

        assert_errno(shared.disk().snapshot("x").make(), &[EBUSY]);
        assert_errno(shared.disk().internal("x").make(), &[EBUSY]);
        assert_errno(fs::remove_dir(&job), &[EPERM]);
        assert_errno(fs::write(job.join("ctl"), "cancel\n"), &[EPERM]);
        let log = shared.mount.text("log");
        assert!(log.contains("another monitor has a backup job, theirs, at work on disk 'vda'; next:"), "{log}");
        let chain = fs::read_to_string(shared.disk().0.join("chain.txt")).expect("the chain");
        assert!(chain.contains("job theirs: backup of another monitor"), "{chain}");
        let metrics = shared.mount.text("metrics");
        assert!(metrics.contains(r#"disk="vda",verb="backup""#), "{metrics}");

        let waiter = {
            let disk = shared.disk();
            thread::spawn(move || disk.wait())
        };
        let ours = waiter.is_finished();
        assert!(!ours, "the disk is at work");
        shared.machine.qmp.run("job-cancel", json!({"id": "theirs"}));
        let ended = waiter.join().expect("no panic").expect("how theirs ends is not our failure");
        assert_eq!(ended, "done\n");
        wait::until_true("it is gone", || shared.disk().list("jobs").is_empty());
        shared.disk().internal("x").make().unwrap_or_else(|e| panic!("{e}\n{}", shared.mount.text("log")));
        shared.disk().snapshot("x").make().unwrap_or_else(|e| panic!("{e}\n{}", shared.mount.text("log")));
        shared.machine.quit();
    }
}

#[test]
fn internal_snapshots_of_others_come_and_go() {
    let mut shared = Shared::new("others-internal", Attachment::Blockdev, &[]);
    let point = shared.disk().internal("theirs");
    assert!(!point.exists());
    let arguments = json!({"device": shared.root(), "name": "theirs"});
    shared
        .machine
        .qmp
        .run("blockdev-snapshot-internal-sync", arguments.clone());
    shared.until_found(&point);
    assert_errno(point.make(), &[EEXIST]);
    shared
        .machine
        .qmp
        .run("blockdev-snapshot-delete-internal-sync", arguments);
    wait::until_true("a listing shows that it is gone", || {
        shared.disk().list("internal").is_empty()
    });
    assert!(!point.exists());
    shared.machine.quit();
}

#[test]
fn a_vm_of_libvirt_is_shown_and_not_changed() {
    let mut shared = Shared::new("others-libvirt", Attachment::Libvirt, &[]);
    assert_eq!(shared.mount.json("vm.json")["managed_by"], "libvirt");
    let graph = |shared: &mut Shared| Graph::of(&mut shared.machine.qmp).chain();
    let before = graph(&mut shared);
    assert_eq!(shared.mount.json("vm.json")["capabilities"], json!([]));
    for point in [shared.disk().snapshot("x"), shared.disk().internal("x")] {
        assert_errno(point.make(), &[EPERM]);
    }
    let log = shared.mount.text("log");
    assert!(
        log.contains("libvirt manages this VM") && log.contains("next: virsh snapshot-create-as"),
        "{log}"
    );
    assert_eq!(graph(&mut shared), before);
    assert_eq!(qmpfs_tests::faults::names(&shared.dir), ["web1.qcow2"]);
    // what libvirt does is followed
    shared.snapshot_by_hand("web1.before");
    let point = shared.disk().snapshot("before");
    shared.until_found(&point);
    let expected = shared.scratch.file("expected");
    oracle::convert(&shared.dir.join("web1.qcow2"), &expected);
    oracle::assert_same(&point.disk_raw(), &expected);
    assert_errno(point.delete(), &[EPERM]);
    shared.machine.quit();
}

#[test]
fn with_coexist_only_what_does_not_mislead_libvirt_is_done() {
    let mut shared = Shared::new("others-coexist", Attachment::Libvirt, &["-o", "coexist"]);
    assert_eq!(
        shared.mount.json("vm.json")["capabilities"],
        json!(["internal", "live", "checkpoints"])
    );
    let inside = shared.disk().internal("inside");
    inside
        .make()
        .unwrap_or_else(|e| panic!("{e}\n{}", shared.mount.text("log")));
    let expected = shared.scratch.file("expected");
    oracle::convert_internal(&shared.dir.join("web1.qcow2"), "inside", &expected);
    oracle::assert_same(&inside.disk_raw(), &expected);
    assert_errno(shared.disk().snapshot("x").make(), &[EPERM]);
    assert!(
        shared
            .mount
            .text("log")
            .contains("would lose track of its disk")
    );
    let graph = Graph::of(&mut shared.machine.qmp);
    assert_eq!(graph.chain(), ["libvirt-1-format"]);
    assert!(graph.has("libvirt-1-storage"));
    inside.delete_when_closed();
    shared.machine.quit();
}

#[test]
fn what_was_looked_up_and_is_gone_takes_no_memory() {
    let mut bench = Bench::new("others-forget", Attachment::StorageDaemon);
    bench.seal("before");
    for round in 0..40 {
        let point = bench.disk().internal(&format!("p{round}"));
        point.make().expect("mkdir");
        assert!(point.disk_raw().metadata().expect("stat").len() > 0);
        point.delete_when_closed();
        assert!(!point.exists());
    }
    let again = bench.disk().internal("p0");
    again.make().expect("mkdir");
    assert_eq!(
        again.json()["name"],
        "p0",
        "another thing under the same name"
    );
    bench.verify();
    bench.finish();
}
