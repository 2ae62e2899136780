//! kill -9 of qmpfs before and after every single QMP command of every verb, beside the writer: the next mount finds
//! what was under way and finishes or undoes it. The disk, every other point, the names on disk and the VM stay right.

use qmpfs_tests::bench::{Bench, SIZE, WRITERS};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::proxy::{Proxy, When};
use qmpfs_tests::{oracle, wait};
use serde_json::json;

/// Far more changing commands than any verb has.
const TOO_MANY: usize = 40;

/// Runs `verb` again and again, each time killed one command later, until it ends without having been killed.
fn at_every_command(
    bench: &mut Bench,
    mut prepare: impl FnMut(&mut Bench),
    mut verb: impl FnMut(&mut Bench),
    mut settle: impl FnMut(&mut Bench),
) {
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket());
    let mut kills = 0;
    let direct = bench.machine.qmpfs_socket().to_path_buf();
    for when in [When::Before, When::After] {
        let mut number = 0;
        loop {
            prepare(bench);
            bench.mount.mount_through(proxy.socket());
            bench.wait_for_disk();
            proxy.kill_at(bench.mount.pid(), number, when);
            verb(bench);
            let (killed, commands) = proxy.disarm();
            bench.mount.mount_through(&direct);
            let at = format!("{when:?} command {number} of {commands:?}");
            bench.writer().step(&format!("killed {at}"));
            wait::until_true(&format!("the disk is back, killed {at}"), || {
                bench.disk().0.join("snapshots").is_dir()
            });
            wait::until_true(&format!("the work is settled, killed {at}"), || {
                bench.disk().list("jobs").is_empty()
            });
            settle(bench);
            bench.verify();
            if bench.machine.attachment().is_vm() {
                let status = bench.machine.qmp.run("query-status", json!({}));
                assert_eq!(status["running"], true, "the VM goes on, killed {at}");
            }
            if !killed {
                break;
            }
            kills += 1;
            number += 1;
            assert!(number < TOO_MANY, "it never ends: {commands:?}");
        }
        assert!(number > 2, "hardly a command was seen");
    }
    println!("survived {kills} kills");
}

/// mkdir, killed; afterwards the point is there with the right bytes, or it is not there at all.
fn seal(name: &str, attachment: Attachment, first: bool) {
    let mut bench = Bench::new(name, attachment);
    if !first {
        bench.seal("first");
    }
    let before = std::cell::RefCell::new(None);
    let round = std::cell::Cell::new(0);
    let point = |round: u32| format!("n{round}");
    at_every_command(
        &mut bench,
        |bench| {
            round.set(round.get() + 1);
            if first {
                bench.restart();
            }
        },
        |bench| {
            before.replace(Some(bench.writer().acknowledged()));
            let _ = bench.point(&point(round.get())).make();
        },
        |bench| {
            let name = point(round.get());
            bench.writer().progress(5);
            let after = bench.writer().sent();
            let before = before.borrow_mut().take().expect("the verb was run");
            if bench.point(&name).exists() {
                let bytes = bench.scratch().file("now.raw");
                oracle::convert(&bench.sealed(&name), &bytes);
                before.assert_between(&after, &bytes, WRITERS..SIZE);
                oracle::assert_same(&bench.point(&name).disk_raw(), &bytes);
                bench
                    .point(&name)
                    .delete()
                    .expect("rmdir of a settled point");
                bench.disk().wait().expect("the merge");
            }
        },
    );
    bench.restart();
    bench.finish();
}

/// rmdir, killed; afterwards the point is gone, or it is there as it was and can be removed.
fn remove(name: &str, attachment: Attachment, merge: &str, of_the_top: bool) {
    let mut bench = Bench::with_options(name, attachment, &["-o", merge]);
    bench.seal("kept");
    let round = std::cell::Cell::new(0);
    let names = |round: u32| (format!("a{round}"), format!("b{round}"));
    at_every_command(
        &mut bench,
        |bench| {
            round.set(round.get() + 1);
            let (victim, above) = names(round.get());
            bench.write(6);
            bench.seal(&victim);
            bench.write(6);
            if !of_the_top {
                bench.seal(&above);
                bench.write(6);
            }
        },
        |bench| {
            let (victim, _) = names(round.get());
            if bench.point(&victim).delete().is_ok() {
                let _ = bench.disk().wait();
            }
            bench.forget(&victim);
        },
        |bench| {
            let (victim, above) = names(round.get());
            if bench.point(&victim).exists() {
                bench.point(&victim).delete().expect("rmdir, again");
                bench.disk().wait().expect("the merge");
            }
            assert!(!bench.sealed(&victim).exists(), "its file is gone");
            bench.verify();
            if !of_the_top {
                bench.remove(&above);
            }
        },
    );
    bench.restart();
    bench.finish();
}

#[test]
fn of_the_first_snapshot_since_the_start() {
    seal("kill-first-seal", Attachment::Blockdev, true);
}

#[test]
fn of_the_first_snapshot_on_a_legacy_drive() {
    seal("kill-first-seal-drive", Attachment::Drive, true);
}

#[test]
fn of_a_later_snapshot() {
    seal("kill-seal", Attachment::Blockdev, false);
}

#[test]
fn of_a_snapshot_on_a_storage_daemon() {
    seal("kill-seal-qsd", Attachment::StorageDaemon, false);
}

#[test]
fn of_a_stream() {
    remove("kill-stream", Attachment::Blockdev, "merge=stream", false);
}

#[test]
fn of_a_commit() {
    remove("kill-commit", Attachment::Blockdev, "merge=commit", false);
}

#[test]
fn of_a_commit_of_the_active_layer() {
    remove("kill-pivot", Attachment::Blockdev, "merge=commit", true);
}

#[test]
fn of_a_commit_of_the_active_layer_on_a_storage_daemon() {
    remove(
        "kill-pivot-qsd",
        Attachment::StorageDaemon,
        "merge=commit",
        true,
    );
}
