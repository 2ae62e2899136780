//! `qmpfs wait`: follows the work that a path means, and says by its exit code how it ended.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use qmpfs_tests::mounted::program;
use qmpfs_tests::process::Process;
use qmpfs_tests::tree::{json, text, write_line};
use qmpfs_tests::{bench::Bench, oracle, sh, wait};

use crate::merge::held_up_merge;

fn wait_for(path: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.arg("wait").args(options).arg(path);
    command.output().expect("qmpfs wait")
}

/// In the background; its standard error goes to a file.
fn waiting(bench: &Bench, path: &Path) -> Process {
    let mut command = Command::new(program());
    command.arg("wait").arg(path);
    Process::spawn(command, &bench.scratch().file("wait.log"), libc::SIGKILL)
}

#[test]
fn a_removal_is_followed_to_its_end() {
    let mut bench = held_up_merge("wait-removal");
    let job = bench.disk().only_job();
    let point = bench.point("one").0;
    assert!(!point.exists());
    let waiters: Vec<Process> = [
        point,
        job.clone(),
        job.join("progress"),
        bench.disk().0,
        bench.mount.path().to_path_buf(),
    ]
    .iter()
    .map(|path| waiting(&bench, path))
    .collect();
    // what moves, moves when it is read, and a rate is known
    bench.machine.limit_jobs(8 << 20);
    let first = json(&job.join("progress"))["current"].as_u64();
    wait::until_true("it moves", || {
        let now = json(&job.join("progress"));
        now["current"].as_u64() > first
            && now["bytes_per_second"].is_u64()
            && now["seconds_left"].is_u64()
    });
    let progress = json(&job.join("progress"));
    assert_eq!(progress["limit"], 8 << 20, "{progress}");
    assert_eq!(progress["state"], "running");
    bench.machine.limit_jobs(0);
    for mut waiter in waiters {
        let status = wait::until("the waiting ends", || waiter.ended());
        assert!(status.success(), "{status}\n{}", waiter.log());
    }
    let said = text(&bench.scratch().file("wait.log"));
    assert!(
        said.contains("stream of 'one'") && !said.contains('\r'),
        "{said}"
    );
    for gone in [
        bench.point("one").0,
        bench.disk().0,
        bench.mount.path().to_path_buf(),
    ] {
        assert!(wait_for(&gone, &[]).status.success(), "nothing is at work");
    }
    bench.verify();
    bench.finish();
}

#[test]
fn a_cancelled_and_a_failed_removal_end_with_1() {
    let mut bench = held_up_merge("wait-failed");
    let job = bench.disk().only_job();
    let mut waiter = waiting(&bench, &bench.point("one").0);
    wait::until_true("it has begun to wait", || !waiter.log().is_empty());
    sh!("rmdir {}", job.display());
    let status = wait::until("the waiting ends", || waiter.ended());
    assert_eq!(status.code(), Some(1), "{}", waiter.log());
    assert!(waiter.log().contains("there again"), "{}", waiter.log());
    wait::until_true("the point is back", || bench.point("one").exists());

    // one that fails: its turn comes when another image stands on it
    bench.begin_removal_at("two", 4 << 10);
    bench.point("one").delete().expect("rmdir");
    let clone = bench.dir().join("clone.img");
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F qcow2 {}",
        bench.sealed("one").display(),
        clone.display()
    );
    bench.machine.limit_jobs(0);
    for (path, options) in [(bench.point("one").0, &[][..]), (bench.disk().0, &["-q"])] {
        let output = wait_for(&path, options);
        assert_eq!(output.status.code(), Some(1), "{}", sh::said(&output));
        assert!(
            sh::said(&output).contains("clone.img stands on"),
            "{}",
            sh::said(&output)
        );
    }
    let quiet = sh::said(&wait_for(&bench.disk().0, &["-q"]));
    assert!(
        quiet.starts_with("qmpfs: "),
        "nothing but the reason: {quiet}"
    );
    std::fs::remove_file(&clone).expect("our clone");
    bench.point("one").delete().expect("rmdir, again");
    assert!(wait_for(&bench.point("one").0, &[]).status.success());
    bench.verify();
    bench.finish();
}

#[test]
fn ctrl_c_ends_the_waiting_alone_and_a_pipe_that_closes_as_well() {
    let mut bench = held_up_merge("wait-interrupted");
    let mut waiter = waiting(&bench, &bench.disk().0);
    wait::until_true("it has begun to wait", || !waiter.log().is_empty());
    sh!("kill -INT {}", waiter.pid());
    let status = wait::until("the waiting ends", || waiter.ended());
    assert!(!status.success());
    assert_eq!(bench.disk().list("jobs").len(), 1, "the merge goes on");
    // on a terminal one line moves
    let line = format!("{} wait {}", program().display(), bench.disk().0.display());
    let log = bench.scratch().file("terminal.log");
    let mut script = Command::new("script");
    script.args(["-qefc", &line]).arg(&log);
    let mut script = Process::spawn(script, &bench.scratch().file("script.log"), libc::SIGTERM);
    wait::until_true("a bar is drawn", || {
        std::fs::read_to_string(&log).is_ok_and(|said| said.matches("\r\u{1b}[K[").count() > 1)
    });
    bench.machine.limit_jobs(0);
    let status = wait::until("the waiting ends", || script.ended());
    assert!(status.success(), "{}", script.log());
    bench.verify();
    bench.finish();
}

#[test]
fn a_path_that_is_in_no_mount_and_a_mount_that_goes() {
    let mut bench = held_up_merge("wait-nowhere");
    let nowhere = wait_for(bench.dir(), &[]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(sh::said(&nowhere).contains("is in no mount of qmpfs"));
    let no_disk = wait_for(&bench.mount.path().join("disks/vdz/snapshots/x"), &[]);
    assert_eq!(no_disk.status.code(), Some(1));
    assert!(sh::said(&no_disk).contains("there is no disk 'vdz'"));
    let mut waiter = waiting(&bench, &bench.disk().0);
    wait::until_true("it has begun to wait", || !waiter.log().is_empty());
    bench.mount.kill9();
    let status = wait::poll(Duration::from_secs(20), || waiter.ended()).expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", waiter.log());
    bench.mount.mount_again();
    bench.machine.limit_jobs(0);
    wait::until_true("the disk is back", || bench.point("two").exists());
    bench.disk().wait().expect("the merge");
    bench.verify();
    bench.finish();
}

#[test]
fn a_name_that_nobody_knows_is_not_waited_for() {
    let mut bench = held_up_merge("wait-unknown");
    let (root, disk) = (bench.mount.path().to_path_buf(), bench.disk().0);
    for (path, words) in [
        (root.join("nosuch/x"), "there is no 'nosuch' in"),
        (disk.join("snapshots/two/x"), "there is no 'x' in"),
        (
            root.join("snapshots/typo"),
            "nothing is known under this name",
        ),
        (
            disk.join("snapshots/typo"),
            "nothing is known under this name",
        ),
        (disk.join("jobs/typo"), "nothing is known under this name"),
    ] {
        // with the merge still at work
        let output = wait_for(&path, &[]);
        let said = sh::said(&output);
        assert_eq!(output.status.code(), Some(1), "{}: {said}", path.display());
        assert!(said.contains(words), "{said}");
    }
    let job = bench.disk().only_job();
    bench.machine.limit_jobs(0);
    for gone in [bench.point("one").0, job] {
        for when in ["while it goes", "after that"] {
            let output = wait_for(&gone, &[]);
            assert!(output.status.success(), "{when}: {}", sh::said(&output));
            assert!(!gone.exists());
        }
    }
    bench.verify();
    bench.finish();
}

/// What was not seen to its end is not called done: by who waits for the mount, a disk, a job or a point.
#[test]
fn a_mount_that_is_taken_away_is_no_end_of_the_work() {
    let mut bench = held_up_merge("wait-unmounted");
    let paths = [
        bench.mount.path().to_path_buf(),
        bench.disk().0,
        bench.disk().only_job(),
        bench.point("one").0,
    ];
    let logs = bench.scratch().path().to_owned();
    let begun = |log: &str, path: &Path| {
        let mut command = Command::new(program());
        command.arg("wait").arg(path);
        let waiter = Process::spawn(command, &logs.join(log), libc::SIGKILL);
        wait::until_true("it has begun to wait", || !waiter.log().is_empty());
        waiter
    };
    let not_known = |mut waiter: Process| {
        let status = wait::until("the waiting ends", || waiter.ended());
        let said = waiter.log();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("how the work ended is not known"), "{said}");
    };
    let waiters = paths.iter().zip(["mount", "disk", "job", "point"]);
    let waiters: Vec<Process> = waiters.map(|(path, log)| begun(log, path)).collect();
    bench.mount.unmount();
    waiters.into_iter().for_each(not_known);
    // and another mount in its place tells nothing of it either
    bench.mount.mount_again();
    let waiter = begun("again", &paths[1]);
    bench.mount.unmount();
    bench.mount.mount_again();
    bench.machine.limit_jobs(0);
    not_known(waiter);
}

over_attachments! {
    /// The progress of an active commit, and what its READY looks like while somebody holds it.
    a_held_commit_of_the_active_layer => |name: &str, attachment: Attachment| {
        // a storage daemon commits only when it is told to
        let options = ["-o", "merge=commit"];
        let mut bench = Bench::with_bulk_and_options(name, attachment, 128 << 20, &options);
        bench.write_bulk();
        bench.write_bulk();
        bench.seal("one");
        bench.write_bulk();
        bench.begin_removal_at("one", 1 << 20);
        let job = bench.disk().only_job();
        assert_eq!(json(&job.join("progress"))["verb"], "commit");
        let ctl = job.join("ctl");
        write_line(&ctl, b"pause\n").expect("pause");
        assert_eq!(text(&job.join("state")), "paused\n");
        bench.writer().progress(50);
        assert!(std::fs::remove_dir(&job).is_err(), "a commit is not taken back");
        assert!(write_line(&ctl, b"cancel\n").is_err(), "nor in words");
        write_line(&ctl, b"speed 0\n").expect("speed");
        write_line(&ctl, b"resume\n").expect("resume");
        bench.disk().wait().expect("the merge");
        assert_eq!(oracle::chain(&bench.active()), [bench.active()]);
        bench.verify();
        bench.restart();
        bench.finish();
    }
}
