//! `mkdir backups/mirror/NAME`: a copy that follows the disk, beside a writer that never stops, until it is told to end.

use libc::{EBUSY, EOPNOTSUPP};
use qmpfs_tests::bench::{SIZE, Shelf, WRITERS};
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::tree::{assert_errno, text, write_line};
use qmpfs_tests::{oracle, wait};

use super::{SLOW, assert_nothing_left, assert_stands_on, begin};

/// Waits until it has caught up.
#[track_caller]
fn ready(shelf: &mut Shelf) {
    shelf.bench.machine.limit_jobs(0);
    let state = shelf.bench.disk().only_job().join("state");
    wait::until_true("it has caught up", || text(&state) == "ready\n");
}

/// A word for its job.
fn tell(shelf: &Shelf, word: &str) -> std::io::Result<()> {
    write_line(&shelf.bench.disk().only_job().join("ctl"), word.as_bytes())
}

/// `finish`: the copy is what the disk held then.
#[track_caller]
fn finish(shelf: &mut Shelf, name: &str) {
    shelf.bench.writer().progress(20);
    let before = shelf.bench.writer().acknowledged();
    wait::until("it is told", || match tell(shelf, "finish") {
        // it runs after the writer, and may have to catch up just now
        Err(e) if e.raw_os_error() == Some(EBUSY) => None,
        told => {
            told.expect("finish");
            Some(())
        }
    });
    shelf.bench.disk().wait().expect("it ends");
    let after = shelf.bench.writer().sent();
    let bytes = shelf.bench.scratch().file("mirror.raw");
    oracle::check(&shelf.file(name));
    oracle::convert(&shelf.file(name), &bytes);
    shelf.bench.model().assert_holds(&bytes, 0..WRITERS);
    before.assert_between(&after, &bytes, WRITERS..SIZE);
    oracle::assert_same(&shelf.backup("mirror", name).disk_raw(), &bytes);
}

over_attachments! {
    /// It follows until `finish`, over a kill of qmpfs; no word moves the VM onto it; what ends before is no backup.
    a_mirror_is_of_the_moment_in_which_it_is_finished => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        begin(&shelf, "mirror", "m");
        assert_errno(tell(&shelf, "finish"), &[EBUSY]);
        ready(&mut shelf);
        shelf.bench.write(20);
        assert_errno(tell(&shelf, "pivot"), &[EOPNOTSUPP]);
        assert!(text(&shelf.bench.disk().only_job().join("ctl")).contains("finish"));
        assert!(!shelf.file("m").exists(), "it has no name before its end");
        assert_errno(shelf.bench.point("sealed").make(), &[EBUSY]);
        tell(&shelf, "cancel").expect("cancel");
        shelf.bench.disk().wait().expect("cancelled is not failed");
        assert_nothing_left(&shelf);
        shelf.bench.verify();

        begin(&shelf, "mirror", "m");
        ready(&mut shelf);
        shelf.bench.mount.kill9();
        shelf.bench.write(20);
        shelf.bench.mount.mount_again();
        shelf.bench.wait_for_disk();
        ready(&mut shelf);
        finish(&mut shelf, "m");
        shelf.bench.verify();
        shelf.backup("mirror", "m").delete_when_closed();
        wait::until_true("nothing is left", || names(&shelf.place()).is_empty());
        shelf.bench.finish();
    }
}

/// QEMU dies: a copy that followed it is no backup.
#[test]
fn qemu_killed_while_it_follows() {
    let mut shelf = Shelf::with_options("mirror-fall", Attachment::Blockdev, SLOW);
    begin(&shelf, "mirror", "m");
    ready(&mut shelf);
    shelf.bench.flush();
    shelf.bench.writer().expect_the_end();
    shelf.bench.boot_after_a_fall(None);
    shelf.bench.wait_for_disk();
    wait::until_true("nothing is left", || names(&shelf.place()).is_empty());
    shelf.bench.finish();
}

/// Incremental backups go on behind its back.
#[test]
fn a_mirror_between_backups() {
    let mut shelf = Shelf::new("mirror-between", Attachment::StorageDaemon);
    shelf.keep("full", "a");
    begin(&shelf, "mirror", "m");
    ready(&mut shelf);
    finish(&mut shelf, "m");
    shelf.backup("mirror", "m").delete_when_closed();
    wait::until_true("it is gone", || !shelf.file("m").exists());
    shelf.bench.write(10);
    assert_stands_on(&shelf.keep("incremental", "b"), "a");
    shelf.bench.finish();
}
