//! What may go wrong with a snapshot of all disks: all of them have the point, or none has, and nothing is left.

use std::fs;

use libc::{EACCES, EBUSY, EEXIST, EIO, ENOSPC, EPERM, EROFS};
use qmpfs_tests::faults::{Immutable, SmallFilesystem, claimed_elsewhere};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::model::fill;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::rewrite::MergeLimit;
use qmpfs_tests::sample::{self, Share};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::several::{RING, SEALED, Several};
use qmpfs_tests::steps::{COMMANDS, Deed, FILES, Steps};
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, wait};
use serde_json::json;

use crate::several::assert_runs;

/// Far more steps than the verbs of two disks have.
const TOO_MANY: usize = 300;

/// Every day the commands are the steps; a larger run takes the operations on files as well.
fn kinds() -> u32 {
    match Share::asked_for() {
        Share::Everyday => COMMANDS,
        Share::Rounds(_) | Share::Kills | Share::Full => COMMANDS | FILES,
    }
}

/// A mkdir of all disks that fails: directories, marks and nodes are as before; without the fault it is made.
#[track_caller]
fn refused<T>(
    several: &mut Several,
    errnos: &[i32],
    says: &str,
    fault: impl FnOnce(&mut Several) -> T,
    mend: impl FnOnce(&mut Several, T),
) {
    several.seal("sealed-before");
    let nodes = several.nodes();
    let fault = fault(several);
    let files = several.files();
    assert_errno(several.group("x").make(), errnos);
    let log = several.mount.text("log");
    assert!(log.contains(says), "{says:?} in {log}");
    assert_eq!(several.files(), files, "nothing is left");
    for disk in [0, 1] {
        assert_eq!(oracle::sealed_mark(&several.active(disk)), None);
    }
    assert!(!several.group("x").exists());
    if several.machine.attachment().is_vm() {
        assert_runs(several);
    }
    mend(several, fault);
    several.verify();
    assert_eq!(several.nodes(), nodes, "no node is left");
    several.seal("x");
    several.restart();
}

#[test]
fn a_full_directory_of_one_disk_undoes_all() {
    let scratch = Scratch::new("several-full");
    let Some(small) = SmallFilesystem::new(&scratch, 64) else {
        return;
    };
    let dirs = [
        scratch.dir("one"),
        small.path().join("two"),
        scratch.dir("three"),
    ];
    fs::create_dir(&dirs[1]).expect("a directory");
    let mut several = Several::on(scratch, dirs, Attachment::Blockdev, &[]);
    refused(
        &mut several,
        &[ENOSPC],
        "disk 'vdb': ",
        |several| {
            // what the guest writes from here on is in clusters that are allocated
            several.writer().progress(RING);
            small.fill_but(1 << 20);
        },
        |_, ()| small.make_room(),
    );
    several.finish();
}

#[test]
fn an_unwritable_directory_of_one_disk_undoes_all() {
    let mut several = Several::new("several-unwritable", Attachment::Blockdev);
    if Immutable::new(several.scratch().path()).is_none() {
        return;
    }
    refused(
        &mut several,
        &[EACCES, EPERM, EROFS],
        "disk 'vdb': cannot create",
        |several| Immutable::new(&several.dirs()[1]),
        |_, immutable| drop(immutable),
    );
    several.finish();
}

#[test]
fn a_file_in_the_way_of_one_disk_undoes_all() {
    let mut several = Several::new("several-in-the-way", Attachment::Blockdev);
    refused(
        &mut several,
        &[EEXIST],
        "disk 'vdb': ",
        |several| fs::write(several.sealed(1, "x"), "precious").expect("a file"),
        |several, ()| {
            let file = several.sealed(1, "x");
            assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");
            fs::remove_file(file).expect("our own file");
        },
    );
    several.finish();
}

fn worked_on_by_others(name: &str, attachment: Attachment) {
    let mut several = Several::new(name, attachment);
    refused(
        &mut several,
        &[EBUSY],
        "another monitor has a mirror job, foreign, at work on disk 'vdb'",
        |several| {
            let qmp = &mut several.machine.qmp;
            let nodes = qmp.run("query-named-block-nodes", json!({"flat": true}));
            let active = nodes.as_array().expect("a list").iter().find(|node| {
                let file = node["image"]["filename"].as_str().unwrap_or_default();
                node["drv"] == "qcow2" && file.contains("/.vdb.qcow2.")
            });
            let active = &active.expect("vdb has an alias since it was sealed")["node-name"];
            let sink = json!({"driver": "null-co", "node-name": "sink", "size": SEALED[1].1});
            qmp.run("blockdev-add", sink);
            let mirror = json!({"job-id": "foreign", "device": active, "target": "sink", "sync": "full", "speed": 1});
            qmp.run("blockdev-mirror", mirror);
        },
        |several, ()| {
            let qmp = &mut several.machine.qmp;
            qmp.run(
                "block-job-cancel",
                json!({"device": "foreign", "force": true}),
            );
            wait::until_true("the mirror is gone", || {
                qmp.run("query-block-jobs", json!({})) == json!([])
            });
            qmp.run("blockdev-del", json!({"node-name": "sink"}));
        },
    );
    several.finish();
}

#[test]
fn a_disk_that_others_work_on_undoes_all() {
    worked_on_by_others("several-others", Attachment::Blockdev);
}

#[test]
fn a_disk_that_others_work_on_in_a_storage_daemon_undoes_all() {
    worked_on_by_others("several-others-qsd", Attachment::StorageDaemon);
}

fn refused_by_qemu(name: &str, attachment: Attachment) {
    let mut several = Several::new(name, attachment);
    let steps = Steps::new(several.scratch());
    let proxy = Proxy::new(several.scratch(), several.machine.qmpfs_socket(), &steps);
    several.mount.mount_through(proxy.socket());
    several.wait_for_disks();
    several.seal("first");
    steps.arm(COMMANDS, TOO_MANY, Deed::Pass, [0, 0]);
    several.seal("second");
    let (_, seen) = steps.disarm();
    let number = seen.iter().position(|command| command == "transaction");
    let number = number.unwrap_or_else(|| panic!("no transaction in {seen:?}"));
    refused(
        &mut several,
        &[EIO],
        "refused by the test",
        |_| steps.arm(COMMANDS, number, Deed::Fail(0), [0, 0]),
        |_, ()| assert!(steps.disarm().0, "it came to the transaction"),
    );
    several.finish();
}

#[test]
fn a_transaction_that_qemu_refuses_undoes_all() {
    refused_by_qemu("several-refused", Attachment::Blockdev);
}

#[test]
fn a_transaction_that_a_storage_daemon_refuses_undoes_all() {
    refused_by_qemu("several-refused-qsd", Attachment::StorageDaemon);
}

/// A mount in a container, where the names of sockets are others, has the disk.
#[test]
fn a_mount_in_another_network_namespace_is_seen() {
    let mut several = Several::new("several-namespace", Attachment::Blockdev);
    let held = claimed_elsewhere(&several.dirs()[1], "vdb.qcow2");
    assert_errno(several.group("x").make(), &[EBUSY]);
    assert_errno(several.point(1, "x").make(), &[EBUSY]);
    let log = several.mount.text("log");
    assert!(log.contains("another qmpfs is at work on"), "{log}");
    several.point(0, "alone").make().expect("of another disk");
    several.point(0, "alone").delete().expect("rmdir");
    several.mount.wait_idle();
    drop(held);
    several.seal("x");
    several.finish();
}

#[test]
fn a_disk_at_work_refuses_all() {
    let options = ["-o", "merge=stream"];
    let mut several = Several::with_options("several-busy", Attachment::Blockdev, &options);
    several.seal("below");
    let above = at_work(&mut several);
    let files = several.files();
    assert_errno(several.group("x").make(), &[EBUSY]);
    let log = several.mount.text("log");
    assert!(log.contains("a job is at work on disk 'vdb'"), "{log}");
    assert_eq!(several.files(), files, "nothing is left");
    // what is at work takes a removal into its queue; what refuses one disk refuses all
    let view = fs::File::open(several.point(1, "below").disk_raw()).expect("a view");
    assert_errno(several.group("below").delete(), &[EBUSY]);
    assert!(
        several.mount.disk("vda").list("jobs").is_empty(),
        "none begins"
    );
    assert_eq!(
        several.mount.disk("vdb").list("jobs").len(),
        1,
        "none waits"
    );
    drop(view);
    several.group("below").delete_when_closed();
    assert!(!several.group("below").exists(), "the name goes at once");
    assert!(
        !several.point(1, "below").exists(),
        "also of the disk at work"
    );
    several.machine.limit_jobs(0);
    assert_eq!(several.mount.wait_idle(), "done\n");
    several.forget("below");
    several.group(&above).delete().expect("rmdir of the rest");
    assert_eq!(several.mount.wait_idle(), "done\n");
    several.forget(&above);
    several.seal("x");
    several.finish();
}

/// Brings a merge on vdb about that does not end by itself. Gives the group whose point it removes.
#[track_caller]
fn at_work(several: &mut Several) -> String {
    let (monitor, limit) = MergeLimit::new(several.scratch(), several.machine.qmpfs_socket());
    several.mount.mount_through(&monitor);
    several.wait_for_disks();
    let mut hands = several.machine.nbd("vdb");
    let mut bulk = vec![0; 1 << 20];
    for offset in (4..SEALED[1].1 >> 20).map(|mebibyte| mebibyte << 20) {
        fill(&mut bulk, offset, 1);
        hands.write(offset, &bulk).expect("the guest can write");
    }
    let above = "above".to_owned();
    several.seal(&above);
    limit.set(1);
    several.point(1, &above).delete().expect("rmdir of one");
    limit.set(0);
    above
}

/// Runs `verb` again and again, each time qmpfs is killed at a later step (`sample::steps`), until it ends without
/// having been killed.
fn at_every_command(
    several: &mut Several,
    mut prepare: impl FnMut(&mut Several, usize),
    mut verb: impl FnMut(&mut Several, usize),
    mut after_the_kill: impl FnMut(&mut Several),
    mut settled: impl FnMut(&mut Several, usize),
) {
    let steps = Steps::new(several.scratch());
    let proxy = Proxy::new(several.scratch(), several.machine.qmpfs_socket(), &steps);
    let direct = several.machine.qmpfs_socket().to_path_buf();
    let environment = steps.environment(several.scratch().path());
    several.mount.set_environment(environment);
    let mut round = 0;
    for (nth, deed) in [Deed::KillBefore, Deed::KillAfter].into_iter().enumerate() {
        for number in sample::steps(nth) {
            assert!(number < TOO_MANY, "it never ends");
            round += 1;
            prepare(several, round);
            several.mount.mount_through(proxy.socket());
            several.wait_for_disks();
            steps.arm(kinds(), number, deed, [several.mount.pid(), 0]);
            verb(several, round);
            let (killed, commands) = steps.disarm();
            println!("{deed:?} at step {number}, {:?}", commands.get(number));
            after_the_kill(several);
            several.mount.mount_through(&direct);
            several.wait_for_disks();
            wait::until_true("the work is settled", || {
                SEALED
                    .iter()
                    .all(|(disk, _)| several.mount.disk(disk).list("jobs").is_empty())
            });
            settled(several, round);
            several.verify();
            several.writer().progress(2);
            if several.machine.attachment().is_vm() {
                assert_runs(several);
            }
            if !killed {
                assert!(number > 8, "hardly a command was seen: {commands:?}");
                break;
            }
        }
    }
}

/// mkdir, killed; afterwards all disks have the point, of one instant, or none has it.
fn seal_killed(name: &str, attachment: Attachment, first: bool) {
    let mut several = Several::new(name, attachment);
    if !first {
        several.seal("first");
    }
    at_every_command(
        &mut several,
        |several, _| {
            if first {
                several.restart();
            }
        },
        |several, round| drop(several.group(&format!("n{round}")).make()),
        |_| (),
        |several, round| {
            let name = format!("n{round}");
            let there = [0, 1].map(|disk| several.point(disk, &name).exists());
            assert_eq!(
                there[0],
                there[1],
                "all or none: {there:?}\n{}",
                several.mount.text("log")
            );
            assert_eq!(several.group(&name).exists(), there[0]);
            if there[0] {
                several.verify_instant(&name);
                assert_eq!(several.group(&name).json()["complete"], true);
                several
                    .group(&name)
                    .delete()
                    .expect("rmdir of a settled group");
                several.mount.wait_idle();
            }
        },
    );
    several.restart();
    several.finish();
}

#[test]
fn killed_in_the_first_snapshot_since_the_start() {
    seal_killed("several-kill-first", Attachment::Blockdev, true);
}

#[test]
fn killed_in_the_first_snapshot_on_legacy_drives() {
    seal_killed("several-kill-first-drive", Attachment::Drive, true);
}

#[test]
fn killed_in_a_later_snapshot() {
    seal_killed("several-kill-later", Attachment::Blockdev, false);
}

#[test]
fn killed_in_a_snapshot_on_a_storage_daemon() {
    seal_killed("several-kill-qsd", Attachment::StorageDaemon, false);
}

/// rmdir, killed; afterwards each member is gone, or is there as it was, and the rest can be removed.
fn remove_killed(name: &str, merge: &str) {
    let mut several = Several::with_options(name, Attachment::Blockdev, &["-o", merge]);
    several.seal("kept");
    at_every_command(
        &mut several,
        |several, round| {
            several.seal(&format!("a{round}"));
            several.seal(&format!("b{round}"));
        },
        |several, round| {
            let victim = format!("a{round}");
            if several.group(&victim).delete().is_ok() {
                let _ = fs::read_to_string(several.mount.path().join("wait"));
            }
            several.forget(&victim);
        },
        |_| (),
        |several, round| {
            let victim = format!("a{round}");
            for disk in [0, 1] {
                if several.point(disk, &victim).exists() {
                    several.verify_member(&victim, disk);
                }
            }
            if several.group(&victim).exists() {
                several.group(&victim).delete().expect("rmdir of the rest");
                several.mount.wait_idle();
            }
            several.verify();
            let above = format!("b{round}");
            several.group(&above).delete().expect("rmdir");
            several.mount.wait_idle();
            several.forget(&above);
        },
    );
    several.restart();
    several.finish();
}

#[test]
fn killed_while_all_are_streamed() {
    remove_killed("several-kill-stream", "merge=stream");
}

#[test]
fn killed_while_all_are_committed() {
    remove_killed("several-kill-commit", "merge=commit");
}

/// The host dies at any moment of a mkdir: every disk boots with all that was written, and what is left of the point is
/// of one instant where it is of several disks.
fn power_cut(name: &str, first: bool) {
    let mut several = Several::new(name, Attachment::Blockdev);
    at_every_command(
        &mut several,
        |several, round| {
            if first {
                several.restart();
            } else {
                several.seal(&format!("w{round}"));
            }
        },
        |several, round| {
            if first {
                several.hush();
            }
            drop(several.group(&format!("n{round}")).make());
        },
        Several::power_cut,
        |several, round| {
            let name = format!("n{round}");
            let there = [0, 1].map(|disk| several.point(disk, &name).exists());
            match there {
                [true, true] => drop(several.verify_instant(&name)),
                [false, false] => assert!(!several.group(&name).exists()),
                [vda, _] => {
                    let (here, gone) = if vda { (0, "vdb") } else { (1, "vda") };
                    several.verify_member(&name, here);
                    assert_eq!(several.group(&name).json()["gone"], json!([gone]));
                }
            }
            if there != [false, false] {
                several
                    .group(&name)
                    .delete()
                    .expect("rmdir of what is left");
                several.mount.wait_idle();
            }
            if !first {
                let before = format!("w{round}");
                several.group(&before).delete().expect("rmdir");
                several.mount.wait_idle();
                several.forget(&before);
            }
        },
    );
    several.restart();
    several.finish();
}

#[test]
fn the_host_dies_in_the_first_snapshot_since_the_start() {
    power_cut("several-power-first", true);
}

#[test]
fn the_host_dies_in_a_later_snapshot() {
    power_cut("several-power-later", false);
}
