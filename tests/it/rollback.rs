//! `echo NAME > rollback`: a disk goes back to a point, forward again, and loses nothing on either way.

use std::fs::File;
use std::thread;

use libc::{EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP, EPERM, EROFS};
use qmpfs_tests::bench::Bench;
use qmpfs_tests::faults::{SmallFilesystem, names};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::off::{Off, SIZE};
use qmpfs_tests::rewrite::holding;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

const LIVE: &[&str] = &["-o", "live_rollback"];

#[test]
fn a_switched_off_disk_goes_back_and_forward_again() {
    let mut off = Off::with_points("rollback-off", &[]);
    let present = off.roll_back("one");
    off.boots_as("one");
    assert_eq!(
        oracle::chain(&off.image)[..2],
        [off.image.clone(), off.sealed("one")]
    );
    assert_eq!(off.disk().snapshot("one").json()["in_chain"], true);
    for point in ["two", &present] {
        assert_eq!(
            off.disk().snapshot(point).json()["in_chain"],
            false,
            "{point}"
        );
    }
    assert!(off.mount.text("disks/web1/chain.txt").contains(&present));

    // the VM runs on the old state; nothing that was before changes
    off.vm_runs(4);
    off.all_points_are_right();
    oracle::convert(&off.image, &off.bytes("now"));
    off.boots_as("now");

    // forward to what was active at first, and once more to where we just were
    let branch = off.roll_back(&present);
    off.boots_as(&present);
    let third = off.roll_back(&format!("snapshots/{branch}"));
    off.boots_as(&branch);
    // by its place in the chain, down to the template
    off.roll_back("layers/0-template");
    oracle::convert(&off.scratch.file("template.qcow2"), &off.bytes("template"));
    off.boots_as("template");
    // nothing was written since `third` was made, nor by rolling back itself
    oracle::assert_same(&off.bytes(&third), &off.bytes(&present));

    let before = off.disk().list("snapshots");
    off.vm_runs(5);
    assert_eq!(
        off.disk().list("snapshots"),
        before,
        "a new mount lists the same"
    );
    off.all_points_are_right();
    off.mount.unmount();
    assert!(
        names(off.dir()).iter().all(|name| !name.starts_with('.')),
        "no hidden name stays"
    );
    // without a QEMU, too
    let ro = Mounted::new(&off.scratch, &[&off.image], &["-o", "ro"]);
    assert_eq!(ro.disk("web1").list("snapshots"), before);
    for point in &before {
        oracle::assert_same(
            &ro.disk("web1").snapshot(point).disk_raw(),
            &off.bytes(point),
        );
    }
    assert_errno(ro.disk("web1").roll_back("one"), &[EROFS]);
}

#[test]
fn what_was_rolled_back_past_is_removed_from_its_end() {
    let mut off = Off::with_points("rollback-remove", &[]);
    let present = off.roll_back("one");
    // the chain stands on `one`, `two` on it as well, and what was active on `two`
    for point in ["one", "two"] {
        assert_errno(off.disk().snapshot(point).delete(), &[EBUSY]);
    }
    assert!(
        off.mount
            .text("log")
            .contains(&format!("web1.{present}.qcow2 stands on")),
        "{}",
        off.mount.text("log")
    );
    for first in ["two", &present] {
        let next = format!("rmdir disks/web1/snapshots/{first} first");
        assert!(off.mount.text("log").contains(&next), "{next}");
    }
    assert!(
        off.mount
            .text("disks/web1/snapshots/two/plan")
            .contains("refused")
    );
    assert_errno(off.disk().snapshot("two").make(), &[EEXIST]);

    let reader = File::open(off.disk().snapshot(&present).disk_raw()).expect("a reader");
    assert_errno(off.disk().snapshot(&present).delete(), &[EBUSY]);
    drop(reader);
    assert!(
        off.mount
            .text(&format!("disks/web1/snapshots/{present}/plan"))
            .contains("unlink")
    );
    off.disk().snapshot(&present).delete_when_closed();
    assert!(!off.sealed(&present).exists());
    off.disk().snapshot("two").delete_when_closed();
    assert_eq!(off.disk().list("snapshots"), ["one"]);
    off.all_points_are_right();
    off.disk().snapshot("one").delete_when_closed();
    off.disk().wait().expect("the merge");
    off.boots_as("one");
    off.mount.unmount();
    assert_eq!(names(off.dir()), ["web1.qcow2"]);
}

/// Neither stream nor commit touches what another branch stands on.
#[test]
fn merges_leave_other_branches_right() {
    for policy in ["merge=stream", "merge=commit"] {
        let name = format!("rollback-{}", policy.replace('=', "-"));
        let mut off = Off::with_points(&name, &["-o", policy]);
        off.disk().snapshot("three").make().expect("mkdir");
        oracle::convert(&off.image, &off.bytes("three"));
        off.vm_runs(4);
        let present = off.roll_back("two");
        assert_errno(off.disk().snapshot("two").delete(), &[EBUSY]);
        // below the fork: `one` goes into `two`, or `two` into it, and three and the present go on
        off.disk().snapshot("one").delete_when_closed();
        off.disk()
            .wait()
            .unwrap_or_else(|e| panic!("{e}\n{}", off.mount.text("log")));
        assert_eq!(off.disk().list("snapshots"), [&present, "three", "two"]);
        off.all_points_are_right();
        off.boots_as("two");
        // above it: a new point of the new branch comes and goes
        off.vm_runs(5);
        oracle::convert(&off.image, &off.bytes("new"));
        off.disk().snapshot("new").make().expect("mkdir new");
        off.vm_runs(6);
        oracle::convert(&off.image, &off.bytes("now"));
        off.disk().snapshot("new").delete_when_closed();
        off.disk()
            .wait()
            .unwrap_or_else(|e| panic!("{e}\n{}", off.mount.text("log")));
        off.all_points_are_right();
        off.boots_as("now");
        let again = off.roll_back(&present);
        off.boots_as(&present);
        off.disk().snapshot(&again).delete_when_closed();
        off.all_points_are_right();
    }
}

#[test]
fn what_cannot_be_rolled_back_is_refused_and_nothing_happens() {
    let mut off = Off::with_points("rollback-refused", &[]);
    off.disk()
        .internal("inside")
        .make()
        .expect("mkdir internal");
    off.disk().internal("two").make().expect("mkdir internal");
    oracle::convert(&off.image, &off.bytes("now"));
    for (line, errno) in [
        ("nothing", ENOENT),
        ("inside", EOPNOTSUPP),
        ("internal/inside", EOPNOTSUPP),
        ("two", EINVAL),
        ("../two", ENOENT),
        ("", EINVAL),
    ] {
        assert_errno(off.disk().roll_back(line), &[errno]);
    }
    let log = off.mount.text("log");
    assert!(log.contains("snapshots/two or internal/two"), "{log}");
    assert!(
        log.contains("qemu-img snapshot -a"),
        "the way by hand: {log}"
    );
    off.boots_as("now");
    assert_eq!(names(off.dir()).len(), 3);
    off.roll_back("snapshots/two");
    off.boots_as("two");
}

#[test]
fn a_disk_that_grew_goes_back_to_its_size() {
    let mut off = Off::with_points("rollback-size", &[]);
    off.mount.unmount();
    sh!("qemu-img resize -q {} 32M", off.image.display());
    off.mount.mount_again();
    let large = off.roll_back("one");
    assert_eq!(off.disk().json()["virtual_size"], SIZE);
    off.roll_back(&large);
    assert_eq!(off.disk().json()["virtual_size"], 32 << 20);
    off.boots_as(&large);
}

#[test]
fn without_room_nothing_is_rolled_back() {
    let scratch = Scratch::new("rollback-full");
    let Some(small) = SmallFilesystem::new(&scratch, 64) else {
        return;
    };
    let image = small.path().join("web1.qcow2");
    oracle::create(&image, SIZE);
    let mount = Mounted::new(&scratch, &[&image], &[]);
    let disk = mount.disk("web1");
    disk.snapshot("one").make().expect("mkdir");
    small.fill_but(1 << 20);
    let before = names(small.path());
    assert_errno(disk.roll_back("one"), &[ENOSPC]);
    assert_eq!(names(small.path()), before);
    small.make_room();
    disk.roll_back("one").expect("there is room again");
    drop(mount);
}

/// A file that somebody starts a VM from is no instant any more.
#[test]
fn a_branch_that_somebody_writes_is_not_read() {
    let mut off = Off::with_points("rollback-written", &[]);
    let present = off.roll_back("one");
    let vm = Machine::start(
        &off.scratch,
        "other",
        Attachment::StorageDaemon,
        &[Disk::qcow2("vda", &off.sealed(&present))],
    );
    assert_errno(
        File::open(off.disk().snapshot(&present).disk_raw()),
        &[EBUSY],
    );
    assert_errno(off.disk().snapshot(&present).delete(), &[EBUSY]);
    assert_errno(off.disk().roll_back(&present), &[EBUSY]);
    oracle::assert_same(&off.disk().snapshot("two").disk_raw(), &off.bytes("two"));
    drop(vm);
    wait::until_true("the view opens", || {
        File::open(off.disk().snapshot(&present).disk_raw()).is_ok()
    });
    off.all_points_are_right();
}

#[test]
fn a_running_vm_is_left_alone_unless_asked_for() {
    let mut bench = Bench::new("rollback-running", Attachment::Blockdev);
    bench.seal("one");
    assert_errno(bench.disk().roll_back("one"), &[EPERM]);
    let log = bench.mount.text("log");
    assert!(log.contains("-o live_rollback"), "{log}");
    bench.verify();
    bench.finish();
}

over_attachments! {
    /// The disk of a running VM, after which the VM begins anew on it; twice, and forward again.
    a_running_vm_goes_back => live
}

#[test]
fn a_running_vm_goes_back_under_a_filter() {
    live("rollback-throttled", Attachment::BlockdevThrottled);
}

#[test]
fn a_running_vm_goes_back_past_the_page_cache() {
    live("rollback-direct", Attachment::BlockdevDirect);
}

#[test]
fn a_running_vm_goes_back_with_auto_read_only() {
    live("rollback-aro", Attachment::BlockdevAutoReadOnly);
}

fn live(name: &str, attachment: Attachment) {
    let mut bench = Bench::with_options(name, attachment, LIVE);
    bench.write(10);
    bench.seal("one");
    bench.write(10);
    bench.seal("two");
    bench.write(10);
    // QEMU has the active layer open under its alias
    let present = bench.roll_back("one");
    running(&mut bench);
    bench.write(10);
    bench.restart();
    // QEMU has the active layer open under its own name
    let branch = bench.roll_back(&present);
    running(&mut bench);
    bench.write(5);
    bench.restart();
    bench.roll_back("two");
    running(&mut bench);
    bench.remove(&branch);
    bench.seal("three");
    bench.remove("three");
    bench.restart();
    bench.finish();
}

#[track_caller]
fn running(bench: &mut Bench) {
    if bench.machine.attachment().is_vm() {
        let status = bench.machine.qmp.run("query-status", json!({}));
        assert_eq!(status["status"], "running", "the VM goes on");
    }
}

/// A VM that stood still before stands still after, and has been reset.
#[test]
fn a_paused_vm_stays_paused() {
    let mut bench = Bench::with_options("rollback-paused", Attachment::Blockdev, LIVE);
    bench.seal("one");
    bench.write(5);
    let active = bench.begin_rollback();
    bench.machine.qmp.run("stop", json!({}));
    bench.disk().roll_back("one").expect("a rollback");
    let status = bench.machine.qmp.run("query-status", json!({}));
    assert_eq!(status["status"], "prelaunch");
    bench.machine.qmp.run("cont", json!({}));
    bench.rolled_back("one", &active);
    bench.restart();
    bench.finish();
}

/// `-no-reboot` makes of the reset an end.
#[test]
fn a_vm_that_a_reset_would_end_is_not_rolled_back() {
    let scratch = Scratch::new("rollback-no-reboot");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, SIZE);
    let mut machine = Machine::start_with(
        &scratch,
        "vm",
        Attachment::Blockdev,
        &[Disk::qcow2("vda", &image)],
        &["-no-reboot".to_owned()],
    );
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], LIVE);
    let disk = mount.disk("vda");
    wait::until_true("the disk is there", || disk.0.is_dir());
    disk.snapshot("one").make().expect("mkdir");
    assert_errno(disk.roll_back("one"), &[EOPNOTSUPP]);
    assert!(mount.text("log").contains("-no-reboot"));
    assert_eq!(machine.qmp.run("query-status", json!({}))["running"], true);
    assert_eq!(disk.list("snapshots"), ["one"]);
}

/// By another monitor, between the look at the disk and the exchange: a running VM's disk does not change its size by it.
#[test]
fn a_disk_that_is_resized_meanwhile_is_not_rolled_back() {
    let scratch = Scratch::new("rollback-resized");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 16 << 20);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    // nobody resizes under a server
    machine.qmp.run("nbd-server-stop", json!({}));
    let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], LIVE);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    disk.snapshot("one").make().expect("a snapshot");
    let node = disk.json()["node_name"].clone();
    let (monitor, held) = holding(&scratch, machine.qmpfs_socket(), "stop");
    mount.mount_through(&monitor);
    let rolled_back = thread::scope(|scope| {
        let back = scope.spawn(|| disk.roll_back("one"));
        let size = json!({"node-name": node, "size": 32 << 20});
        held.meanwhile(|| machine.qmp.run("block_resize", size));
        back.join().expect("no panic")
    });
    assert_errno(rolled_back, &[EBUSY]);
    let log = mount.text("log");
    assert!(log.contains("resized in this moment"), "{log}");
    assert_eq!(machine.qmp.run("query-status", json!({}))["running"], true);
    assert_eq!(disk.json()["virtual_size"], 32 << 20);
    assert_eq!(disk.list("snapshots"), ["one"]);
}
