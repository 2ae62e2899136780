//! Commits that were begun and have failed: the layer that received a part of the one above is mixed. Nothing is done
//! that would give it another name, and it is taken up again.

use libc::EBUSY;
use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::tree::{assert_errno, text};
use qmpfs_tests::wait;
use serde_json::json;

/// So much of a bulk that a merge is still at work when the test gets to it.
const BULK: u64 = 64 << 20;

fn with_points(name: &str, attachment: Attachment, names: &[&str]) -> Bench {
    let options = ["-o", "merge=commit,live_rollback"];
    let mut bench = Bench::with_bulk_and_options(name, attachment, BULK, &options);
    for name in names {
        bench.write_bulk();
        bench.seal(name);
    }
    bench.write_bulk();
    bench.write(20);
    bench
}

/// Begins a removal, and ends its job at another monitor when it has copied something.
#[track_caller]
fn cut_short(bench: &mut Bench, name: &str) {
    bench.begin_removal_at(name, 1 << 20);
    let job = bench.disk().only_job();
    let id = job.file_name().and_then(|id| id.to_str()).expect("a name");
    wait::until_true("something is copied", || {
        let jobs = bench.machine.qmp.run("query-jobs", json!({}));
        let mut jobs = jobs.as_array().expect("jobs").iter();
        jobs.any(|job| job["id"] == id && job["current-progress"].as_u64() > Some(0))
    });
    bench.machine.qmp.run("job-cancel", json!({"id": id}));
    wait::until_true("it has failed", || {
        text(&job.join("state")).trim() == "concluded"
    });
}

/// The job is dismissed, and the merge goes to its end.
#[track_caller]
fn ended(bench: &mut Bench, name: &str) {
    std::fs::remove_dir(bench.disk().only_job()).expect("rmdir of the job");
    bench.disk().wait().expect("it has not failed");
    assert!(!bench.point(name).exists());
    assert!(!bench.sealed(name).exists(), "{}", bench.mount.text("log"));
    bench.verify();
}

over_attachments! {
    of_a_sealed_layer => |name, attachment| {
        let mut bench = with_points(name, attachment, &["one", "two", "three", "four"]);
        cut_short(&mut bench, "two");
        // what is below would be mixed, what is above lost, and the way back hide it
        assert_errno(bench.point("one").delete(), &[EBUSY]);
        assert_errno(bench.point("three").delete(), &[EBUSY]);
        assert_errno(bench.disk().roll_back("one"), &[EBUSY]);
        let log = bench.mount.text("log");
        assert!(log.contains("the merge of 'two' was cut short"), "{log}");
        bench.verify_points();
        // this one has nothing to do with it, and does not make it forgotten
        bench.begin_removal("four");
        wait::until_true("it is gone", || {
            !bench.sealed("four").exists() && bench.disk().list("jobs").len() == 1
        });
        assert!(!bench.point("two").exists(), "it is neither what it was nor gone");
        ended(&mut bench, "two");
        bench.finish();
    }
}

over_attachments! {
    of_the_active_layer => |name, attachment| {
        let mut bench = with_points(name, attachment, &["one", "two"]);
        cut_short(&mut bench, "two");
        assert_errno(bench.point("new").make(), &[EBUSY]);
        assert_errno(std::fs::create_dir(bench.mount.path().join("snapshots/new")), &[EBUSY]);
        assert_errno(bench.point("one").delete(), &[EBUSY]);
        // they would be in the file that goes
        assert_errno(bench.disk().internal("in").make(), &[EBUSY]);
        if attachment.is_vm() {
            let checkpoint = bench.mount.path().join("checkpoints/c");
            assert_errno(std::fs::create_dir(checkpoint), &[EBUSY]);
        }
        ended(&mut bench, "two");
        bench.seal("new");
        bench.finish();
    }
}
