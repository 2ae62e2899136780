//! `rmdir snapshots/NAME`: block-stream or block-commit, at the bottom, in the middle and at the top of the chain,
//! while every other point stays right and the guest goes on writing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use libc::EBUSY;
use qmpfs_tests::bench::{Bench, SIZE};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::model::Dice;
use qmpfs_tests::process::Process;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{assert_errno, text};
use qmpfs_tests::{oracle, sh, wait};

/// Three points, of which `victim` is removed. Few bytes in its own layer make a stream, few bytes above it a commit.
fn remove_one_of_three(name: &str, attachment: Attachment, victim: usize, command: &str) {
    let mut bench = Bench::new(name, attachment);
    let points = ["one", "two", "three"];
    for (i, point) in points.iter().enumerate() {
        let own_layer = i == victim;
        let many = own_layer == (command == "commit");
        bench.write(if many { 300 } else { 2 });
        bench.seal(point);
    }
    bench.write(if command == "stream" { 300 } else { 2 });

    let plan = qmpfs_tests::tree::text(&bench.point(points[victim]).0.join("plan"));
    assert!(
        plan.contains(command),
        "expected a {command}; the plan is: {plan}"
    );
    bench.remove(points[victim]);
    assert!(!bench.sealed(points[victim]).exists(), "its file is gone");
    bench.seal("four");
    bench.restart();
    for rest in points
        .iter()
        .filter(|p| **p != points[victim])
        .chain(&["four"])
    {
        bench.remove(rest);
    }
    assert_eq!(
        oracle::chain(&bench.active()),
        [bench.active()],
        "one file again"
    );
    bench.finish();
}

over_attachments!(stream_at_the_bottom => |name, attachment| remove_one_of_three(name, attachment, 0, "stream"));
over_attachments!(stream_in_the_middle => |name, attachment| remove_one_of_three(name, attachment, 1, "stream"));
over_attachments!(stream_at_the_top => |name, attachment| remove_one_of_three(name, attachment, 2, "stream"));
over_attachments!(commit_at_the_bottom => |name, attachment| remove_one_of_three(name, attachment, 0, "commit"));
over_attachments!(commit_in_the_middle => |name, attachment| remove_one_of_three(name, attachment, 1, "commit"));
over_attachments!(commit_of_the_active_layer => |name, attachment| remove_one_of_three(name, attachment, 2, "commit"));

over_attachments! {
    /// Snapshots, merges and restarts in an order nobody thought of.
    a_random_walk => |name: &str, attachment| {
        let mut bench = Bench::new(name, attachment);
        let mut dice = Dice::new(name.len() as u64);
        let mut points: Vec<String> = Vec::new();
        for step in 0..14 {
            bench.write(usize::try_from(dice.below(120)).expect("small"));
            if points.is_empty() || dice.below(100) < 50 {
                points.push(format!("n{step}"));
                bench.seal(&points[points.len() - 1]);
            } else {
                let victim = usize::try_from(dice.below(points.len() as u64)).expect("small");
                bench.remove(&points.remove(victim));
            }
            if dice.below(100) < 15 {
                bench.restart();
            }
        }
        bench.finish();
    }
}

#[test]
fn an_open_view_is_busy_and_the_log_says_who() {
    let mut bench = Bench::new("merge-busy", Attachment::Blockdev);
    bench.seal("one");
    bench.seal("two");
    let reader = File::open(bench.point("one").disk_raw()).expect("a reader");
    assert_errno(bench.point("one").delete(), &[EBUSY]);
    assert!(
        bench
            .mount
            .text("log")
            .contains(&std::process::id().to_string()),
        "the reader's pid is in the log"
    );
    bench.verify();
    drop(reader);
    bench.point("one").delete_when_closed();
    bench.disk().wait().expect("the merge");
    bench.forget("one");
    bench.verify();
    bench.finish();
}

over_attachments! {
    /// A commit brings what is read into the file below: there it is as busy as it was.
    what_is_read_stays_busy_where_it_is_committed_to => |name, attachment| {
        let mut bench = Bench::with_options(name, attachment, &["-o", "merge=commit"]);
        // it mounts again for that
        bench.limit_what_begins(0);
        for point in ["one", "two", "three"] {
            bench.write(60);
            bench.seal(point);
        }
        bench.write(20);
        let expected = File::open(bench.bytes_of("two")).expect("the oracle's bytes");
        let reader = File::open(bench.point("two").disk_raw()).expect("a reader");
        bench.remove("one");
        assert_errno(bench.point("two").delete(), &[EBUSY]);
        // nor while it waits behind another one
        bench.begin_removal_at("three", 1);
        assert_errno(bench.point("two").delete(), &[EBUSY]);
        bench.machine.limit_jobs(0);
        bench.disk().wait().expect("the merge");
        assert_reads(&reader, &expected);
        drop(reader);
        bench.point("two").delete_when_closed();
        bench.disk().wait().expect("the merge");
        bench.forget("two");
        bench.verify();
        bench.finish();
    }
}

/// Written in part, a compressed cluster moves, and others take its place: nothing is committed into such a layer.
#[test]
fn large_compressed_clusters_are_never_moved_under_a_reader() {
    let scratch = Scratch::new("merge-compressed");
    let dir = scratch.dir("images");
    let (plain, disk) = (scratch.file("plain.raw"), dir.join("web1.qcow2"));
    sh!(
        "truncate -s {SIZE} {0} && yes 0123456789abcde | head -c 64M >>{0} && qemu-img convert -c -O qcow2 -o cluster_size=2M {0} {1}",
        plain.display(),
        disk.display()
    );
    let mut bench = Bench::on(scratch, dir, Vec::new(), Attachment::Blockdev, &[]);
    bench.seal("one");
    // a part of each of its clusters
    let mut guest = bench.machine.nbd("vda");
    for offset in (SIZE..SIZE + (64 << 20)).step_by(2 << 20) {
        guest.write(offset, &[9; 4096]).expect("the guest writes");
    }
    drop(guest);
    for point in ["two", "three"] {
        bench.seal(point);
    }
    let plan = text(&bench.point("one").0.join("plan"));
    assert!(plan.contains("compressed clusters are larger"), "{plan}");
    let expected = File::open(bench.bytes_of("three")).expect("the oracle's bytes");
    let reader = File::open(bench.point("three").disk_raw()).expect("a reader");
    bench.remove("one");
    assert_reads(&reader, &expected);
    drop(reader);
    bench.finish();
}

/// The same bytes, all along the disk.
#[track_caller]
fn assert_reads(reader: &File, expected: &File) {
    let size = expected.metadata().expect("its size").len();
    let (mut seen, mut wanted) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..size).step_by(1 << 20) {
        reader
            .read_exact_at(&mut seen, at)
            .unwrap_or_else(|error| panic!("read at {at}: {error}"));
        expected
            .read_exact_at(&mut wanted, at)
            .expect("the oracle's bytes");
        assert!(seen == wanted, "other bytes at {at}");
    }
}

#[test]
fn a_reader_of_another_point_sees_every_byte_through_the_merge() {
    let mut bench = Bench::with_bulk("merge-reader", Attachment::Blockdev, 128 << 20);
    for point in ["one", "two", "three"] {
        bench.write(60);
        bench.write_bulk();
        bench.seal(point);
    }
    let (view, expected) = (
        bench.point("three").disk_raw(),
        bench.bytes_of("three").to_path_buf(),
    );
    let open = File::open(&view).expect("a reader that stays");
    bench.begin_removal("two");
    while !bench.disk().list("jobs").is_empty() {
        oracle::assert_same(&view, &expected);
    }
    drop(open);
    bench.disk().wait().expect("the merge");
    bench.verify();
    bench.finish();
}

#[test]
fn a_template_is_neither_written_nor_removed() {
    let scratch = Scratch::new("merge-template");
    let dir = scratch.dir("images");
    let template = scratch.dir("templates").join("debian.qcow2");
    oracle::create(&template, SIZE);
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F qcow2 {}",
        template.display(),
        dir.join("web1.qcow2").display()
    );
    let before = sh!("sha256sum {}", template.display());
    let mut bench = Bench::on(
        scratch,
        dir,
        vec![template.clone()],
        Attachment::Blockdev,
        &[],
    );
    bench.seal("one");
    bench.seal("two");
    bench.remove("one");
    bench.remove("two");
    assert_eq!(
        oracle::chain(&bench.active()),
        [bench.active(), template.clone()]
    );
    assert_eq!(sh!("sha256sum {}", template.display()), before);
    bench.finish();
}

#[test]
fn no_delete_makes_points_and_deletes_none() {
    let mut bench = Bench::with_options(
        "merge-no-delete",
        Attachment::StorageDaemon,
        &["-o", "no_delete"],
    );
    bench.seal("one");
    assert_errno(bench.point("one").delete(), &[libc::EPERM]);
    bench.verify();
    bench.finish();
}

/// Two points with large layers, and the merge of the first begun and held up.
pub(crate) fn held_up_merge(name: &str) -> Bench {
    let mut bench = Bench::with_bulk(name, Attachment::StorageDaemon, 256 << 20);
    for point in ["one", "two"] {
        bench.write_bulk();
        bench.seal(point);
        bench.write(300); // more in the upper layer than in the lower: a stream, which can be taken back
    }
    bench.begin_removal_at("one", 1 << 20);
    bench
}

#[test]
fn a_cancelled_merge_gives_the_point_back() {
    let mut bench = held_up_merge("merge-cancel");
    let jobs = bench.disk().list("jobs");
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    let job = bench.disk().0.join("jobs").join(&jobs[0]);
    let state = qmpfs_tests::tree::text(&job.join("state"));
    assert!(
        !state.trim().is_empty()
            && !qmpfs_tests::tree::text(&job.join("progress"))
                .trim()
                .is_empty()
    );
    std::fs::remove_dir(&job).expect("rmdir cancels a stream");
    bench.disk().wait().expect("nothing is at work any more");
    wait::until_true("the name comes back", || bench.point("one").exists());
    assert_eq!(oracle::chain(&bench.active()).len(), 3);
    bench.point("one").delete().expect("rmdir, again");
    bench.disk().wait().expect("the merge");
    bench.verify();
    bench.finish();
}

#[test]
fn a_signal_ends_the_wait_and_ls_never_freezes() {
    let mut bench = held_up_merge("merge-wait");
    let mut cat = Command::new("cat");
    cat.arg(bench.disk().0.join("wait"));
    let mut cat = Process::spawn(cat, &bench.scratch().file("cat.log"), libc::SIGKILL);
    wait::until_true("cat waits in read()", || {
        let path = format!("/proc/{}/syscall", cat.pid());
        std::fs::read_to_string(path).is_ok_and(|line| line.starts_with("0 "))
    });
    let asked = Instant::now();
    assert_eq!(bench.disk().list("snapshots"), ["two"]);
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "ls does not wait for the merge"
    );
    assert!(cat.ended().is_none(), "the merge still runs");
    assert_errno(bench.point("three").make(), &[EBUSY]);
    assert!(
        cat.terminate(Duration::from_secs(5)),
        "a signal ends the wait"
    );
    bench.machine.limit_jobs(0);
    bench.disk().wait().expect("the merge");
    bench.verify();
    bench.finish();
}

#[test]
fn a_throttled_disk_is_merged_by_streams() {
    let mut bench = Bench::new("merge-throttled", Attachment::BlockdevThrottled);
    bench.write(100);
    bench.seal("one");
    bench.write(2);
    bench.seal("two");
    bench.write(2);
    bench.remove("one");
    bench.remove("two");
    bench.restart();
    bench.finish();
}

/// A view that was opened a moment before the rmdir was accepted keeps its bytes.
#[test]
fn who_opens_a_point_while_it_goes_never_reads_a_mixed_one() {
    let scratch = Scratch::new("merge-open-race");
    let dir = scratch.dir("images");
    oracle::create(&dir.join("web1.qcow2"), SIZE);
    let options = ["-o", "merge=commit"];
    let mut bench = Bench::on(
        scratch,
        dir,
        Vec::new(),
        Attachment::StorageDaemon,
        &options,
    );
    bench.seal("zero");
    for round in 0..12 {
        let name = format!("n{round}");
        bench.write(60);
        bench.seal(&name);
        bench.write(60);
        let expected = bench.bytes_of(&name).to_path_buf();
        let point = bench.point(&name).disk_raw();
        let ended = std::sync::atomic::AtomicBool::new(false);
        let opened: Vec<File> = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4u64)
                .map(|reader| {
                    let (point, ended) = (&point, &ended);
                    scope.spawn(move || {
                        wait::poll(Duration::from_micros(500 * (round + reader)), || None::<()>);
                        File::open(point).ok().inspect(|_| {
                            wait::until_true("rmdir returns", || {
                                ended.load(std::sync::atomic::Ordering::SeqCst)
                            });
                        })
                    })
                })
                .collect();
            let _ = bench.point(&name).delete();
            ended.store(true, std::sync::atomic::Ordering::SeqCst);
            readers
                .into_iter()
                .filter_map(|reader| reader.join().expect("a reader"))
                .collect()
        });
        let _ = bench.disk().wait();
        for file in &opened {
            let held =
                Path::new("/proc/self/fd").join(std::os::fd::AsRawFd::as_raw_fd(file).to_string());
            oracle::assert_same(&held, &expected);
        }
        drop(opened);
        if bench.point(&name).exists() {
            bench.point(&name).delete_when_closed();
            bench.disk().wait().expect("the merge");
        }
        bench.forget(&name);
    }
    bench.verify();
    bench.finish();
}
