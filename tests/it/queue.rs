//! Removals that come while another merge is at work: accepted at once, done in their order, and
//! taken back as long as nothing was done to them.

use std::path::PathBuf;

use libc::{EBUSY, EEXIST, EIO, ENOENT};
use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::tree::{assert_errno, json, text, write_line};
use qmpfs_tests::{oracle, sh, wait};

/// So much of a bulk that a merge is still at work when the test gets to it.
const BULK: u64 = 256 << 20;

/// Points `names` with a bulk in each layer, and the merge of the first held up in its middle.
fn first_of(name: &str, attachment: Attachment, names: &[&str]) -> Bench {
    // a commit could not be cancelled
    let options = ["-o", "merge=stream"];
    let mut bench = Bench::with_bulk_and_options(name, attachment, BULK, &options);
    for name in names {
        bench.write_bulk();
        bench.seal(name);
    }
    bench.write(20);
    hold_up(&mut bench, names[0]);
    bench
}

/// Begins a removal and holds its job up: 4 KiB a second leave all the time a test needs.
fn hold_up(bench: &mut Bench, name: &str) {
    bench.begin_removal_at(name, 4 << 10);
}

/// The directory of the job that removes a point.
#[track_caller]
fn job_of(bench: &Bench, point: &str) -> PathBuf {
    let jobs = bench.disk().0.join("jobs");
    let found = bench
        .disk()
        .list("jobs")
        .into_iter()
        .map(|id| jobs.join(id))
        .find(|job| json(&job.join("progress"))["point"] == point);
    found.unwrap_or_else(|| panic!("no job removes {point}"))
}

#[track_caller]
fn state(bench: &Bench, point: &str) -> String {
    text(&job_of(bench, point).join("state")).trim().to_owned()
}

over_attachments! {
    /// `rmdir snapshots/*`: one job at a time, and the shell gets 0 at once.
    all_at_once => |name, attachment| {
        let mut bench = first_of(name, attachment, &["one", "two", "three", "four", "five"]);
        let snapshots = bench.disk().0.join("snapshots");
        sh!("cd {} && rmdir four two three", snapshots.display());
        for gone in ["four", "two", "three"] {
            bench.forget(gone);
            assert_eq!(state(&bench, gone), "queued");
        }
        assert_eq!(bench.disk().list("snapshots"), ["five"]);
        assert_eq!(bench.disk().list("layers").len(), 1, "theirs as well");
        bench.verify_points();
        assert_errno(bench.point("six").make(), &[EBUSY]);
        assert_errno(bench.point("two").make(), &[EEXIST]);
        assert_errno(bench.point("two").delete(), &[ENOENT]);
        assert_eq!(bench.disk().list("jobs").len(), 4);
        bench.machine.limit_jobs(0);
        bench.disk().wait().expect("all four merges");
        assert_eq!(bench.disk().list("jobs"), Vec::<String>::new());
        let log = bench.mount.text("log");
        let at = |point: &str| log.find(&format!("merge /disks/vda/snapshots/{point} ok")).expect("in the log");
        assert!(at("one") < at("four") && at("four") < at("two") && at("two") < at("three"), "{log}");
        bench.verify();
        bench.seal("six");
        bench.remove("five");
        bench.restart();
        bench.finish();
    }
}

#[test]
fn one_that_waits_is_taken_back() {
    let mut bench = first_of(
        "queue-cancel",
        Attachment::Drive,
        &["one", "two", "three", "four"],
    );
    for point in ["two", "three", "four"] {
        bench.point(point).delete().expect("rmdir");
    }
    bench.forget("three");
    let expected = bench.bytes_of("two").to_path_buf();
    sh!("rmdir {}", job_of(&bench, "two").display());
    assert!(bench.point("two").exists(), "its name is back at once");
    oracle::assert_same(&bench.point("two").disk_raw(), &expected);
    write_line(&job_of(&bench, "four").join("ctl"), b"cancel\n").expect("cancel");
    assert_eq!(bench.disk().list("snapshots"), ["four", "two"]);
    bench.verify_points();
    // and once more: it goes behind the one that waits
    bench.point("two").delete().expect("rmdir");
    bench.forget("two");
    bench.machine.limit_jobs(0);
    bench.disk().wait().expect("the merges");
    bench.verify();
    bench.finish();
}

#[test]
fn the_running_one_is_cancelled_and_the_others_go_on() {
    let mut bench = first_of(
        "queue-cancel-first",
        Attachment::Blockdev,
        &["one", "two", "three"],
    );
    bench.point("two").delete().expect("rmdir");
    bench.forget("two");
    sh!("rmdir {}", job_of(&bench, "one").display());
    bench.disk().wait().expect("the other merge");
    wait::until_true("its name comes back", || bench.point("one").exists());
    assert_eq!(bench.disk().list("snapshots"), ["one", "three"]);
    bench.point("one").delete().expect("rmdir");
    bench.disk().wait().expect("the merge");
    bench.verify();
    bench.finish();
}

/// A turn that comes while the VM is on its way to another QEMU waits until it is known where it stays.
#[test]
fn nobody_has_a_turn_while_the_vm_moves() {
    let points = ["one", "two", "three"];
    let mut bench = first_of("queue-migration", Attachment::Blockdev, &points);
    for point in ["two", "three"] {
        bench.begin_removal(point);
    }
    bench.machine.begin_migration();
    sh!("rmdir {}", job_of(&bench, "one").display());
    wait::until_true("it is told what is waited for", || {
        let log = bench.mount.text("log");
        log.contains("begin when it is known where the VM stays (active)")
    });
    assert_eq!(state(&bench, "two"), "queued");
    // and may be taken back
    sh!("rmdir {}", job_of(&bench, "three").display());
    assert!(bench.sealed("two").exists());
    bench.machine.cancel_migration();
    bench.disk().wait().expect("the other merge");
    assert!(!bench.sealed("two").exists());
    assert_eq!(bench.disk().list("snapshots"), ["one", "three"]);
    bench.finish();
}

#[test]
fn one_that_a_person_holds_is_passed_by_the_others() {
    let mut bench = first_of(
        "queue-held",
        Attachment::StorageDaemon,
        &["one", "two", "three", "four"],
    );
    for point in ["two", "three"] {
        bench.point(point).delete().expect("rmdir");
        bench.forget(point);
    }
    let two = job_of(&bench, "two");
    write_line(&two.join("ctl"), b"pause\n").expect("pause");
    write_line(&two.join("ctl"), b"speed 100M\n").expect("speed");
    assert_eq!(state(&bench, "two"), "paused");
    assert_eq!(json(&two.join("progress"))["limit"], 100 << 20);
    bench.machine.limit_jobs(0);
    wait::until_true("the others are done", || {
        bench.disk().list("jobs").len() == 1
    });
    assert_eq!(state(&bench, "two"), "paused");
    assert!(!bench.point("two").exists(), "it is still to go");
    assert_errno(bench.point("six").make(), &[EBUSY]);
    bench.verify_points();
    write_line(&two.join("ctl"), b"resume\n").expect("resume");
    bench.disk().wait().expect("the last merge");
    bench.verify();
    bench.finish();
}

#[test]
fn what_may_be_refused_is_refused_at_once_and_when_its_turn_comes() {
    let mut bench = first_of(
        "queue-refused",
        Attachment::Blockdev,
        &["one", "two", "three", "four"],
    );
    let reader = std::fs::File::open(bench.point("three").disk_raw()).expect("a reader");
    assert_errno(bench.point("three").delete(), &[EBUSY]);
    assert_errno(bench.point("nothing").delete(), &[ENOENT]);
    drop(reader);
    bench.point("two").delete().expect("rmdir");
    bench.point("three").delete_when_closed();
    bench.forget("three");
    assert_errno(
        std::fs::File::open(bench.point("two").disk_raw()),
        &[ENOENT],
    );
    // somebody else's image comes to stand on it while it waits
    let clone = bench.dir().join("clone.img");
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F qcow2 {}",
        bench.sealed("two").display(),
        clone.display()
    );
    bench.machine.limit_jobs(0);
    assert_errno(bench.disk().wait(), &[EIO]);
    assert!(bench.point("two").exists(), "its name is back");
    let job = bench.disk().only_job();
    assert!(
        text(&job.join("error")).contains("clone.img"),
        "{}",
        text(&job.join("error"))
    );
    assert_eq!(
        bench.disk().list("snapshots"),
        ["four", "two"],
        "the one behind it is gone"
    );
    std::fs::remove_file(&clone).expect("our clone");
    bench.verify_points();
    bench.point("two").delete().expect("rmdir, again");
    bench.forget("two");
    bench.disk().wait().expect("the old failure is history");
    bench.verify();
    bench.finish();
}

over_attachments! {
    /// Nothing was done to the points that wait: a daemon that dies forgets them.
    a_killed_daemon_forgets_the_queue => |name, attachment| {
        let mut bench = first_of(name, attachment, &["one", "two", "three", "four"]);
        for point in ["two", "three"] {
            bench.point(point).delete().expect("rmdir");
        }
        write_line(&job_of(&bench, "one").join("ctl"), b"pause\n").expect("pause");
        bench.mount.kill9();
        bench.mount.mount_again();
        wait::until_true("the disk is back", || bench.point("four").exists());
        assert_eq!(bench.disk().list("snapshots"), ["four", "three", "two"]);
        wait::until_true("the merge is taken up again, and not paused", || state(&bench, "one") == "running");
        bench.verify_points();
        bench.machine.limit_jobs(0);
        bench.disk().wait().expect("the merge");
        let jobs = bench.machine.qmp.run("query-jobs", serde_json::json!({}));
        assert_eq!(jobs, serde_json::json!([]), "QEMU has none left");
        bench.verify();
        bench.restart();
        bench.finish();
    }
}

/// An image that somebody makes on a point while it is streamed away keeps what it stands on.
#[test]
fn a_clone_made_while_a_point_is_streamed_keeps_its_base() {
    let mut bench = first_of("queue-clone", Attachment::Blockdev, &["one"]);
    let (point, clone) = (bench.sealed("one"), bench.dir().join("clone.qcow2"));
    let before = bench.scratch().file("before.raw");
    sh!(
        "qemu-img convert -U -O raw {} {}",
        point.display(),
        before.display()
    );
    sh!(
        "cd {}; qemu-img create -q -f qcow2 -F qcow2 -b {} {} >&2",
        bench.dir().display(),
        point.file_name().expect("a name").display(),
        clone.display()
    );
    bench.machine.limit_jobs(0);
    bench.disk().wait().expect("the merge ends");
    assert!(!bench.point("one").exists());
    let log = bench.mount.text("log");
    assert!(log.contains("stands on it; it is left alone"), "{log}");
    let after = bench.scratch().file("after.raw");
    oracle::convert(&clone, &after);
    oracle::assert_same(&after, &before);
    for gone in [clone, point] {
        std::fs::remove_file(gone).expect("it is there");
    }
    bench.finish();
}
