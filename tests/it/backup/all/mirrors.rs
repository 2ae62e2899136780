//! `mkdir backups/mirror/NAME`: mirrors of all disks, which end at one instant: the guest stands still for that.

use std::fs;

use libc::{EBUSY, EOPNOTSUPP};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::sample;
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::{assert_errno, text, write_line};
use qmpfs_tests::wait;
use serde_json::json;

use super::{DISKS, Rig, SLOW, names};

/// The writer stands still while the guest does.
fn through_a_proxy(name: &str, attachment: Attachment, options: &[&str]) -> (Rig, Proxy, Steps) {
    let mut rig = Rig::new(name, attachment, options);
    let steps = Steps::new(rig.several.scratch());
    let monitor = rig.several.machine.qmpfs_socket();
    let proxy = Proxy::new(rig.several.scratch(), monitor, &steps);
    proxy.stops(Some(rig.several.writer().gate()));
    rig.several.mount.mount_through(proxy.socket());
    rig.several.wait_for_disks();
    (rig, proxy, steps)
}

impl Rig {
    /// All of them follow their disks.
    fn wait_until_ready(&mut self) {
        self.several.machine.limit_jobs(0);
        for disk in DISKS {
            let state = self.several.mount.disk(disk).only_job().join("state");
            wait::until_true("it has caught up", || text(&state) == "ready\n");
        }
    }

    /// A word for the job of one disk.
    fn tell(&self, disk: &str, word: &str) -> std::io::Result<()> {
        let job = self.several.mount.disk(disk).only_job();
        write_line(&job.join("ctl"), word.as_bytes())
    }

    fn finish_mirrors(&self) {
        wait::until("they are told to end", || {
            match self.tell("vdb", "finish") {
                // one may have to catch up just now
                Err(e) if e.raw_os_error() == Some(EBUSY) => None,
                told => {
                    told.unwrap_or_else(|e| panic!("{e}\n{}", self.several.mount.text("log")));
                    Some(())
                }
            }
        });
    }

    fn guest_runs(&mut self) -> bool {
        self.several.machine.qmp.run("query-status", json!({}))["running"] == true
    }

    fn nothing_is_left(&self) -> bool {
        self.files().is_empty() && self.is_idle()
    }
}

fn end_at_one_instant(name: &str, attachment: Attachment) {
    let (mut rig, _proxy, _) = through_a_proxy(name, attachment, SLOW);
    rig.several.writer().progress(40);
    rig.of_all("mirror", "m").make().expect("mkdir");
    assert!(rig.of_all("mirror", "m").exists());
    assert_errno(rig.tell("vda", "finish"), &[EBUSY]);
    rig.wait_until_ready();
    assert_errno(rig.tell("vda", "pivot"), &[EOPNOTSUPP]);
    rig.several.writer().progress(3);
    assert!(
        !rig.all_or_none_files("m"),
        "none has a name before its end"
    );
    let before = rig.several.writer().done();
    rig.finish_mirrors();
    assert!(rig.guest_runs(), "it goes on");
    assert_eq!(
        rig.several.mount.wait_idle(),
        "done\n",
        "{}",
        rig.several.mount.text("log")
    );
    let after = rig.several.writer().done() + 1;
    rig.several.writer().progress(3);
    let found = rig.verify("mirror", "m");
    assert!(
        found[1] >= before && found[0] <= after,
        "{found:?}, ended between {before} and {after}"
    );
    let times =
        DISKS.map(|disk| rig.several.mount.disk(disk).backup("mirror", "m").json()["time"].clone());
    assert_eq!(
        times,
        [times[0].clone(), times[0].clone(), times[0].clone()]
    );
    rig.of_all("mirror", "m").delete_when_closed();
    wait::until_true("nothing is left", || rig.nothing_is_left());

    // one that is ended alone takes the others along, whoever ends it
    for how in ["rmdir", "cancelled", "ended"] {
        rig.of_all("mirror", "m").make().expect("mkdir");
        rig.wait_until_ready();
        let job = rig.several.mount.disk("vdb").only_job();
        let id = job
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let word = match how {
            "rmdir" => {
                fs::remove_dir(&job).expect("rmdir jobs/ID");
                None
            }
            "cancelled" => Some(("job-cancel", json!({"id": id}))),
            _ => Some(("block-job-cancel", json!({"device": id}))),
        };
        if let Some((command, arguments)) = word {
            rig.several.machine.qmp.run(command, arguments);
        }
        wait::until_true("no file is left", || rig.files().is_empty());
        wait::until_true("nothing is left", || {
            rig.dismiss_failed();
            rig.nothing_is_left()
        });
    }
    rig.several.finish();
}

#[test]
fn end_at_one_instant_blockdev() {
    end_at_one_instant("mirrors-blockdev", Attachment::Blockdev);
}

#[test]
fn end_at_one_instant_drive() {
    end_at_one_instant("mirrors-drive", Attachment::Drive);
}

/// Its clients cannot be stopped.
#[test]
fn a_storage_daemon_has_none() {
    let rig = Rig::new("mirrors-qsd", Attachment::StorageDaemon, &[]);
    assert_errno(rig.of_all("mirror", "m").make(), &[EOPNOTSUPP]);
    let log = rig.several.mount.text("log");
    assert!(log.contains("cannot be stopped"), "{log}");
    assert!(rig.nothing_is_left());
    rig.keep("full", "a");
    rig.several.finish();
}

/// qmpfs dies before or after any command of their beginning and their end: they are there on all disks or on none, and the
/// guest runs.
#[test]
fn qmpfs_killed_at_the_end() {
    at_the_end("mirrors-killed", &[Deed::KillBefore, Deed::KillAfter]);
}

/// The same where it is not killed: the connection ends, or QEMU refuses.
#[test]
fn a_connection_that_ends_at_the_end() {
    let deeds = [Deed::CutBefore, Deed::CutAfter, Deed::Fail(0)];
    at_the_end("mirrors-cut", &deeds);
}

fn at_the_end(name: &str, deeds: &[Deed]) {
    let (mut rig, _proxy, steps) = through_a_proxy(name, Attachment::Blockdev, &[]);
    for (nth, deed) in deeds.iter().copied().enumerate() {
        for number in sample::steps(nth) {
            rig.of_all("mirror", "m").make().expect("mkdir");
            rig.wait_until_ready();
            steps.arm(COMMANDS, number, deed, [rig.several.mount.pid(), 0]);
            let told = rig.tell("vda", "finish");
            wait::until_true("it is over, or killed", || {
                steps.fired() || rig.is_idle() || told.is_err()
            });
            let (fired, seen) = steps.disarm();
            if fired && matches!(deed, Deed::KillBefore | Deed::KillAfter) {
                rig.several.mount.mount_again();
            }
            rig.several.wait_for_disks();
            wait::until_true("the guest runs", || rig.guest_runs());
            println!("{deed:?} {number}: {:?} {seen:?}", rig.files());
            // those that were not ended follow on, and are ended as soon as they have caught up again
            wait::until_true("it has ended", || {
                rig.dismiss_failed();
                let jobs = rig.several.mount.disk("vdb").0.join("jobs");
                for job in names(&jobs) {
                    let _ = write_line(&jobs.join(job).join("ctl"), b"finish");
                }
                rig.is_idle()
            });
            wait::until_true("the guest runs on", || rig.guest_runs());
            rig.wait_until_settled("mirror", "m");
            if rig.all_or_none("mirror", "m") {
                rig.verify("mirror", "m");
                rig.of_all("mirror", "m").delete_when_closed();
            }
            wait::until_true("nothing is left", || rig.nothing_is_left());
            if !fired && told.is_ok() {
                assert!(number > 5, "it has more commands than {seen:?}");
                break;
            }
        }
    }
    rig.several.finish();
}
