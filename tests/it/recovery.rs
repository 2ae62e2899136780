//! kill -9, of qmpfs and of QEMU, at moments of no choosing: afterwards every verb was either done or never begun.

use std::time::{Duration, Instant};
use std::{fs, thread};

use libc::{EEXIST, ENOTCONN, ETIMEDOUT};
use qmpfs_tests::bench::{Bench, SIZE};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::sample;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, wait};
use serde_json::json;

/// Lets a moment pass: the fault comes at a time that no condition tells.
fn a_moment(milliseconds: u64) {
    wait::poll(Duration::from_millis(milliseconds), || None::<()>);
}

over_attachments! {
    /// The program dies 0, 4, 8, ... ms after a mkdir began.
    killed_in_mid_snapshot => |name, attachment| {
        let mut bench = Bench::new(name, attachment);
        bench.seal("first");
        for round in 0..8 {
            let point = bench.point(&format!("n{round}"));
            let before = bench.writer().acknowledged();
            bench.writer().step(&format!("mkdir n{round}, to be killed"));
            thread::scope(|scope| {
                let mkdir = scope.spawn(|| point.make());
                a_moment(round * 4);
                bench.mount.kill9();
                let _ = mkdir.join().expect("mkdir returns when the filesystem is gone");
            });
            bench.mount.mount_again();
            bench.writer().progress(5);
            let after = bench.writer().sent();
            wait::until_true("the disk is back", || bench.point("first").exists());
            if point.exists() {
                let sealed = bench.sealed(&format!("n{round}"));
                let bytes = bench.scratch().file("now.raw");
                oracle::convert(&sealed, &bytes);
                before.assert_between(&after, &bytes, qmpfs_tests::bench::WRITERS..qmpfs_tests::bench::SIZE);
                oracle::assert_same(&point.disk_raw(), &bytes);
                point.delete().expect("rmdir");
                bench.disk().wait().expect("the merge");
            }
            bench.verify();
        }
        bench.restart();
        bench.finish();
    }
}

over_attachments! {
    /// The program dies while a merge runs: the next mount finishes it or gives the point back.
    killed_in_mid_merge => |name, attachment| {
        let mut bench = Bench::with_bulk(name, attachment, 64 << 20);
        for (round, (moment, held_up)) in [(0, true), (0, false), (20, true), (60, false)].into_iter().enumerate() {
            let (lower, upper) = (format!("a{round}"), format!("b{round}"));
            bench.write_bulk();
            bench.seal(&lower);
            bench.write_bulk();
            bench.seal(&upper);
            bench.begin_removal(&lower);
            if held_up {
                bench.machine.limit_jobs(1 << 20); // it will still run when the next mount looks
            }
            a_moment(moment);
            bench.mount.kill9();
            bench.mount.mount_again();
            bench.machine.limit_jobs(0);
            wait::until_true("the disk is back", || bench.point(&upper).exists());
            let _ = bench.disk().wait();
            wait::until_true("the merge is finished or undone", || {
                bench.point(&lower).exists() || !bench.sealed(&lower).exists()
            });
            if bench.point(&lower).exists() {
                bench.point(&lower).delete().expect("rmdir, again");
                bench.disk().wait().expect("the merge");
            }
            assert!(!bench.sealed(&lower).exists(), "its file is gone");
            bench.verify();
            bench.remove(&upper); // into the active layer
        }
        bench.restart();
        bench.finish();
    }
}

#[test]
fn killed_while_the_active_layer_is_committed() {
    let mut bench = Bench::with_bulk("recovery-active-commit", Attachment::Blockdev, 64 << 20);
    for round in 0..6 {
        let name = format!("n{round}");
        bench.write_bulk();
        bench.seal(&name); // much below, little above: a commit of the active layer
        bench.begin_removal(&name);
        a_moment(round * 8);
        bench.mount.kill9();
        bench.mount.mount_again();
        wait::until_true("the disk is back", || bench.disk().0.is_dir());
        let _ = bench.disk().wait();
        if bench.point(&name).exists() {
            bench.point(&name).delete().expect("rmdir, again");
            bench.disk().wait().expect("the merge");
        }
        assert_eq!(
            bench.machine.qmp.run("query-status", json!({}))["running"],
            true,
            "the VM goes on"
        );
        bench.verify();
    }
    bench.restart();
    bench.finish();
}

#[test]
fn without_qemu_verbs_say_so_at_once_and_points_stay_readable() {
    let mut bench = Bench::new("recovery-qemu", Attachment::StorageDaemon);
    bench.seal("before");
    let expected = bench.bytes_of("before").to_path_buf();
    bench.machine.kill9();
    let asked = Instant::now();
    assert_errno(bench.point("after").make(), &[ENOTCONN, ETIMEDOUT]);
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "at once, not after {:?}",
        asked.elapsed()
    );
    oracle::assert_same(&bench.point("before").disk_raw(), &expected);
    bench.machine.start_again();
    bench.wait_for_disk();
    bench
        .point("after")
        .make()
        .expect("mkdir, with QEMU back on the same socket");
    assert_eq!(bench.disk().list("snapshots"), ["after", "before"]);
    oracle::assert_same(&bench.point("before").disk_raw(), &expected);
}

#[test]
fn qemu_killed_in_mid_merge_boots_the_same_disk() {
    let mut bench = Bench::with_bulk("recovery-qemu-merge", Attachment::StorageDaemon, 128 << 20);
    bench.write_bulk();
    bench.seal("one");
    bench.write_bulk();
    bench.seal("two");
    let expected = bench.bytes_of("two").to_path_buf();
    bench.begin_removal("one");
    a_moment(30);
    bench.machine.kill9();
    let chain = oracle::chain(&bench.active());
    assert_eq!(
        chain.first(),
        Some(&bench.active()),
        "the command line's file is the top: {chain:?}"
    );
    bench.machine.start_again();
    wait::until_true("QEMU is back in the mount", || {
        bench.mount.json("vm.json")["connection"] == "up"
    });
    let _ = bench.disk().wait();
    oracle::assert_same(&bench.point("two").disk_raw(), &expected);
    wait::until_true("the merge is finished or undone", || {
        bench.point("one").exists() || oracle::chain(&bench.active()).len() == 2
    });
    if bench.point("one").exists() {
        bench.point("one").delete().expect("rmdir, again");
        bench.disk().wait().expect("the merge");
    }
    oracle::assert_same(&bench.point("two").disk_raw(), &expected);
    assert_eq!(
        oracle::chain(&bench.active()),
        [bench.active(), bench.sealed("two")]
    );
}

#[test]
fn a_stale_mount_is_cleared_and_strays_with_it() {
    let mut bench = Bench::new("recovery-stale", Attachment::StorageDaemon);
    bench.seal("one");
    bench.mount.kill9();
    assert!(
        fs::metadata(bench.mount.path()).is_err(),
        "the kernel keeps a dead mount"
    );
    bench.mount.mount_again();
    wait::until_true("the disk is back", || bench.point("one").exists());
    bench.seal("two");
    bench.remove("one");
    bench.finish();
}

/// A commit that QEMU's death cut short is ended by a stream; qmpfs dies as well, and finds the stream at work.
fn stream_in_place_of_a_commit(name: &str, of_the_top: bool) {
    let scratch = Scratch::new(name);
    let dir = scratch.dir("images");
    oracle::create(&dir.join("web1.qcow2"), SIZE + (128 << 20));
    let options = ["-o", "merge=commit"];
    let mut bench = Bench::on(scratch, dir, Vec::new(), Attachment::Blockdev, &options);
    bench.write_bulk();
    bench.seal("one");
    // half of it lies above as well: both a commit and the stream after it have work to do
    let mut guest = bench.machine.nbd("vda");
    for offset in (SIZE..SIZE + (64 << 20)).step_by(1 << 20) {
        guest
            .write(offset, &[9; 1 << 20])
            .expect("the guest writes");
    }
    drop(guest);
    if !of_the_top {
        bench.seal("two");
    }
    bench.begin_removal("one");
    bench.machine.limit_jobs(1 << 20);
    a_moment(100);
    bench.machine.kill9();
    let disk = bench.scratch().file("disk.raw");
    oracle::convert(&bench.active(), &disk);
    bench.machine.start_again();
    let held = wait::poll(Duration::from_secs(5), || {
        (bench.machine.limit_jobs(1 << 20) > 0).then_some(())
    });
    bench.mount.kill9();
    bench.mount.mount_again();
    a_moment(200);
    bench.machine.limit_jobs(0);
    if held.is_none() {
        eprintln!("the stream was too quick to be met at work");
    }
    wait::until_true("the merge has ended", || !bench.sealed("one").exists());
    let _ = bench.disk().wait();
    if !of_the_top {
        let expected = bench.bytes_of("two").to_path_buf();
        oracle::assert_same(&bench.point("two").disk_raw(), &expected);
    }
    bench.machine.quit();
    let chain = oracle::chain(&bench.active());
    assert_eq!(chain.len(), if of_the_top { 1 } else { 2 }, "{chain:?}");
    let after = bench.scratch().file("after.raw");
    oracle::convert(&bench.active(), &after);
    oracle::assert_same(&after, &disk);
}

#[test]
fn a_stream_in_place_of_a_commit_is_found_at_work() {
    stream_in_place_of_a_commit("recovery-stream-for-commit", false);
}

#[test]
fn a_stream_in_place_of_an_active_commit_is_found_at_work() {
    stream_in_place_of_a_commit("recovery-stream-for-active", true);
}

/// `web1.a.qcow2` beside `web1.qcow2` looks like a layer of it. A merge of the one is no business of the other.
#[test]
fn disks_that_are_named_alike_are_told_apart() {
    let scratch = Scratch::new("recovery-named-alike");
    let dir = scratch.dir("images");
    let images = [dir.join("web1.qcow2"), dir.join("web1.a.qcow2")];
    for image in &images {
        oracle::create(image, 32 << 20);
    }
    let disks = [
        Disk::qcow2("vda", &images[0]),
        Disk::qcow2("vdb", &images[1]),
    ];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", "merge=commit"]);
    let (vda, vdb) = (mount.disk("vda"), mount.disk("vdb"));
    assert_errno(vda.snapshot("a").make(), &[EEXIST]);
    vda.snapshot("x").make().expect("mkdir");
    let mut guest = machine.nbd("vdb");
    for (fill, name) in [(1, "b"), (2, "c")] {
        for offset in (0..(24 << 20)).step_by(1 << 20) {
            guest
                .write(offset, &[fill; 1 << 20])
                .expect("the guest writes");
        }
        vdb.snapshot(name).make().expect("mkdir");
    }
    vdb.snapshot("b").delete().expect("rmdir");
    let held = machine.limit_jobs(1 << 20);
    mount.kill9();
    mount.mount_again();
    wait::until_true("the disks are back", || vda.0.is_dir() && vdb.0.is_dir());
    if held > 0 {
        assert_eq!(vdb.list("jobs").len(), 1, "taken up again");
        vda.snapshot("y").make().expect("the other disk is free");
    }
    machine.limit_jobs(0);
    vdb.wait().expect("the merge");
    assert!(vda.snapshot("x").exists());
    assert_eq!(vdb.list("snapshots"), ["c"]);
    let log = mount.text("log");
    assert!(
        !log.contains("'vda': could not") && !log.contains("left alone"),
        "{log}"
    );
}

over_attachments! {
    /// QEMU lets the header of the layer above skip the point before its tables are on the disk: they must be there
    /// when the point's file goes, also if the guest never flushes.
    qemu_killed_right_after_a_stream_has_lost_nothing => |name, attachment| {
        let scratch = Scratch::new(name);
        let image = scratch.dir("images").join("web1.qcow2");
        oracle::create(&image, 64 << 20);
        let disks = [Disk::qcow2("vda", &image)];
        let mut machine = Machine::start(&scratch, "vm", attachment, &disks);
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", "merge=stream"]);
        let disk = mount.disk("vda");
        let expected = scratch.file("expected.raw");
        // the second time the root node is the VM's own, and not one of ours
        for root in ["ours", "theirs"] {
            wait::until_true("the disk is in the mount", || disk.0.join("snapshots").is_dir());
            let mut guest = machine.nbd("vda");
            for megabyte in 0..24 {
                let offset = megabyte << 20;
                guest.write(offset, &[u8::try_from(megabyte).expect("small") + 1; 1 << 20]).expect("the guest writes");
            }
            disk.snapshot(root).make().expect("mkdir");
            if root == "theirs" {
                drop(guest);
                machine.quit();
                wait::until_true("QEMU is seen to be gone", || !is_up(&mount));
                machine.start_again();
                wait::until_true("QEMU is back", || is_up(&mount) && disk.snapshot(root).exists());
            }
            oracle::convert(&scratch.dir("images").join(format!("web1.{root}.qcow2")), &expected);
            disk.snapshot(root).delete().expect("rmdir");
            disk.wait().expect("the merge");
            machine.kill9();
            wait::until_true("QEMU is seen to be gone", || !is_up(&mount));
            assert_eq!(oracle::chain(&image), std::slice::from_ref(&image), "the point went");
            let found = scratch.file("found.raw");
            oracle::convert(&image, &found);
            oracle::assert_same(&found, &expected);
            machine.start_again();
            wait::until_true("QEMU is back", || is_up(&mount));
        }
    }
}

fn is_up(mount: &Mounted) -> bool {
    mount.json("vm.json")["connection"] == "up"
}

/// The monitor's connection ends at one command of a snapshot, QEMU goes on: all is finished, or taken back.
#[test]
fn a_connection_lost_at_any_command_of_a_first_snapshot_is_settled() {
    for number in sample::steps(0) {
        let mut bench = Bench::new("recovery-cut", Attachment::Blockdev);
        let steps = Steps::new(bench.scratch());
        let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
        bench.mount.mount_through(proxy.socket());
        bench.wait_for_disk();
        steps.arm(COMMANDS, number, Deed::CutBefore, [0, 0]);
        let made = bench.point("cut").make();
        let (fired, seen) = steps.disarm();
        if !fired {
            assert!(number > 6, "hardly a command was seen: {seen:?}");
            made.expect("undisturbed it works");
            break;
        }
        let mut left = String::new();
        let settled = wait::poll(wait::PATIENCE, || {
            let there = bench.point("cut").exists() && bench.mount_is_connected();
            bench.forget("cut");
            if there {
                let bytes = bench.scratch().file("cut.raw");
                oracle::convert(&bench.sealed("cut"), &bytes);
                bench.hold("cut", &bytes);
            }
            bench.left_over().map_err(|what| left = what).ok()
        });
        assert!(settled.is_some(), "cut at {seen:?}: {left}");
        bench.verify();
        bench.restart();
        bench.finish();
    }
}
