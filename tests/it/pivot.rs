//! Before a VM moves onto the layer that was committed into: if the name of the active path cannot be changed, the guest
//! runs on, and the merge ends by itself as soon as it can be.

use std::path::{Path, PathBuf};

use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::rewrite::holding;
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::text;
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

/// A directory in which no name can be made, changed or removed, not by root either.
struct Immutable(PathBuf);

impl Immutable {
    fn make(directory: &Path) -> Self {
        sh!("chattr +i {}", directory.display());
        Immutable(directory.to_path_buf())
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        sh::attempt(&format!("chattr -i {}", self.0.display()));
    }
}

/// A large layer below a smaller active one: a commit of the active layer, still at work when the test gets to it.
fn committed_from_the_top(name: &str, attachment: Attachment) -> Bench {
    // a storage daemon commits only when it is told to
    let options = ["-o", "merge=commit"];
    let mut bench = Bench::with_bulk_and_options(name, attachment, 256 << 20, &options);
    bench.write_bulk();
    bench.write_bulk();
    bench.seal("one");
    bench.write_bulk();
    bench.write(60);
    bench
}

fn runs(bench: &mut Bench) -> bool {
    !bench.machine.attachment().is_vm()
        || bench.machine.qmp.run("query-status", json!({}))["running"] == true
}

over_attachments! {
    /// Seen before the guest is stopped: the job waits at READY, the guest writes on, and the merge ends by itself.
    a_directory_that_cannot_be_written_before_it => |name, attachment| {
        let mut bench = committed_from_the_top(name, attachment);
        bench.begin_removal_at("one", 1);
        let job = bench.disk().only_job();
        let immutable = Immutable::make(bench.dir());
        bench.machine.limit_jobs(0);
        wait::until_true("the job is ready, and waits", || {
            text(&job.join("state")).trim() == "ready" && bench.mount.text("log").contains("cannot be moved yet")
        });
        bench.writer().progress(100);
        assert!(runs(&mut bench), "the guest never stands still for it");
        bench.write(20);
        bench.verify_disk();
        bench.verify_points();
        let log = bench.mount.text("log");
        assert!(log.contains("the merge goes on by itself"), "{log}");
        drop(immutable);
        bench.disk().wait().expect("the merge ends by itself");
        assert!(runs(&mut bench));
        assert_eq!(oracle::chain(&bench.active()), [bench.active()]);
        bench.verify();
        bench.restart();
        bench.finish();
    }
}

/// Who waits is told after a while; the merge is begun again by itself, and the guest never stands still for it.
#[test]
fn a_directory_that_cannot_be_written_for_long() {
    let mut bench = committed_from_the_top("pivot-long", Attachment::Blockdev);
    bench.begin_removal_at("one", 1);
    let immutable = Immutable::make(bench.dir());
    bench.machine.limit_jobs(0);
    let told = bench.disk().wait();
    assert!(told.is_err(), "{told:?}");
    assert!(runs(&mut bench));
    let log = bench.mount.text("log");
    assert!(log.contains("the merge goes on by itself"), "{log}");
    drop(immutable);
    wait::until_true("the merge has ended", || {
        !bench.sealed("one").exists() && bench.disk().list("jobs").is_empty()
    });
    assert!(runs(&mut bench));
    assert_eq!(oracle::chain(&bench.active()), [bench.active()]);
    bench.verify();
    bench.restart();
    bench.finish();
}

/// The QEMU that a VM goes to has the old active layer open: nobody is moved, nor stopped, until it is known that the VM stays.
#[test]
fn a_vm_that_is_being_migrated_is_not_moved() {
    let mut bench = committed_from_the_top("pivot-migration", Attachment::Blockdev);
    bench.begin_removal_at("one", 1);
    let job = bench.disk().only_job();
    bench.machine.begin_migration();
    bench.machine.limit_jobs(0);
    wait::until_true("the job is ready, and waits", || {
        let log = bench.mount.text("log");
        text(&job.join("state")).trim() == "ready"
            && log.contains("cannot be moved yet: the VM is being migrated")
    });
    bench.writer().progress(50);
    assert!(runs(&mut bench), "the guest never stands still for it");
    let upper = oracle::chain(&bench.active());
    assert_eq!(upper, [bench.active(), bench.sealed("one")]);
    bench.machine.cancel_migration();
    bench.disk().wait().expect("the merge ends by itself");
    assert!(runs(&mut bench));
    assert_eq!(oracle::chain(&bench.active()), [bench.active()]);
    bench.verify();
    bench.finish();
}

/// It begins when the job is ready and the guest is being stopped for it: the guest goes on where it stood.
#[test]
fn a_migration_that_begins_at_the_pivot_is_seen() {
    let mut bench = committed_from_the_top("pivot-migration-begins", Attachment::Blockdev);
    let (monitor, held) = holding(bench.scratch(), bench.machine.qmpfs_socket(), "stop");
    bench.mount.mount_through(&monitor);
    bench.wait_for_disk();
    bench.begin_removal("one");
    held.meanwhile(|| bench.machine.begin_migration());
    wait::until_true("the merge waits", || {
        let log = bench.mount.text("log");
        log.contains("cannot be moved yet: the VM is being migrated")
    });
    assert!(runs(&mut bench), "the guest goes on");
    let upper = oracle::chain(&bench.active());
    assert_eq!(upper, [bench.active(), bench.sealed("one")]);
    bench.machine.cancel_migration();
    bench.disk().wait().expect("the merge ends by itself");
    assert_eq!(oracle::chain(&bench.active()), [bench.active()]);
    bench.verify();
    bench.finish();
}

/// Clients of a storage daemon cannot be stopped while they are moved: unless told to, nobody moves them.
#[test]
fn clients_that_cannot_be_stopped_are_not_moved() {
    let mut bench = Bench::new("pivot-clients", Attachment::StorageDaemon);
    bench.write(200);
    bench.seal("one");
    let plan = text(&bench.point("one").0.join("plan"));
    assert!(plan.contains("its clients cannot be stopped"), "{plan}");
    assert!(plan.contains("block-stream"), "{plan}");
    bench.remove("one");
    bench.restart();
    bench.finish();
}

/// With `-o merge=commit` they are, and if both programs die just then what they wrote may be lost: that is said.
#[test]
fn clients_whose_move_was_cut_short_are_told() {
    let options = ["-o", "merge=commit"];
    let mut bench = Bench::with_options("pivot-cut", Attachment::StorageDaemon, &options);
    let steps = Steps::new(bench.scratch());
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    bench.mount.mount_through(proxy.socket());
    bench.wait_for_disk();
    let mut last = None;
    let mut before = bench.writer().acknowledged();
    for name in ["whole", "cut"] {
        bench.seal(name);
        bench.write(20);
        bench.flush();
        before = bench.writer().acknowledged();
        let (number, deed) = match last {
            None => (100, Deed::Pass),
            Some(number) => (number, Deed::KillAfter),
        };
        steps.arm(COMMANDS, number, deed, [bench.mount.pid(), 0]);
        bench.begin_removal(name);
        let _ = bench.disk().wait();
        let (fired, seen) = steps.disarm();
        assert_eq!(fired, last.is_some(), "{seen:?}");
        last = seen.iter().position(|step| step == "job-complete");
        assert!(last.is_some(), "{seen:?}");
    }
    bench.writer().progress(50);
    bench.writer().expect_the_end();
    bench.mount.kill9();
    bench.boot_after_a_fall(Some(&before));
    bench.mount.mount_again();
    wait::until_true("the merge has ended", || {
        !bench.sealed("cut").exists() && bench.disk().list("jobs").is_empty()
    });
    let log = bench.mount.text("log");
    assert!(log.contains("may be LOST IN PART"), "{log}");
    bench.verify();
    bench.restart();
    let log = bench.mount.text("log");
    assert_eq!(log.matches("LOST IN PART").count(), 1, "told once: {log}");
    bench.finish();
}
