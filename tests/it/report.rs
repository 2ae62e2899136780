//! `log`, `events` and `metrics`: what people and monitoring systems see, read as they read it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use std::{fs, thread};

use libc::EINVAL;
use qmpfs_tests::bench::{Bench, SIZE};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::openmetrics::Page;
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::wait;
use serde_json::{Value, json};

fn events(bench: &Bench) -> Vec<Value> {
    let text = bench.mount.text("events");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn has(events: &[Value], name: &str, fields: Value) -> bool {
    let fields = fields.as_object().expect("an object");
    events.iter().any(|event| {
        event["event"] == name && fields.iter().all(|(key, value)| event[key] == *value)
    })
}

over_attachments! {
    /// Our verbs, the points that come and go, and what QEMU says, each in a line with its time.
    events_tell_verbs_points_jobs_and_qemu => |name, attachment: Attachment| {
        let mut bench = Bench::new(name, attachment);
        bench.seal("before");
        assert_errno(bench.point("no name").make(), &[EINVAL]);
        bench.remove("before");
        let path = "/disks/vda/snapshots/before";
        let all = wait::until("the job's end is told", || {
            let all = events(&bench);
            has(&all, "job_gone", json!({"disk": "vda"})).then_some(all)
        });
        for event in &all {
            let time = event["time"].as_str().unwrap_or_default();
            assert!(time.len() == 24 && time.ends_with('Z'), "RFC 3339, UTC: {event}");
            assert!(event["from"] == "qemu" || event["from"] == "qmpfs", "{event}");
        }
        assert!(has(&all, "verb_begun", json!({"verb": "mkdir", "path": path})), "{all:#?}");
        assert!(has(&all, "verb_ended", json!({"verb": "mkdir", "path": path, "errno": null})));
        assert!(has(&all, "verb_ended", json!({"verb": "mkdir", "errno": "EINVAL"})));
        assert!(has(&all, "verb_ended", json!({"verb": "rmdir", "path": path, "errno": null})));
        assert!(has(&all, "point_made", json!({"path": path, "from": "qmpfs"})));
        assert!(has(&all, "point_gone", json!({"path": path})));
        assert!(has(&all, "job_state", json!({"disk": "vda"})), "{all:#?}");
        assert!(has(&all, "JOB_STATUS_CHANGE", json!({"from": "qemu"})), "{all:#?}");
        if attachment.is_vm() {
            assert!(has(&all, "STOP", json!({"from": "qemu"})), "the first seal stops the guest");
        }
        bench.finish();
    }
}

/// Lines that a program writes, as they come.
fn lines_of(mut command: Command) -> (std::process::Child, std::sync::mpsc::Receiver<String>) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("it is started");
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    (child, receiver)
}

#[test]
fn tail_follows_events_and_log_also_when_their_oldest_lines_are_gone() {
    let bench = Bench::new("report-tail", Attachment::StorageDaemon);
    let bad = |number: usize| bench.point(&format!("no name {number}"));
    // more than the log keeps, and with them more than one line of tail's last block
    for number in 0..1100 {
        assert_errno(bad(number).make(), &[EINVAL]);
    }
    let log = bench.mount.text("log");
    assert!(
        log.starts_with('(') && log.contains("older lines are gone)"),
        "{}",
        &log[..200]
    );
    assert_eq!(log.lines().count(), 1001);
    for (file, options, new) in [
        ("log", ["-n", "1", "-f"], 2000),
        ("events", ["-n", "+1", "-F"], 3000),
    ] {
        let mut tail = Command::new("tail");
        tail.args(options)
            .args(["-s", "0.1"])
            .arg(bench.mount.path().join(file));
        let (mut child, lines) = lines_of(tail);
        let next = |wanted: &str| {
            let end = Instant::now() + wait::PATIENCE;
            loop {
                let left = end.saturating_duration_since(Instant::now());
                let line = lines.recv_timeout(left);
                let line = line.unwrap_or_else(|e| panic!("{file}: no {wanted}: {e}"));
                if line.contains(wanted) {
                    return;
                }
            }
        };
        next("no name 1099");
        for number in new..new + 40 {
            assert_errno(bad(number).make(), &[EINVAL]);
            next(&format!("no name {number}'"));
        }
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        // what it shows again, it would have shown by now
        let again: Vec<String> = lines
            .try_iter()
            .filter(|line| line.contains(&format!("no name {new}'")))
            .collect();
        assert!(again.is_empty(), "{file}: {again:?}");
        assert_errno(bad(1099).make(), &[EINVAL]);
    }
    let grep = Command::new("grep")
        .args(["-c", "no name [23]039'"])
        .arg(bench.mount.path().join("log"))
        .output()
        .expect("grep");
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "2\n");
    bench.finish();
}

#[test]
fn a_flood_of_events_is_kept_within_bounds_and_verbs_go_on() {
    let mut bench = Bench::new("report-flood", Attachment::Blockdev);
    bench.seal("before");
    let flips = 1500;
    let began = Instant::now();
    for flip in 0..flips {
        bench.machine.qmp.run("stop", json!({}));
        bench.machine.qmp.run("cont", json!({}));
        if flip == flips / 2 {
            let asked = Instant::now();
            bench.disk().internal("amid").make().expect("mkdir");
            assert!(
                asked.elapsed() < Duration::from_secs(5),
                "{:?}",
                asked.elapsed()
            );
        }
    }
    eprintln!("{} events in {:?}", 2 * flips, began.elapsed());
    let page = wait::until("all events are taken", || {
        let page = Page::read(&bench.mount.text("metrics"));
        let value = |name| page.value(name, &[]);
        let taken = value("qmpfs_events_total") + value("qmpfs_events_lost_total");
        (taken >= f64::from(2 * flips)).then_some(page)
    });
    assert_eq!(page.value("qmpfs_events_lost_total", &[]), 0.0);
    assert!(bench.mount.text("events").len() < 5 << 20);
    wait::until_true("the tree has followed", || {
        bench.mount.json("vm.json")["run_state"] == "running"
    });
    bench.disk().internal("amid").delete().expect("rmdir");
    bench.finish();
}

over_attachments! {
    /// The page is what the specification wants, and says what was done.
    metrics_obey_the_specification_and_count_what_was_done => |name, attachment: Attachment| {
        let mut bench = Bench::with_options(name, attachment, &["-o", "name=we\"b\\1"]);
        let page = Page::read(&bench.mount.text("metrics"));
        let vm = [("vm", "we\"b\\1")];
        assert_eq!(page.value("qmpfs_connection_up", &vm), 1.0);
        assert_eq!(page.value("qmpfs_disks", &vm), 1.0);
        let disk = [("disk", "vda")];
        assert_eq!(page.value("qmpfs_disk_virtual_size_bytes", &disk), SIZE as f64);
        let running = page.samples("qmpfs_vm_run_state", &[("state", "running")]).next().expect("it");
        assert_eq!(running.value, if attachment.is_vm() { 1.0 } else { 0.0 });

        bench.seal("one");
        bench.seal("two");
        assert_errno(bench.point("no name").make(), &[EINVAL]);
        let view = fs::read(bench.point("one").disk_raw()).expect("the view");
        let page = Page::read(&bench.mount.text("metrics"));
        let points = [("disk", "vda"), ("kind", "snapshots")];
        assert_eq!(page.value("qmpfs_disk_points", &points), 2.0);
        assert_eq!(page.value("qmpfs_disk_layers", &disk), 3.0);
        let done = [("verb", "mkdir"), ("section", "snapshots"), ("errno", "OK")];
        assert_eq!(page.value("qmpfs_verbs_total", &done), 2.0);
        let taken = [("verb", "mkdir"), ("section", "snapshots"), ("errno", "EINVAL")];
        assert_eq!(page.value("qmpfs_verbs_total", &taken), 1.0);
        let mkdir = [("verb", "mkdir")];
        assert_eq!(page.value("qmpfs_verb_duration_seconds_count", &mkdir), 3.0);
        assert!(page.value("qmpfs_view_read_bytes_total", &disk) >= view.len() as f64);
        // only the first seal of a VM stops its guest
        let stops = if attachment.is_vm() { 1.0 } else { 0.0 };
        assert_eq!(page.value("qmpfs_guest_stopped_seconds_count", &[]), stops);
        assert!(page.value("qmpfs_guest_stopped_seconds_sum", &[]) < 10.0);
        assert!(page.value("qmpfs_cache_bytes", &[("cache", "tables")]) >= 0.0);
        assert_eq!(page.value("qmpfs_reconnects_total", &[]), 0.0);
        bench.restart();
        let page = Page::read(&bench.mount.text("metrics"));
        assert_eq!(page.value("qmpfs_reconnects_total", &[]), 1.0);
        bench.finish();
    }
}
