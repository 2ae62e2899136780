//! Before a VM moves onto the layer that was committed into: if the name of the active path cannot be changed, the guest
//! runs on, and the merge ends by itself as soon as it can be.

use std::path::{Path, PathBuf};

use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::Attachment;
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
    let mut bench = Bench::with_bulk(name, attachment, 256 << 20);
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
        bench.begin_removal("one");
        assert!(bench.machine.limit_jobs(1) > 0, "the merge is met at work");
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
    bench.begin_removal("one");
    assert!(bench.machine.limit_jobs(1) > 0, "the merge is met at work");
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
