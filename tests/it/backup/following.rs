//! Dirty bitmaps follow the disk over snapshots and their removal: the next incremental backup holds what was written.

use super::{assert_stands_on, why_full};
use qmpfs_tests::bench::Shelf;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::sample::Share;
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::text;
use qmpfs_tests::{oracle, sample, wait};
use serde_json::{Value, json};

/// Also where the guest cannot be stopped for the pivot.
const COMMIT: &[&str] = &["-o", "merge=commit"];

/// What a removal of that point would be.
fn plan_of(shelf: &Shelf, point: &str) -> String {
    text(&shelf.bench.point(point).0.join("plan"))
}

/// Our bitmaps on nodes that are not the root.
fn below(shelf: &mut Shelf) -> Vec<String> {
    let root = shelf.bench.disk().json()["node_name"].clone();
    let flat = json!({"flat": true});
    let nodes = shelf.bench.machine.qmp.run("query-named-block-nodes", flat);
    let nodes: Vec<Value> = nodes.as_array().expect("nodes").clone();
    let others = nodes.iter().filter(|node| node["node-name"] != root);
    let bitmaps = others.flat_map(|node| node["dirty-bitmaps"].as_array().cloned());
    bitmaps
        .flatten()
        .filter_map(|bitmap| Some(bitmap["name"].as_str()?.to_owned()))
        .filter(|name| name.starts_with("qmpfs-"))
        .collect()
}

over_attachments! {
    /// Over seals, a restart, and removals of every kind.
    incrementals_go_on_over_snapshots => |name, attachment| {
        let mut shelf = Shelf::new(name, attachment);
        shelf.keep("full", "b0");
        shelf.bench.write(10);
        shelf.bench.seal("s1");
        assert_eq!(below(&mut shelf), Vec::<String>::new());
        shelf.bench.write(10);
        assert_stands_on(&shelf.keep("incremental", "b1"), "b0");
        shelf.bench.seal("s2");
        shelf.bench.write(10);
        shelf.bench.seal("s3");
        assert_stands_on(&shelf.keep("incremental", "b2"), "b1");
        shelf.bench.write(10);
        // in peace: what was carried along is stored
        shelf.bench.restart();
        shelf.bench.write(10);
        assert_stands_on(&shelf.keep("incremental", "b3"), "b2");
        shelf.bench.seal("s4");
        shelf.bench.write(10);
        for (number, point) in ["s2", "s1", "s4", "s3"].into_iter().enumerate() {
            let plan = plan_of(&shelf, point);
            shelf.bench.remove(point);
            assert_eq!(below(&mut shelf), Vec::<String>::new(), "{plan}");
            let kept = shelf.keep("incremental", &format!("c{number}"));
            let previous = match number {
                0 => "b3".to_owned(),
                _ => format!("c{}", number - 1),
            };
            assert_stands_on(&kept, &previous);
            shelf.bench.write(10);
        }
        shelf.bench.restart();
        assert_stands_on(&shelf.keep("incremental", "last"), "c3");
        shelf.read_from_a_copy();
        shelf.bench.finish();
    }
}

over_attachments! {
    /// The guest writes on all through it; where it cannot be stopped, also between READY and the pivot.
    what_is_written_during_a_commit_of_the_active_layer_is_in_the_next_one => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, COMMIT);
        shelf.keep("full", "b0");
        for round in 1..=3 {
            shelf.bench.write(10);
            shelf.bench.seal("s");
            let plan = plan_of(&shelf, "s");
            assert!(plan.contains("block-commit"), "{plan}");
            shelf.bench.begin_removal("s");
            while !shelf.bench.disk().list("jobs").is_empty() {
                shelf.bench.write(5);
            }
            shelf.bench.disk().wait().expect("a merge");
            assert_eq!(oracle::chain(&shelf.bench.active()).len(), 1);
            let kept = shelf.keep("incremental", &format!("b{round}"));
            assert_stands_on(&kept, &format!("b{}", round - 1));
        }
        shelf.bench.finish();
    }
}

/// QEMU dies after bitmaps were carried along: the next one is whole, and says why.
#[test]
fn qemu_killed_after_a_seal() {
    let mut shelf = Shelf::new("bitmaps-fall", Attachment::Blockdev);
    shelf.keep("full", "b0");
    shelf.bench.restart();
    shelf.bench.seal("s1");
    shelf.bench.write(10);
    shelf.bench.flush();
    shelf.bench.writer().expect_the_end();
    shelf.bench.boot_after_a_fall(None);
    shelf.bench.wait_for_disk();
    let next = shelf.keep("incremental", "b1");
    assert!(why_full(&next).contains("no dirty bitmap"), "{next}");
    shelf.bench.finish();
}

/// After a rollback the disk is another one: nothing tells what differs.
#[test]
fn after_a_rollback_all_is_copied() {
    let options = ["-o", "live_rollback"];
    let mut shelf = Shelf::with_options("bitmaps-rollback", Attachment::Blockdev, &options);
    shelf.bench.seal("s1");
    shelf.bench.write(10);
    shelf.keep("full", "b0");
    shelf.bench.write(10);
    shelf.bench.roll_back("s1");
    let next = shelf.keep("incremental", "b1");
    assert!(why_full(&next).contains("no dirty bitmap"), "{next}");
    shelf.bench.write(10);
    assert_stands_on(&shelf.keep("incremental", "b2"), "b1");
    shelf.bench.finish();
}

/// qmpfs dies at a command of a seal or of a commit of the active layer: whatever the next backup stands on, it is right.
#[test]
fn qmpfs_killed_at_commands_of_a_seal_and_of_a_commit() {
    let attachments = [
        (Attachment::Blockdev, "bitmaps-killed-blockdev"),
        (Attachment::StorageDaemon, "bitmaps-killed-qsd"),
    ];
    // every day one will do
    let count = match Share::asked_for() {
        Share::Everyday => 1,
        Share::Rounds(_) | Share::Kills | Share::Full => attachments.len(),
    };
    for (attachment, name) in attachments.into_iter().take(count) {
        let mut shelf = Shelf::with_options(name, attachment, COMMIT);
        let steps = Steps::new(shelf.bench.scratch());
        let monitor = shelf.bench.machine.qmpfs_socket();
        let proxy = Proxy::new(shelf.bench.scratch(), monitor, &steps);
        shelf.bench.mount.mount_through(proxy.socket());
        shelf.bench.wait_for_disk();
        shelf.keep("full", "b0");
        let mut count = 0;
        for (nth, verb) in [Verb::Seal, Verb::Commit].into_iter().enumerate() {
            for number in sample::steps(nth) {
                count += 1;
                let point = format!("s{count}");
                if verb == Verb::Commit {
                    shelf.bench.seal(&point);
                }
                let deed = [Deed::KillBefore, Deed::KillAfter][count % 2];
                let there_is_one = die_at(&mut shelf, &steps, verb, &point, (number, deed));
                shelf.bench.write(4);
                shelf.keep("incremental", &format!("b{count}"));
                assert_eq!(below(&mut shelf), Vec::<String>::new(), "{verb:?} {number}");
                if !there_is_one {
                    assert!(number > 5, "{verb:?} has more commands");
                    break;
                }
            }
        }
        shelf.bench.finish();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Seal,
    Commit,
}

/// The program dies there, is started again, and the point goes. False: the verb has no such command.
fn die_at(
    shelf: &mut Shelf,
    steps: &Steps,
    verb: Verb,
    name: &str,
    (number, deed): (usize, Deed),
) -> bool {
    let point = shelf.bench.point(name);
    let step = format!("{verb:?}, {deed:?} {number}");
    shelf.bench.writer().step(&step);
    steps.arm(COMMANDS, number, deed, [shelf.bench.mount.pid(), 0]);
    let outcome = match verb {
        Verb::Seal => point.make(),
        Verb::Commit => point.delete(),
    };
    // a merge goes on after its answer
    let is_idle = |shelf: &Shelf| {
        let jobs = std::fs::read_dir(shelf.bench.disk().0.join("jobs"));
        shelf.bench.mount_is_connected() && jobs.is_ok_and(|mut jobs| jobs.next().is_none())
    };
    wait::until_true("it is over, or killed", || steps.fired() || is_idle(shelf));
    let (fired, seen) = steps.disarm();
    if fired {
        shelf.bench.mount.mount_again();
    } else {
        outcome.unwrap_or_else(|e| panic!("{step}: {e}, {seen:?}"));
    }
    wait::until_true("all is settled", || is_idle(shelf));
    if point.exists() {
        point.delete_when_closed();
        shelf.bench.disk().wait().expect("a merge");
    }
    shelf.bench.forget(name);
    fired
}
