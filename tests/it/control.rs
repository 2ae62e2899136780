//! Lines written to `jobs/ID/ctl`: one write is one verb, and its errno reaches the shell.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use libc::{EINVAL, ENOENT, EOPNOTSUPP, EROFS};
use qmpfs_tests::sh;
use qmpfs_tests::tree::{assert_errno, text, write_line};
use qmpfs_tests::wait;

use crate::merge::held_up_merge;

fn state(job: &Path) -> String {
    text(&job.join("state")).trim().to_owned()
}

fn is_state(job: &Path, wanted: &str) {
    wait::until_true(&format!("the job is {wanted}"), || state(job) == wanted);
}

/// What QEMU itself says of the one job there is: paused by a person, and its speed.
fn in_qemu(bench: &mut qmpfs_tests::bench::Bench) -> (bool, u64) {
    let jobs = bench
        .machine
        .qmp
        .run("query-block-jobs", serde_json::json!({}));
    let job = &jobs.as_array().expect("a list")[0];
    (
        job["paused"].as_bool().expect("a flag"),
        job["speed"].as_u64().expect("a number"),
    )
}

#[test]
fn a_merge_is_paused_slowed_and_resumed() {
    let mut bench = held_up_merge("control-words");
    let job = bench.disk().only_job();
    let ctl = job.join("ctl");
    assert!(text(&ctl).starts_with("pause resume speed"));

    sh!("echo pause > {}", ctl.display());
    assert_eq!(state(&job), "paused", "at once");
    assert!(in_qemu(&mut bench).0);
    sh!("echo pause > {}", ctl.display()); // done already
    bench.verify_points();
    sh!("echo speed 3M > {}", ctl.display());
    assert_eq!(in_qemu(&mut bench), (true, 3 << 20));
    sh!("printf resume > {}", ctl.display());
    is_state(&job, "running");
    assert!(!in_qemu(&mut bench).0);
    sh!("echo resume >> {}", ctl.display());

    assert_errno(write_line(&ctl, b"finish\n"), &[EOPNOTSUPP]);
    assert_errno(write_line(&ctl, b"pivot\n"), &[EOPNOTSUPP]);
    let log = bench.mount.text("log");
    assert!(log.contains("ctl 'pause' ok"), "{log}");
    assert!(log.contains("EOPNOTSUPP"), "{log}");

    let open = OpenOptions::new().write(true).open(&ctl).expect("open");
    sh!("echo speed 0 > {}", ctl.display());
    bench.disk().wait().expect("the merge");
    wait::until_true("the job leaves", || bench.disk().list("jobs").is_empty());
    assert_errno((&open).write(b"pause\n"), &[ENOENT]);
    drop(open);
    bench.forget("one");
    bench.verify();
    bench.finish();
}

#[test]
fn what_is_no_word_is_refused_and_changes_nothing() {
    let mut bench = held_up_merge("control-garbage");
    let job = bench.disk().only_job();
    let ctl = job.join("ctl");
    let before = in_qemu(&mut bench);
    let garbage: Vec<u8> = (0..64 << 10).map(|i: u32| (i * 7 + 3) as u8).collect();
    let words = "pause\n".repeat(10_000);
    for line in [
        &b"\n"[..],
        b"   \n",
        b"pau",
        b"se\n",
        b"stop\n",
        b"pause\nresume\n",
        b"pause\n\n",
        b"speed\n",
        b"speed -1\n",
        b"speed 9223372036854775808\n",
        b"\0",
        b"pause\0\n",
        b"\xff\xfe\n",
        &garbage,
        words.as_bytes(),
    ] {
        assert_errno(write_line(&ctl, line), &[EINVAL]);
    }
    let echo = sh::attempt(&format!("echo nonsense > {}", ctl.display()));
    assert!(!echo.status.success(), "the errno reaches echo");
    // a buffered writer flushes more than one line as one write
    let mut both = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&ctl)
        .expect("O_RDWR");
    let mut words = String::new();
    both.read_to_string(&mut words).expect("its words");
    assert!(words.contains("pause"), "{words}");
    drop(both);
    fs::metadata(&ctl).expect("it is there");
    assert_eq!(in_qemu(&mut bench), before, "nothing was told to QEMU");

    for other in ["state", "progress", "error", "wait"] {
        assert_errno(write_line(&job.join(other), b"pause\n"), &[EROFS]);
    }
    assert_errno(
        write_line(&bench.disk().0.join("disk.json"), b"x\n"),
        &[EROFS],
    );
    assert_errno(fs::remove_file(&ctl), &[libc::EPERM]);
    let file = OpenOptions::new().write(true).open(&ctl).expect("open");
    assert_errno(file.set_len(1), &[EROFS]);
    file.set_len(0).expect("a truncation is nothing");
    drop(file);

    write_line(&ctl, b"cancel\n").expect("cancel");
    bench.disk().wait().expect("nothing is at work any more");
    wait::until_true("the name comes back", || bench.point("one").exists());
    sh!("rmdir {}", bench.point("one").0.display());
    bench.disk().wait().expect("the merge");
    bench.verify();
    bench.finish();
}
