//! A VM that is being migrated to another QEMU, which has its files open by the names they have: its chain stays as it is.

use std::{fs, thread};

use libc::EBUSY;
use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::rewrite::holding;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, wait};
use serde_json::json;

/// What the other QEMU would write into, or never know of, is not made.
#[test]
fn a_vm_that_moves_keeps_its_chain() {
    let options = ["-o", "live_rollback"];
    let mut bench = Bench::with_options("migration-verbs", Attachment::Blockdev, &options);
    bench.seal("one");
    bench.machine.begin_migration();
    let disk = bench.disk();
    assert_errno(disk.snapshot("two").make(), &[EBUSY]);
    assert_errno(fs::create_dir(bench.mount.snapshots("two")), &[EBUSY]);
    assert_errno(bench.point("one").delete(), &[EBUSY]);
    assert_errno(disk.internal("two").make(), &[EBUSY]);
    let checkpoint = bench.mount.path().join("checkpoints/two");
    assert_errno(fs::create_dir(checkpoint), &[EBUSY]);
    assert_errno(disk.roll_back("one"), &[EBUSY]);
    let log = bench.mount.text("log");
    let told = log.matches("the VM is being migrated (active)").count();
    assert_eq!(told, 6, "{log}");
    bench.verify();
    bench.machine.cancel_migration();
    bench.seal("two");
    bench.remove("one");
    bench.restart();
    bench.finish();
}

/// It begins between the first look and the last step: all is taken back, and the guest goes on.
#[test]
fn a_migration_that_begins_meanwhile_is_seen() {
    let mut bench = Bench::new("migration-meanwhile", Attachment::Blockdev);
    let (monitor, held) = holding(bench.scratch(), bench.machine.qmpfs_socket(), "stop");
    bench.mount.mount_through(&monitor);
    bench.wait_for_disk();
    let point = bench.point("one");
    let made = thread::scope(|scope| {
        let made = scope.spawn(|| point.make());
        held.meanwhile(|| bench.machine.begin_migration());
        made.join().expect("no panic")
    });
    assert_errno(made, &[EBUSY]);
    let status = bench.machine.qmp.run("query-status", json!({}));
    assert_eq!(status["running"], true);
    bench.verify();
    bench.machine.cancel_migration();
    bench.seal("one");
    bench.finish();
}

/// A stream that has copied all takes a file out of the chain as its last step.
#[test]
fn a_stream_ends_when_the_vm_stays() {
    let options = ["-o", "merge=stream"];
    let mut bench = Bench::with_options("migration-stream", Attachment::Blockdev, &options);
    bench.write(20);
    bench.seal("one");
    bench.seal("two");
    bench.begin_removal_at("one", 1);
    bench.machine.begin_migration();
    bench.machine.limit_jobs(0);
    wait::until_true("it has copied all, and waits", || {
        let log = bench.mount.text("log");
        log.contains("the merge cannot end yet: the VM is being migrated")
    });
    assert!(bench.sealed("one").exists());
    bench.verify_points();
    bench.machine.cancel_migration();
    bench.disk().wait().expect("the merge ends by itself");
    assert!(!bench.sealed("one").exists());
    bench.verify();
    bench.finish();
}

/// What a killed mount left is put right when the VM stays, and not before.
#[test]
fn nothing_is_put_right_while_a_vm_moves() {
    let mut bench = Bench::new("migration-recovery", Attachment::Blockdev);
    bench.seal("one");
    bench.mount.kill9();
    // a snapshot that was just begun
    let stray = bench.dir().join(".web1.qcow2.0123456789ab");
    fs::write(&stray, b"").expect("a file");
    bench.machine.begin_migration();
    bench.mount.mount_again();
    bench.wait_for_disk();
    let log = bench.mount.text("log");
    assert!(
        log.contains("could not be settled: the VM is being migrated"),
        "{log}"
    );
    assert!(stray.exists());
    bench.verify_points();
    bench.machine.cancel_migration();
    wait::until_true("the stray goes", || !stray.exists());
    bench.seal("two");
    bench.finish();
}

/// The disks of a VM that has gone are another QEMU's, until it is told to go on here.
#[test]
fn a_vm_that_has_gone_is_not_changed() {
    let scratch = Scratch::new("migration-gone");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 16 << 20);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    machine.migrate();
    assert_errno(disk.snapshot("one").make(), &[EBUSY]);
    let log = mount.text("log");
    assert!(log.contains("has gone to another QEMU"), "{log}");
    machine.qmp.run("cont", json!({}));
    disk.snapshot("one").make().expect("it is here again");
}
